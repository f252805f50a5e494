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
from typing import Any

from tqdm import tqdm

from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.study.plan import Cell, StudyPlan, load_plan
from srp4ctr_offline.study.report import write_report
from srp4ctr_offline.study.results import Results


def train_missing(path: Path, cells: Sequence[Cell], results: Results, jobs: int) -> int:
    """Train the cells that have no record; gives how many failed."""
    done = results.records()
    missing = [cell for cell in cells if cell.key not in done]
    for folder, cell in {results.prepared_folder(cell): cell for cell in missing}.items():
        if not (folder / "report.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            prepare(cell.config).save(folder)
    failed = 0
    lock = threading.Lock()

    def run(cell: Cell) -> bool:
        record = _in_process(path, cell, results)
        if record is not None:
            with lock:
                results.append(record)
        return record is not None

    with (
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(cells), initial=len(cells) - len(missing), desc="study", unit="cell") as bar,
    ):
        waiting = {pool.submit(run, cell): cell for cell in missing}
        for future in as_completed(waiting):
            cell = waiting[future]
            if not future.result():
                failed += 1
                tqdm.write(f"{cell.key} failed; its output is in {_log(results, cell)}")
            bar.set_postfix_str(cell.key)
            bar.update()
    return failed


def _in_process(path: Path, cell: Cell, results: Results) -> dict[str, Any] | None:
    log = _log(results, cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "srp4ctr_offline.study.cell", str(path), str(results.folder), cell.key]
    # One thread a cell: several cells on as many cores finish sooner than one cell on all of them.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "20000"}
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        return None
    record: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return record


def _log(results: Results, cell: Cell) -> Path:
    return results.folder / "logs" / f"{cell.key}.txt"


def chosen(plan: StudyPlan, only: Sequence[str]) -> list[Cell]:
    """The plan's cells, or those whose `protocol.model` begins with one of `only`."""
    return [
        cell
        for cell in plan.cells()
        if not only or any(f"{cell.protocol}.{cell.model}.".startswith(f"{name}.") for name in only)
    ]


def main(argv: Sequence[str]) -> int:
    """Run or continue a study."""
    parser = argparse.ArgumentParser(
        prog="make study",
        description="Reads a study plan and the tables that its configurations name. Appends each finished cell "
        "to RESULTS/results.jsonl, so that a study that was cut off goes on where it stopped, and writes the "
        "report: quality.json, quality.md, quality.html.",
    )
    parser.add_argument("plan", type=Path, nargs="?", default=Path("configs/study.toml"))
    parser.add_argument("--results", type=Path, help="folder (default: study below SRP4CTR_VAR_DIR, or var)")
    parser.add_argument("--report", type=Path, default=Path("docs/benchmarks"), help="folder (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time (%(default)s)")
    parser.add_argument("--only", nargs="*", default=[], metavar="PROTOCOL[.MODEL]", help="these cells alone")
    parser.add_argument("--no-training", action="store_true", help="report what is there")
    arguments = parser.parse_args(argv)
    plan = load_plan(arguments.plan)
    results = Results(arguments.results or read_settings(StoreSettings).var_dir / "study")
    failed = 0
    if not arguments.no_training:
        failed = train_missing(arguments.plan, chosen(plan, arguments.only), results, arguments.jobs)
    print(f"report written to {write_report(plan, results, arguments.report)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
