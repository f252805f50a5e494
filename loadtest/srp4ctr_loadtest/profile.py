"""`python -m srp4ctr_loadtest.profile`: flame graphs of the service, and of a plain FastAPI service of the same model, under load.

Both answer the same questions, one after the other, in a closed loop; py-spy (`pip install py-spy`, or the extra `loadtest`) looks
at their Python stacks 500 times a second meanwhile. The plain service, which stands for "before", is the peer of that name: FastAPI as its
tutorial has it, with our bundle's graph; it is no earlier version of ours. Needs an active version (make demo-once). Writes one SVG each.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from srp4ctr.contract.errors import DependencyMissing, Srp4ctrError
from srp4ctr.runtime.command import exit_code
from srp4ctr_loadtest.http_load import closed_loop
from srp4ctr_loadtest.peers.catalogue import PEERS
from srp4ctr_loadtest.peers.contestants import Contestant, own_services, peer_contestant
from srp4ctr_loadtest.peers.install import FOLDER
from srp4ctr_loadtest.peers.workload import Workload

OUT = Path("docs/benchmarks/profile")
CONNECTIONS = 8
LOOKS_A_SECOND = 500
ROUND = 500
"""Requests between two looks at whether the time is over."""


def main(argv: Sequence[str] | None = None) -> int:
    """Record both."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.profile", description=__doc__)
    parser.add_argument("--candidates", type=int, default=100, help="of a request (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=20, help="of each recording (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the pictures (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.out.mkdir(parents=True, exist_ok=True)
    workload = Workload.active()
    (naive,) = (peer for peer in PEERS if peer.name == "fastapi")
    for contestant, name in (
        (peer_contestant(naive, workload, FOLDER), "fastapi"),
        (own_services(workload)[0], "srp4ctr"),
    ):
        path = arguments.out / f"{name}-{arguments.candidates}.svg"
        asked = record(contestant, workload, arguments.candidates, arguments.seconds, path)
        print(f"{contestant.title}: {asked} requests of {arguments.candidates} candidates, {path}")
    return 0


def record(contestant: Contestant, workload: Workload, candidates: int, seconds: int, path: Path) -> int:
    """Write the flame graph of a server while it answers; gives how many requests it was asked."""
    questions = workload.questions(candidates)
    asked = 0
    with contestant.start(min(os.sched_getaffinity(0))) as running:
        requests = [contestant.protocol.call(one).to(running.url) for one in questions]
        closed_loop(running.url, requests, connections=CONNECTIONS, count=len(requests))

        def keep_busy() -> None:
            nonlocal asked
            load = closed_loop(running.url, requests, connections=CONNECTIONS, count=ROUND)
            if set(load.statuses) != {200}:
                raise Srp4ctrError(f"not every request was answered: {dict(load.statuses)}")
            asked += ROUND

        spy(running.tree.root.pid, path, seconds, keep_busy, "--subprocesses")
    # Paths as they are for whoever looks at it elsewhere.
    path.write_text(path.read_text().replace(f"{Path.cwd()}/", ""))
    return asked


def spy(pid: int, path: Path, seconds: int, keep_busy: Callable[[], None], *options: str) -> None:
    """Have py-spy write what a process does for so long, calling `keep_busy` meanwhile; raises Srp4ctrError where it cannot."""
    command = [_py_spy(), "record", "--pid", str(pid), "--output", str(path), *options]
    command += ["--duration", str(seconds), "--rate", str(LOOKS_A_SECOND)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as spying:
        while spying.poll() is None:
            keep_busy()
        assert spying.stderr is not None
        said = spying.stderr.read()
    if spying.returncode or not path.exists():
        raise Srp4ctrError(f"py-spy ended with {spying.returncode}: {said.strip()[-500:]}")


def _py_spy() -> str:
    found = shutil.which("py-spy", path=sysconfig.get_path("scripts")) or shutil.which("py-spy")
    if found is None:
        raise DependencyMissing("py-spy", "loadtest")
    return found


if __name__ == "__main__":
    sys.exit(exit_code("profile", main))
