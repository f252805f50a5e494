"""`make bench`: measure, and print each number beside its aim; tables for people, then one JSON line."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from srp4ctr.runtime.command import exit_code
from srp4ctr_loadtest.bench import beside, costs, encoding, health, latency, state_bytes, workers
from srp4ctr_loadtest.bench.findings import Part, table
from srp4ctr_loadtest.bench.kept import kept
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.peers.workload import Workload

MEASUREMENTS: Mapping[str, tuple[str, Callable[[Place], Part]]] = {
    "cost": ("CPU and latencies by candidates, beside the bare run of the scorer", costs.measure),
    "latency": ("p99 at 1,000 candidates and half load", latency.measure),
    "encoding": ("cached states against encoding for each candidate", encoding.measure),
    "idle": ("CPU of an idle worker", workers.measure_idle),
    "worker": ("memory of one more worker", workers.measure_memory),
    "health": ("GET /livez under saturation", health.measure),
    "state": ("bytes of a state in Redis", state_bytes.measure),
    "beside": ("requests a second beside FastAPI and Triton", beside.measure),
}


def main(argv: Sequence[str] | None = None) -> int:
    """0, whatever is met: a busy machine misses what a quiet one meets."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.bench", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=MEASUREMENTS,
        default=list(MEASUREMENTS),
        metavar="NAME",
        help="; ".join(f"{name}: {what}" for name, (what, _) in MEASUREMENTS.items()),
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of each: a minute, and rough")
    arguments = parser.parse_args(argv)
    parts: dict[str, Part] = {}
    with Place.open(Workload.active(), quick=arguments.quick) as place:
        for name in arguments.only:
            what, measure = MEASUREMENTS[name]
            print(f"{name}: {what} ...", file=sys.stderr, flush=True)
            parts[name] = measure(place)
        _print(place, parts)
    return 0


def _print(place: Place, parts: Mapping[str, Part]) -> None:
    findings = [one for part in parts.values() for one in part.findings]
    version = place.workload.subject.version
    rough = "; QUICK, so that figures are rough" if place.quick else ""
    print(f"Model {version}, one core, one thread{rough}")
    for note in place.notes:
        print(note)
    for part in parts.values():
        if part.table:
            print(f"\n{part.table}")
    print(f"\n{table(findings)}")
    before = kept()
    for one in before:
        print(f"\n{one.title}\n\n{table(one.findings)}")
    line = {
        "benchmark": "performance",
        "model": version,
        "quick": place.quick,
        "notes": list(place.notes),
        "findings": [one.as_json() for one in findings],
        "details": {name: part.detail for name, part in parts.items() if part.detail},
        "kept": [one.as_json() for one in before],
    }
    print(f"\n{json.dumps(line)}")


if __name__ == "__main__":
    sys.exit(exit_code("bench", main))
