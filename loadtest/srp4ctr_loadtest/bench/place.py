"""Where measurements run: the active version, a core for what is measured, another for the loader and Redis."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import psutil

from srp4ctr.runtime.serving import free_port, running_service
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.peers.machine import redis_on
from srp4ctr_loadtest.peers.processes import Tree
from srp4ctr_loadtest.peers.workload import Workload


@dataclass(frozen=True)
class Service:
    """A service that answers, and its processes."""

    url: str
    tree: Tree


@dataclass(frozen=True)
class Place:
    """Who runs where. `quick`: for a look, with rounds so short that figures are rough; `notes`: what is not as it should be."""

    workload: Workload
    server_core: int
    loader_core: int
    quick: bool
    notes: Sequence[str]

    @classmethod
    @contextlib.contextmanager
    def open(cls, workload: Workload, *, quick: bool) -> Iterator[Self]:
        """This process on the loader's core, and Redis with it where it can be moved; both as before on leaving."""
        cores = sorted(os.sched_getaffinity(0))
        with redis_on(workload, cores[-1]) as notes, on_core(cores[-1]):
            alone = (
                ["There is one core only: the loader takes from what it measures."] if len(cores) == 1 else []
            )
            yield cls(workload, cores[0], cores[-1], quick, [*notes, *alone])

    @contextlib.contextmanager
    def service(
        self, near_cache_users: int | None, variables: Mapping[str, str] | None = None
    ) -> Iterator[Service]:
        """The service on its core, with that many users in its near cache (None: as many as by default)."""
        given = {**self.workload.service_variables(near_cache_users), **(variables or {})}
        with contextlib.ExitStack() as stack:
            with on_core(self.server_core):
                running = stack.enter_context(running_service(free_port(), given))
            tree = Tree(psutil.Process(running.pid))
            tree.check_core(self.server_core)
            yield Service(running.url, tree)

    def scaled(self, number: int, least: int = 1) -> int:
        """So many, or an eighth of them for a quick look."""
        return max(least, number // 8) if self.quick else number
