"""`python -m srp4ctr_loadtest.peers`: install the peers, and compare them with the service."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from srp4ctr.runtime.command import exit_code
from srp4ctr_loadtest.peers import report
from srp4ctr_loadtest.peers.catalogue import chosen
from srp4ctr_loadtest.peers.install import FOLDER, install
from srp4ctr_loadtest.peers.measure import Plan
from srp4ctr_loadtest.peers.run import CANDIDATES, compare
from srp4ctr_loadtest.peers.workload import Workload

OUT = Path("docs/benchmarks")


def main(argv: Sequence[str] | None = None) -> int:
    """1 where an environment could not be made, or where a server answered wrongly."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (
        ("install", "make the peers' environments; what is there already is left as it is"),
        ("run", "measure our service beside the peers; needs an active version (make demo-once)"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            "names", nargs="*", metavar="NAME", help="a peer or an environment; default: all"
        )
        command.add_argument("--peers", type=Path, default=FOLDER, help=f"folder of environments ({FOLDER})")
        if name == "run":
            command.add_argument("--requests", type=int, default=1500, help="a closed loop's round (1500)")
            command.add_argument("--seconds", type=float, default=20.0, help="an open loop lasts (20)")
            command.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES, help="(50 100 500)")
            command.add_argument(
                "--out",
                type=Path,
                help=f"folder for serving.json, serving.md and pictures ({OUT} where all are compared, else none)",
            )
    arguments = parser.parse_args(argv)
    peers = chosen(arguments.names)
    if arguments.command == "install":
        environments = dict.fromkeys(peer.environment for peer in peers if peer.environment is not None)
        return 1 if install(list(environments), arguments.peers) else 0
    cores = sorted(os.sched_getaffinity(0))
    plan = Plan(arguments.requests, arguments.seconds, cores[0], cores[-1])
    results = compare(Workload.active(), peers, arguments.peers, plan, arguments.candidates)
    out = arguments.out or (None if arguments.names else OUT)
    if out is not None:
        report.write(results, out)
    print(report.lines(results))
    return 1 if results.wrong() else 0


if __name__ == "__main__":
    sys.exit(exit_code("peers", main))
