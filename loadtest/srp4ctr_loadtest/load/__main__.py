"""`make loadtest`: how many requests a second a service takes within a latency budget, every answer checked.

First a closed loop: locust's users ask like a ranking system's, with few popular users and items, candidate counts of a
distribution, users whom nobody knows, and events on what was shown; or they replay a log. Then open loops at constant rates,
whose latencies begin when requests were due, and at last a search for the highest rate at which the p99 keeps the budget.

Reads the service at --url; its active version's users, items and features come from Redis and var/bundles by the settings of
`srp4ctr`, or from --population. Without --url it serves the active version itself, beside a copy of Redis below var/loadtest.
Writes load.json, load.html and pictures into --out, and with --url the users' events into the service's Redis, unless
--events-share is 0. Prints a table, then one JSON line. Exit code 1 where an answer was wrong or, but for overload in the open
loops, missing.
"""

import argparse
import contextlib
import itertools
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TypeVar

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_loadtest.load import report
from srp4ctr_loadtest.load.alone import questions_alone
from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.closed_loop import closed_loop
from srp4ctr_loadtest.load.open_loop import OpenLoop, Pool, open_loop
from srp4ctr_loadtest.load.place import Target, own_service
from srp4ctr_loadtest.load.population import Population
from srp4ctr_loadtest.load.replay import read_questions
from srp4ctr_loadtest.load.results import Results, open_name
from srp4ctr_loadtest.load.routes import by_routes
from srp4ctr_loadtest.load.saturation import search
from srp4ctr_loadtest.load.server import Watch
from srp4ctr_loadtest.load.settings import LoadSettings, add_options, read_load_settings
from srp4ctr_loadtest.load.workload import Question, Workload
from srp4ctr_loadtest.peers.machine import machine

WARM_UP_S = 1.0
OPEN_SEED = 0
"""Of the open loops' workload; locust's users count from 1."""

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, and write what was found."""
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    wanted: Path | None = arguments.pop("write_population")
    settings = read_load_settings(arguments)
    store = read_settings(StoreSettings)
    if wanted is not None:
        Population.active(store).write(wanted)
        print(wanted)
        return 0
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {settings.out} cannot be made a folder: {error.strerror}") from error
    population = None
    if settings.replay is None:
        population = (
            Population.active(store) if settings.population is None else Population.read(settings.population)
        )
    with _service(settings, store) as own:
        results = _measure(settings, population, own)
    report.write(results, settings.out)
    print(results.lines())
    print(f"{settings.out / 'load.html'}")
    print(results.json_line())
    return 1 if results.failures() else 0


@contextlib.contextmanager
def _service(settings: LoadSettings, store: StoreSettings) -> Iterator[Target]:
    if settings.url is not None:
        cores = len(os.sched_getaffinity(0))
        url = settings.url.rstrip("/")
        yield Target(url, None, f"{url}; the loader may use {cores} cores of its machine")
        return
    with own_service(store) as own:
        yield own


def _measure(settings: LoadSettings, population: Population | None, own: Target) -> Results:
    headers = settings.headers()
    alone = questions_alone(population, settings)
    questions = _questions(settings, population, alone)
    requests = by_routes(questions, settings.rank_share, settings.batch_share, settings.seed)
    pool = Pool.of(own.url, headers, requests, settings.timeout_s, alone)
    watch = Watch(settings.metrics_url or f"{own.url}/metrics", headers, own.pid)
    results = Results(_about(settings, population, own, pool), settings, watch.use)

    def part(name: str, work: Callable[[], T]) -> T:
        print(f"{name} ...", file=sys.stderr, flush=True)
        began = watch.now_s()
        found = work()
        results.spans[name] = (round(began, 2), round(watch.now_s(), 2))
        return found

    def ask(rate: float, seconds: float) -> OpenLoop:
        return open_loop(pool, connections=settings.connections, rate=rate, seconds=seconds)

    with watch.going_on(), tempfile.TemporaryDirectory() as folder:
        if settings.seconds:
            results.closed = part("closed", lambda: _closed(settings, population, own.url, Path(folder)))
        if settings.open_rates or settings.search_s:
            ask(settings.search_from, WARM_UP_S)
        for rate in settings.open_rates:
            results.opened.append(part(open_name(rate), partial(ask, rate, settings.rate_s)))
        if settings.search_s:
            results.saturation = part(
                "saturation",
                lambda: search(
                    ask,
                    settings.budget_ms,
                    settings.search_s,
                    settings.search_from,
                    settings.search_to,
                    settings.confirm_s,
                ),
            )
    return results


def _closed(settings: LoadSettings, population: Population | None, url: str, folder: Path) -> Answers:
    path = None
    if population is not None:
        path = folder / "population.json"
        population.write(path)
    return closed_loop(url, settings, path, folder)


def _questions(
    settings: LoadSettings, population: Population | None, alone: Sequence[Question]
) -> Iterator[Question]:
    if population is None:
        assert settings.replay is not None
        return iter(read_questions(settings.replay, settings.deadline_ms))
    workload = Workload(population, settings, OPEN_SEED, alone)
    return (workload.question() for _ in itertools.count())


def _about(settings: LoadSettings, population: Population | None, own: Target, pool: Pool) -> dict[str, str]:
    model = pool.versions.model
    assert model is not None
    if population is None:
        asked = f"the requests of {settings.replay}"
    else:
        asked = (
            f"{len(population.users):,} users (Zipf {settings.user_skew:g}) and {settings.cold_share:.0%} whom nobody knows; "
            f"{len(population.items):,} items (Zipf {settings.item_skew:g}); {_candidates(settings)}"
        )
    users = len({question.user_id for one in pool.asked for question in one.questions})
    counts = Counter(one.route for one in pool.asked)
    requests = ", ".join(f"{counts[route]:,} POST {route}" for route in sorted(counts))
    asked_open = f"{requests}, for {users:,} different users, over and over"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "model": f"{model['version']}, {model['state']} states, {model['items']:,} items",
        "machine": machine() if own.pid is not None else f"{machine()}; the loader's",
        "service": own.where,
        "asked": asked,
        "asked by open loops": asked_open,
        "versions": f"locust {version_of('locust')}",
    }


def _candidates(settings: LoadSettings) -> str:
    if "-" not in settings.candidates:
        return f"{settings.candidates} candidates"
    return f"{settings.candidates} candidates, log-normal, median {settings.candidates_median:g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_loadtest.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--write-population",
        type=Path,
        metavar="FILE",
        help="only write the active version's users, items and feature values there, for --population elsewhere",
    )
    add_options(parser)
    return parser


if __name__ == "__main__":
    # So that the service and Redis that were started are ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(exit_code("load", main))
