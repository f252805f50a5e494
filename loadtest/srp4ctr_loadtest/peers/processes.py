"""Servers as processes on cores of their own, and what all processes of one cost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from srp4ctr.contract.errors import ServiceNotReady
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.cpu_clock import cpu_seconds

START_LIMIT_S = 180.0
STOP_LIMIT_S = 20.0
LAST_WORDS = 3000


@dataclass(frozen=True)
class Tree:
    """A process and all that descend from it."""

    root: psutil.Process

    def processes(self) -> list[psutil.Process]:
        """Those that live now."""
        try:
            return [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess as error:
            raise ServiceNotReady("the server's process has ended") from error

    def cpu_seconds(self) -> float:
        """CPU that all have used since they began, to the nanosecond; what their finished children had, to a tick."""
        used = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                children = process.cpu_times()
                used += cpu_seconds(process.pid) + children.children_user + children.children_system
        return used

    def check_core(self, core: int) -> None:
        """Raise ServiceNotReady where a process of it may run on another core."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cpu_affinity() != [core]:
                    raise ServiceNotReady(
                        f"{process.name()} runs on cores {process.cpu_affinity()}, not on {core} alone"
                    )


@contextlib.contextmanager
def running(
    command: Sequence[str], variables: Mapping[str, str], core: int, log: Path, ready: Callable[[], bool]
) -> Iterator[Tree]:
    """The command's process on that core, once `ready`; ended on leaving with all that it has started.

    What it says goes into `log`. Raises ServiceNotReady, its last words on standard error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        with on_core(core):
            process = subprocess.Popen(
                command,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        tree = Tree(psutil.Process(process.pid))
        try:
            give_up_at = time.monotonic() + START_LIMIT_S
            while not ready():
                if process.poll() is not None:
                    raise ServiceNotReady(
                        f"it ended with {process.returncode} before it answered; {_told(log)}"
                    )
                if time.monotonic() > give_up_at:
                    raise ServiceNotReady(f"no answer in {START_LIMIT_S:.0f} s; {_told(log)}")
                time.sleep(0.2)
            tree.check_core(core)
            yield tree
        finally:
            _end(process, tree)


def _end(process: subprocess.Popen[bytes], tree: Tree) -> None:
    started = []
    with contextlib.suppress(ServiceNotReady):
        started = tree.processes()
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_LIMIT_S)
    _, left = psutil.wait_procs(started, timeout=2.0)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(left, timeout=STOP_LIMIT_S)
    process.wait(STOP_LIMIT_S)


def _told(log: Path) -> str:
    """Where its words are; the last of them for whoever waits for it."""
    print(log.read_text(errors="replace").strip()[-LAST_WORDS:], file=sys.stderr)
    return f"its log is {log}"


def module_command(python: Path | None, module: str) -> list[str]:
    """The command that runs a module, by this Python where no other is given."""
    return [str(python or sys.executable), "-m", module]
