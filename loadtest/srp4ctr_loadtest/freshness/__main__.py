"""`python -m srp4ctr_loadtest.freshness`: how soon an event is in the scores, and what keeping states fresh costs.

Reads the active version's bundle and run. Writes everything else below var/freshness, with a Redis of its own there that
keeps an append-only file as a deployment does, and with --out the results as JSON. Measures, in this order: publishing the
version; event to fresh score; bytes a user; rollback; publishing many users with histories of full length. Prints a table
for people, then one JSON line.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_loadtest.cores import on_core
from srp4ctr_loadtest.freshness import events, full_length, rollback, sizes
from srp4ctr_loadtest.freshness.publishing import PublishRate, publish
from srp4ctr_loadtest.freshness.report import AUC_BY_DELAY, FAULTS, Results, read_part
from srp4ctr_loadtest.freshness.workplace import Cores, Workplace
from srp4ctr_loadtest.peers.machine import machine
from srp4ctr_loadtest.subject import Subject

PARTS = ("events", "bytes", "rollback", "publish")
COMMAND_SHARE = 4
"""Of so many rollbacks by the store, one more is by the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = _parser().parse_args(argv)
    chaos = read_part(arguments.chaos, arguments.out, "chaos", *FAULTS)
    delays = read_part(arguments.delays, arguments.out, "delays", AUC_BY_DELAY)
    settings = read_settings(StoreSettings)
    name = arguments.version or Subject.active().version
    bundle = find_bundle(name, settings.bundles_dir)
    run = arguments.run or settings.runs_dir / bundle.manifest.name
    cores = Cores.available()
    with Workplace.open(settings.var_dir / "freshness", cores) as workplace, on_core(cores.others):
        results = _measure(workplace, workplace.take_in(bundle.folder, run), name, arguments)
    content = results.as_json(chaos, delays)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    print(results.lines())
    print(json.dumps({"benchmark": "freshness"} | content))
    return 0


def _measure(workplace: Workplace, run: Path, name: str, arguments: argparse.Namespace) -> Results:
    parts = arguments.only or PARTS
    about = _about(workplace, name)
    _say(f"publishing {name}")
    real_mix = publish(workplace, name, run)
    workplace.command("activate", name, "--no-gate")
    subject = workplace.subject(name)
    fresh = held = back = full = None
    if "events" in parts:
        _say("events beside requests")
        arrivals = events.Arrivals(arguments.events_per_s, arguments.seconds, arguments.samples_per_s)
        fresh = events.measure(workplace, subject, arrivals, arguments.candidates, arguments.requests)
    if "bytes" in parts:
        _say("bytes a user")
        held = sizes.measure(workplace, subject)
    if "rollback" in parts:
        _say("rollback")
        times = arguments.rollbacks
        back = rollback.measure(workplace, subject, run, times, max(1, times // COMMAND_SHARE))
    if "publish" in parts:
        full = _full_length(workplace, arguments)
    given = (
        "events_per_s",
        "seconds",
        "samples_per_s",
        "candidates",
        "requests",
        "rollbacks",
        "users",
        "max_events",
    )
    chosen = {one: getattr(arguments, one) for one in given} | {"load_share": events.LOAD_SHARE}
    return Results(about, chosen, real_mix, fresh, held, back, full)


def _full_length(workplace: Workplace, arguments: argparse.Namespace) -> PublishRate:
    # Its memory is for the many.
    workplace.client.flushall()
    _say(f"a model of histories of {arguments.max_events} events")
    few = full_length.Few()
    version, config, run = full_length.train(workplace, few, arguments.max_events)
    _say(f"{arguments.users:,} users with such histories")
    many = full_length.multiply(workplace, config, run, arguments.users)
    _say("publishing them")
    return publish(workplace, version, many, histories=not arguments.no_histories)


def _about(workplace: Workplace, name: str) -> dict[str, str]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": name,
        "machine": f"{machine()}; {workplace.cores}",
        "redis": workplace.redis_says(),
        "onnxruntime": version_of("onnxruntime"),
    }


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_loadtest.freshness", description=__doc__)
    parser.add_argument("--version", help="a version below var/bundles (default: the active one)")
    parser.add_argument("--run", type=Path, help="the run's folder (default: var/runs/<name in the bundle>)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts alone (default: all)")
    parser.add_argument("--events-per-s", type=float, default=200, help="(default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=120, help="events come for so long (default: %(default)s)"
    )
    parser.add_argument(
        "--samples-per-s", type=float, default=5, help="events that are timed (default: %(default)s)"
    )
    parser.add_argument(
        "--candidates",
        type=int,
        default=events.CANDIDATES,
        help="of a request beside them (default: %(default)s)",
    )
    parser.add_argument(
        "--requests", type=int, default=1500, help="a closed loop's round (default: %(default)s)"
    )
    parser.add_argument("--rollbacks", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument(
        "--users", type=int, default=40_000, help="users with full histories, at least (default: %(default)s)"
    )
    parser.add_argument(
        "--max-events", type=int, default=100, help="of such a history (default: %(default)s)"
    )
    parser.add_argument(
        "--no-histories", action="store_true", help="publish those users' states without their raw histories"
    )
    parser.add_argument(
        "--chaos", type=Path, metavar="FILE", help="JSON of srp4ctr_loadtest.chaos, for its counts"
    )
    parser.add_argument(
        "--delays", type=Path, metavar="FILE", help="JSON of srp4ctr_offline.study.delays, for AUC by delay"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the results there; what --chaos and --delays would give and do not is kept from there (default: nowhere)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(exit_code("freshness", main))
