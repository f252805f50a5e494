"""`make chaos`: kill -9 of everything at random moments under load, while every answer is checked against an offline oracle.

Real processes by the commands that a person types: a redis-server, `srp4ctr serve`, two `srp4ctr refresh`, and `srp4ctr
publish`, `activate`, `rollback`, `versions --prune` and `items` of small versions in turns. Users are scored and act; each event is sent until it is acknowledged.
Afterwards every acknowledged event must be there once, in its user's history and in the user's states. Works below
var/chaos, where the versions stay that the first run trains. Prints a table for people, then one JSON line; exit code 1
where an answer was wrong or mixed, an event was lost or counted twice, a job that was cut off did not complete, something failed or
ended without being killed, fewer than half of the answers were in full, or one was not when all was calm again.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr.contract.events import RawEvent
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_loadtest.chaos.acts import Acts
from srp4ctr_loadtest.chaos.aftermath import examine, snapshot, wait_for_workers
from srp4ctr_loadtest.chaos.catalogues import Catalogues
from srp4ctr_loadtest.chaos.jobs import Jobs
from srp4ctr_loadtest.chaos.kills import TARGETS, Killer
from srp4ctr_loadtest.chaos.oracle import Oracle
from srp4ctr_loadtest.chaos.place import Place
from srp4ctr_loadtest.chaos.processes import System
from srp4ctr_loadtest.chaos.report import Answers, Report
from srp4ctr_loadtest.chaos.traffic import Traffic
from srp4ctr_loadtest.chaos.turns import Turns
from srp4ctr_loadtest.chaos.versions import Trained, extra_tables

NEW_USERS = 20
"""Of whom no snapshot knows."""
KILLS = 200


async def run(trained: Trained, place: Place, arguments: argparse.Namespace) -> Report:
    """One run; raises ServiceNotReady where something does not become ready in minutes."""
    began = time.monotonic()
    random = np.random.default_rng(arguments.seed)
    versions = list(trained.bundles)
    async with System.running(place, arguments.appendfsync, arguments.workers, random) as system:
        await system.redis_answers(place)
        turns = Turns(system.redis.absences)
        catalogues = Catalogues(trained.bundles, system.redis.absences)
        jobs = Jobs(place, trained, extra_tables(trained.folder), catalogues, turns)
        await jobs.set_up(versions)
        with place.client() as client:
            oracle = Oracle(trained.bundles, snapshot(client, place, versions), catalogues)
        await system.service_ready()
        items = trained.bundles[versions[0]].items.index.ids[1:]
        keep = place.settings.history_events
        new: dict[str, Sequence[RawEvent]] = {f"new-{number}": () for number in range(NEW_USERS)}
        histories = {**oracle.snapshot.histories, **new}
        traffic = Traffic(
            system.url,
            [Acts(user_id, keep, history) for user_id, history in histories.items()],
            [item.decode() for item in items.tolist()],
            turns,
            arguments.rate,
            random,
        )
        killer = Killer(system, jobs, random)
        async with asyncio.TaskGroup() as group:
            group.create_task(traffic.go_on())
            working = group.create_task(jobs.go_on(versions))
            await killer.kill(arguments.kills, arguments.only, arguments.gap)
            jobs.stop()
            await working
            traffic.stop()
        await system.redis_answers(place)
        await system.service_ready()
        with place.client() as client:
            wait_for_workers(client, place)
            aftermath = examine(client, place, oracle, traffic.acts, (jobs.active, jobs.previous))
        calm = await traffic.ask_about([one for one in traffic.acts if not one.idle])
        return Report(
            settings={
                name: getattr(arguments, name) for name in ("seed", "appendfsync", "workers", "rate", "gap")
            },
            kills={target: killer.killed[target] for target in arguments.only},
            answers=Answers.judged(traffic.observations, oracle, aftermath.lost_of),
            not_recovered=sum(not one.is_whole for one in calm),
            aftermath=aftermath,
            events={
                "sent": traffic.sent,
                "acknowledged": traffic.acknowledged,
                "late": traffic.tellings.late,
                "resent": traffic.tellings.again,
                "too_old": traffic.outcomes["too_old"],
            },
            wrong_outcomes=traffic.wrong_outcomes,
            forgotten=traffic.forgotten,
            jobs={
                "completed": jobs.completed,
                "reruns": jobs.reruns,
                "reruns_completed": jobs.reruns_completed,
            },
            job_failures=jobs.failures,
            ended=system.ended(),
            errors_by_type=traffic.errors,
            seconds=time.monotonic() - began,
        )


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_loadtest.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="(default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", choices=TARGETS, default=TARGETS, help="whom to kill (default: all)"
    )
    parser.add_argument(
        "--gap",
        type=float,
        default=2,
        help="seconds between two kills, on average; a job is killed when it runs (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: %(default)s)")
    parser.add_argument(
        "--appendfsync",
        choices=("always", "everysec", "no"),
        default="always",
        help="Redis's setting; with the others acknowledged events may be lost, and this measures how many (default: "
        "%(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="of the service (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=40, help="requests a second (default: %(default)s)")
    arguments = parser.parse_args()
    folder = read_settings(StoreSettings).var_dir / "chaos"
    trained = Trained.below(folder)
    with Place.below(folder) as place:
        try:
            report = asyncio.run(run(trained, place, arguments))
        except ExceptionGroup as errors:
            # Tasks end together; one of them is why.
            known = errors.subgroup(Srp4ctrError)
            raise (errors if known is None else known.exceptions[0]) from None
    print("\n".join(report.lines()))
    return 1 if report.failures() else 0


if __name__ == "__main__":
    # So that what was started is ended, too, however this process is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(exit_code("chaos", main))
