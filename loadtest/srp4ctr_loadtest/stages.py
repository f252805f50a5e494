"""`python -m srp4ctr_loadtest.stages`: where the CPU of a scored request goes, stage by stage, and what was tried to cut each.

py-spy looks at the service's Python stack while a closed loop keeps it busy; a stage's share of the looks is its share of the CPU, which the
kernel counts without py-spy. Times by the clock would have in them whatever else the machine does meanwhile.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from srp4ctr.runtime.command import exit_code
from srp4ctr_loadtest.bench.costs import CONNECTIONS, KINDS, REQUESTS, ROUNDS, checked
from srp4ctr_loadtest.bench.place import Place, Service
from srp4ctr_loadtest.http_load import closed_loop
from srp4ctr_loadtest.peers.machine import machine
from srp4ctr_loadtest.peers.workload import Workload
from srp4ctr_loadtest.profile import LOOKS_A_SECOND, spy

CANDIDATES = (100, 500)
SECONDS = 20
"""Of looking, for each number of candidates and kind of states: 10,000 looks, so that a stage of 5 % is seen to .2 %."""
AROUND, ALL = "around", "all"
STAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "parse": (
        "parse and check the body, codes of the context",
        ("srp4ctr_service/bodies.py", "srp4ctr_service/formats.py", "ServedModel.question"),
    ),
    "state": (
        "the user's state",
        ("srp4ctr_service/states.py", "runtime/state_reads.py", "runtime/near_cache.py"),
    ),
    "rows": ("rows of the item table", ("ServedModel.rows", "ServedModel.unknown")),
    "vectors": ("gather item vectors, hand arrays to ONNX Runtime", ("ServedModel.score",)),
    "model": ("run the model", ("onnxruntime/capi/",)),
    "answer": ("write the answer", ("srp4ctr_service/answers.py",)),
    "counting": ("metrics", ("srp4ctr_service/telemetry.py",)),
    AROUND: ("HTTP, event loop, and what leads through the request", ()),
}
"""Titles, and what in a frame of the stack tells the stage; the innermost frame that tells one decides."""

INTRODUCTION = f"""\
# CPU of a request by stage

Written by `python -m srp4ctr_loadtest.stages --out docs/benchmarks`; do not edit. CPU milliseconds of the service's process for one
`POST /score`, in a closed loop of {CONNECTIONS} connections on one core: once with all states in its near cache, once with a read of Redis for each. All is
the least of {ROUNDS} rounds, counted by the kernel; a stage's share of it is that of py-spy's looks at the stack, {LOOKS_A_SECOND} a second, which are
taken afterwards. A look belongs to the innermost function that tells its stage.
"""

TRIED = """\
## What was tried to cut each

- *Parse*: pydantic reads the bytes itself; a pattern that each id was matched with took most of the time, one search in all ids joined replaced it;
  FastAPI's injection and validation are passed by (decision 0008). MessagePack is there for who sends much (decision 0011).
- *State*: redis-py's pipeline and a task for each read, 50 to 60 us a GET, became one connection that `hiredis` parses, 13 us; a near cache that Redis
  keeps true reads nothing, and keeps states decoded (0008).
- *Rows*: 500 ids in ten million take 900 us by binary search and 77 us by a hash table of whole arrays (0008); ids asked for lately are kept beside it.
- *Model*: item vectors and the first queries computed when the bundle is made, user and context once a request, no dimension of users:
  .61 to .42 ms at 100 candidates; feed-forward layers and a tower that are no wider than they are worth: .38 to .22 (0015). Static int8
  makes the narrow network slower; ONNX's Attention operator, block-diagonal keys, a folded first layer of the tower and item vectors in float16
  gained nothing (decision 0009, [scorer-variants.md](scorer-variants.md)).
- *Answer*: orjson writes numpy's arrays, without a Python object for each candidate.
- *Metrics, HTTP, event loop*: the model runs in the event loop, for a thread cost up to .5 ms a request; `POST /score` does not pass through the framework
  (0008). Metrics are noted, and counted 256 at a time: between two runs of the model their code costs four times what it costs in a row.
  A request that comes in one piece passes by the parser and the framework's messages: 52 to 33 us. uvloop is left, and the kernel: a server in
  another language would be what is next.
"""


def measure(place: Place, candidates: Sequence[int] = CANDIDATES, seconds: int = SECONDS) -> dict[str, Any]:
    """CPU milliseconds a request by number of candidates, kind of states and stage; raises Srp4ctrError without py-spy."""
    found: dict[str, Any] = {str(count): {} for count in candidates}
    for states, near_cache_users in KINDS:
        with place.service(near_cache_users) as service:
            for count in candidates:
                found[str(count)][states] = _stages(place, service, count, seconds)
    return found


def _stages(place: Place, service: Service, candidates: int, seconds: int) -> dict[str, float]:
    subject = place.workload.subject
    requests = subject.requests(service.url, [candidates] * len(subject.users))
    count = place.scaled(REQUESTS * 500 // max(candidates, 500), 50)

    def ask() -> None:
        checked(closed_loop(service.url, requests, connections=CONNECTIONS, count=count), candidates)

    ask()
    costs = []
    for _ in range(ROUNDS):
        before = service.tree.cpu_seconds()
        ask()
        costs.append(1000 * (service.tree.cpu_seconds() - before) / count)
    with tempfile.TemporaryDirectory(prefix="srp4ctr-stages-") as folder:
        path = Path(folder) / "stacks.txt"
        # Where py-spy has to wait for a core of its own, a service that it had paused would wait with it.
        options = ("--format", "raw", "--threads", "--nonblocking")
        spy(service.tree.root.pid, path, place.scaled(seconds, 2), ask, *options)
        looks = by_stage(path.read_text().splitlines())
    cpu = min(costs)
    return {stage: cpu * looks[stage] / looks.total() for stage in STAGES} | {ALL: cpu}


def by_stage(stacks: Iterable[str]) -> Counter[str]:
    """Looks at the main thread by stage, of stacks as py-spy writes them: frames from the outermost on, and how often."""
    looks: Counter[str] = Counter()
    for line in stacks:
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        # The others wait, which py-spy takes for work.
        if "MainThread" in frames[0]:
            looks[_stage(frames)] += int(number)
    return looks


def _stage(frames: Sequence[str]) -> str:
    for frame in reversed(frames):
        for stage, (_, marks) in STAGES.items():
            if any(mark in frame for mark in marks):
                return stage
    return AROUND


def page(content: Mapping[str, Any]) -> str:
    """Markdown."""
    parts = [
        INTRODUCTION.rstrip("\n"),
        f"- date: {content['date']}\n- model: {content['model']}\n- machine: {content['machine']}",
        *(
            f"## {int(count):,} candidates\n\n{table(kinds)}"
            for count, kinds in content["candidates"].items()
        ),
        TRIED,
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def table(kinds: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each stage, with its share of all."""
    near, reading = kinds["near"], kinds["redis"]
    lines = ["| | near cache, ms | of all | Redis read, ms | of all |", "|---|---:|---:|---:|---:|"]
    for stage, title in [*((stage, title) for stage, (title, _) in STAGES.items()), (ALL, "all")]:
        cells = [f"{one[stage]:.3f} | {100 * one[stage] / one[ALL]:.0f} %" for one in (near, reading)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write where that is wanted."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.stages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an eighth of everything, and rough")
    parser.add_argument("--out", type=Path, help="folder for cpu-by-stage.md and its JSON (default: none)")
    arguments = parser.parse_args(argv)
    with Place.open(Workload.active(), quick=arguments.quick) as place:
        found = measure(place)
        content = {
            "benchmark": "cpu-by-stage",
            "date": datetime.now(UTC).date().isoformat(),
            "model": place.workload.subject.version,
            "machine": "; ".join([machine(), *place.notes]),
            "looks_a_second": LOOKS_A_SECOND,
            "seconds": place.scaled(SECONDS, 2),
            "candidates": found,
        }
    for count, kinds in found.items():
        print(f"{int(count):,} candidates\n\n{table(kinds)}\n")
    if arguments.out is not None:
        (arguments.out / "cpu-by-stage.json").write_text(json.dumps(content, indent=1) + "\n")
        (arguments.out / "cpu-by-stage.md").write_text(page(content))
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("stages", main))
