"""`make study`: train what is not there yet, as many cells beside each other as there are cores, then report."""

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.study.measured import prepared_of
from srp4ctr_offline.study.plan import Cell, StudyPlan, load_plan
from srp4ctr_offline.study.report import write_report
from srp4ctr_offline.study.results import Results


def train_missing(path: Path, cells: Sequence[Cell], results: Results, jobs: int) -> int:
    """Train the cells that have no record; gives how many failed."""
    done = results.records()
    missing = [cell for cell in cells if cell.key not in done]
    # Before the cells' processes begin, which share what is prepared.
    for cell in {cell.data_key: cell for cell in missing}.values():
        prepared_of(cell, results)
    failed = 0
    lock = threading.Lock()

    def run(cell: Cell, condition: str | None) -> bool:
        output = _in_process(path, cell, results, condition)
        if output is not None and condition is None:
            with lock:
                results.append(json.loads(output))
        return output is not None

    # Who learns from a teacher waits for all teachers, and conditions are of trained models.
    waves: list[list[tuple[Cell, str | None]]] = [
        [(cell, None) for cell in missing if cell.teacher is None],
        [(cell, None) for cell in missing if cell.teacher is not None],
        [
            (cell, condition)
            for cell in cells
            if cell.has_conditions
            for condition in CONDITIONS
            if not results.prediction_path(f"{cell.key}.{condition}").exists()
        ],
    ]
    with tqdm(total=sum(map(len, waves)), desc="study", unit="step") as bar:
        for wave in waves:
            with ThreadPoolExecutor(jobs) as pool:
                waiting = {pool.submit(run, cell, condition): (cell, condition) for cell, condition in wave}
                for future in as_completed(waiting):
                    cell, condition = waiting[future]
                    if not future.result():
                        failed += 1
                        tqdm.write(f"{cell.key} failed; its output is in {_log(results, cell, condition)}")
                    bar.set_postfix_str(cell.key)
                    bar.update()
    return failed


def _in_process(path: Path, cell: Cell, results: Results, condition: str | None) -> str | None:
    """The last line of what the cell's process prints; None where it failed."""
    log = _log(results, cell, condition)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "srp4ctr_offline.study.cell", str(path), str(results.folder), cell.key]
    command += [] if condition is None else [condition]
    # One thread a cell: several cells on as many cores finish sooner than one cell on all of them.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "20000"}
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    return None if done.returncode else (log.read_text().splitlines() or [""])[-1]


def _log(results: Results, cell: Cell, condition: str | None) -> Path:
    name = cell.key if condition is None else f"{cell.key}.{condition}"
    return results.folder / "logs" / f"{name}.txt"


def chosen(plan: StudyPlan, only: Sequence[str]) -> list[Cell]:
    """The plan's cells, or those whose protocol or `protocol.model` is one of `only`, with their teachers.

    Raises ConfigError for a name that the plan lacks.
    """
    cells = list(plan.cells())
    names = {cell.key: {cell.protocol, f"{cell.protocol}.{cell.model}"} for cell in cells}
    unknown = sorted(set(only).difference(*names.values()))
    if unknown:
        raise ConfigError(
            f"--only: the plan has no {', '.join(unknown)}; name a protocol ({', '.join(plan.protocols)}) or "
            "protocol.model"
        )
    wanted = [cell for cell in cells if not only or names[cell.key] & set(only)]
    keys = {one.key for cell in wanted for one in (cell, cell.teacher) if one is not None}
    return [cell for cell in cells if cell.key in keys]


def add_options(parser: argparse.ArgumentParser, jobs: int) -> None:
    """Where a plan's cells and their report are, and how many are trained at a time."""
    parser.add_argument("--results", type=Path, help="folder (default: study below SRP4CTR_VAR_DIR, or var)")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks"), help="folder (%(default)s)")
    parser.add_argument("--jobs", type=int, default=jobs, help="cells at a time (%(default)s)")
    parser.add_argument("--no-training", action="store_true", help="report what is there")


def results_of(arguments: argparse.Namespace) -> Results:
    """The folder that the options name."""
    return Results(arguments.results or read_settings(StoreSettings).var_dir / "study")


def main(argv: Sequence[str]) -> int:
    """Run or continue a study."""
    parser = argparse.ArgumentParser(
        prog="make study",
        description="Reads a study plan and the tables that its configurations name. Appends each finished cell "
        "to RESULTS/results.jsonl, so that a study that was cut off goes on where it stopped, and writes the "
        "report: quality.json, quality.md, quality.html.",
    )
    parser.add_argument("plan", type=Path, nargs="?", default=Path("configs/study.toml"))
    add_options(parser, jobs=os.cpu_count() or 1)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[],
        metavar="PROTOCOL[.MODEL]",
        help="these alone, cells and parts of the report",
    )
    arguments = parser.parse_args(argv)
    plan = load_plan(arguments.plan)
    cells = chosen(plan, arguments.only)
    results = results_of(arguments)
    failed = 0
    if not arguments.no_training:
        failed = train_missing(arguments.plan, cells, results, arguments.jobs)
    page = write_report(plan, results, arguments.report, {cell.protocol for cell in cells})
    print(f"report written to {page}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code("study", lambda: main(sys.argv[1:])))
