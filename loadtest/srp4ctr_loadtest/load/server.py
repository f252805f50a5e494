"""The service under load: which one it is, and what it uses of the machine meanwhile."""

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr_loadtest.peers.processes import Tree

EVERY_S = 0.5
LIMIT_S = 2.0
FORGOTTEN_S = 3.0
"""A replica of which nothing has been seen for so long has ended."""
STARTED = "process_start_time_seconds"
CPU = "process_cpu_seconds_total"
MEMORY = "process_resident_memory_bytes"


@dataclass
class Use:
    """Cores and megabytes of resident memory by time, seconds since the watch began; empty where nobody tells.

    `source`: the service's own tree of processes, or what GET /metrics says, of all replicas that were seen together.
    """

    source: Literal["processes", "metrics"] | None
    at_s: list[float] = field(default_factory=list)
    cpu_cores: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)

    def as_json(self, began_s: float = 0.0, ended_s: float = float("inf")) -> dict[str, Any] | None:
        """Of a part of the time; None where nothing was seen."""
        seen = [place for place, at in enumerate(self.at_s) if began_s <= at <= ended_s]
        if self.source is None or not seen:
            return None
        cores, memory = [self.cpu_cores[one] for one in seen], [self.memory_mb[one] for one in seen]
        return {
            "source": self.source,
            "cpu_cores_mean": round(sum(cores) / len(cores), 3),
            "cpu_cores_max": round(max(cores), 3),
            "memory_mb_max": round(max(memory), 1),
        }


@dataclass
class Seen:
    """One process, or one tree of processes, when it was last looked at."""

    at_s: float
    cpu_s: float
    cpu_cores: float | None
    memory_bytes: float


class Watch:
    """Looks at the service again and again, in a thread of its own."""

    def __init__(self, metrics_url: str, headers: Mapping[str, str], pid: int | None) -> None:
        """`pid`: the service's first process, where it is one of this machine that may be looked at; else metrics are asked
        for, at each address that the URL's host has.
        """
        self._metrics = urlsplit(metrics_url)
        self._headers = headers
        self._tree = None if pid is None else Tree(psutil.Process(pid))
        self._began = time.monotonic()
        # By what tells one replica from another: behind a balancer, each look may meet another one.
        self._replicas: dict[object, Seen] = {}
        self.use = Use("processes" if self._tree else None)
        self._look()
        if self._replicas and self.use.source is None:
            self.use.source = "metrics"

    def now_s(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._began

    @contextlib.contextmanager
    def going_on(self) -> Iterator[Use]:
        """Look until leaving."""
        ended = threading.Event()
        thread = threading.Thread(target=self._go_on, args=[ended])
        if self.use.source is not None:
            thread.start()
        try:
            yield self.use
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()

    def _go_on(self, ended: threading.Event) -> None:
        while not ended.wait(EVERY_S):
            self._look()
            now = self.now_s()
            seen = [one for one in self._replicas.values() if now - one.at_s < FORGOTTEN_S]
            cores = [one.cpu_cores for one in seen if one.cpu_cores is not None]
            if cores:
                self.use.at_s.append(round(now, 2))
                self.use.cpu_cores.append(round(sum(cores), 3))
                self.use.memory_mb.append(round(sum(one.memory_bytes for one in seen) / 1e6, 1))

    def _look(self) -> None:
        """Note what each replica that can be reached has used."""
        if self._tree is not None:
            with contextlib.suppress(ServiceNotReady):
                self._note("processes", self._tree.cpu_seconds(), _memory(self._tree))
            return
        for url in self._addresses():
            with contextlib.suppress(OSError, HTTPException, ValueError, KeyError):
                values = self._ask(url)
                self._note((url, values[STARTED]), float(values[CPU]), float(values[MEMORY]))

    def _note(self, replica: object, cpu_s: float, memory_bytes: float) -> None:
        now, before = self.now_s(), self._replicas.get(replica)
        cores = None if before is None else (cpu_s - before.cpu_s) / (now - before.at_s)
        self._replicas[replica] = Seen(now, cpu_s, cores, memory_bytes)

    def _addresses(self) -> list[str]:
        """The URL with each address of its host; a name that cannot be resolved has none."""
        url = self._metrics
        if url.scheme != "http" or url.hostname is None:
            # A certificate is for the name.
            return [url.geturl()]
        try:
            found = socket.getaddrinfo(url.hostname, url.port or 80, type=socket.SOCK_STREAM)
        except OSError:
            return []
        hosts = dict.fromkeys(str(address[0]) for *_, address in found)
        named = [f"[{host}]" if ":" in host else host for host in hosts]
        return [url._replace(netloc=f"{host}:{url.port or 80}").geturl() for host in named]

    def _ask(self, url: str) -> dict[str, str]:
        request = urllib.request.Request(url, headers=dict(self._headers))  # noqa: S310 -- the user's own
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:  # noqa: S310 -- as above
            lines = answer.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))


def _memory(tree: Tree) -> float:
    used = 0.0
    for process in tree.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            used += process.memory_info().rss
    return used
