"""`python -m srp4ctr_offline.study.variants`: CPU and AUC of ways to run the scorer, beside the way that is served.

CPU: all take turns in one process, in a new order each round, on the same states and candidates; what counts is the median over
rounds of a round's ratio to the default, so that what else a machine does meets all alike. AUC: on the test rows, paired.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.metrics import Quality, evaluate_rows
from srp4ctr.runtime.plain_scorer import plain_path
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.config import RunConfig, load_config
from srp4ctr_offline.prepared import TEST, TRAIN, Prepared
from srp4ctr_offline.served import Question, questions
from srp4ctr_offline.study.delays import exported
from srp4ctr_offline.study.plain_graph import write_plain
from srp4ctr_offline.study.scorer_variants import DEFAULT, Variant, variants
from srp4ctr_offline.study.variants_page import page, table

CANDIDATES = (50, 100, 500, 2000)
ROUNDS = 21
TURN_MS = 60.0
"""CPU of the default in one round; the others are run as often."""
CALIBRATION_ROWS = 512
SAMPLE = 100
"""Users whose states are scored while CPU is measured."""
OUT = Path("docs/benchmarks")


@dataclass(frozen=True, eq=False)
class Measured:
    """A variant: CPU milliseconds of a run by candidates and their ratio to the default's, and its probabilities' quality."""

    variant: Variant
    cpu_ms: Mapping[int, float]
    ratio: Mapping[int, float]
    quality: Quality
    difference: Mapping[str, Any]
    max_abs: float

    def as_dict(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "variant": self.variant.name,
            "what": self.variant.what,
            "load_cpu_ms": round(self.variant.load_ms, 1),
            "cpu_ms": {str(count): round(value, 4) for count, value in self.cpu_ms.items()},
            "ratio": {str(count): round(value, 3) for count, value in self.ratio.items()},
            "auc": self.quality.as_dict()["auc"],
            "auc_minus_default": self.difference,
            "probability_max_abs": self.max_abs,
        }


def measure(
    bundle: Bundle,
    prepared: Prepared,
    plain: Path,
    candidates: Sequence[int] = CANDIDATES,
    rounds: int = ROUNDS,
) -> list[Measured]:
    """All variants of a bundle's scorer; `prepared` is of its run, and `plain` its graph that folds nothing."""
    generator = np.random.default_rng(0)
    train = generator.choice(prepared.rows.of(TRAIN), CALIBRATION_ROWS, replace=False)
    calibration = list(questions(bundle, prepared, np.sort(train)))
    rows = prepared.rows.of(TEST)
    with tempfile.TemporaryDirectory(prefix="srp4ctr-variants-") as folder:
        ways = list(variants(bundle, plain, calibration, Path(folder)))
        # States of training rows will do: what is in them changes no operation.
        times = {count: _times(bundle, ways, calibration[:SAMPLE], count, rounds) for count in candidates}
        probability = {way.name: np.empty(len(rows)) for way in ways}
        for one in questions(bundle, prepared, rows, progress=True):
            for way in ways:
                probability[way.name][one.places] = way.score(one.state, one.item_rows, one.contexts)
    label, user = prepared.rows.label[rows], prepared.rows.user[rows]
    quality = {way.name: evaluate_rows(label, user, probability[way.name]) for way in ways}
    return [
        Measured(
            way,
            {count: found[way.name][0] for count, found in times.items()},
            {count: found[way.name][1] for count, found in times.items()},
            quality[way.name],
            quality[way.name].difference(quality[DEFAULT])["auc"],
            float(np.abs(probability[way.name] - probability[DEFAULT]).max()),
        )
        for way in ways
    ]


def _times(
    bundle: Bundle, ways: Sequence[Variant], states: Sequence[Question], candidates: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Medians over the rounds of CPU milliseconds a run and of the ratio to the default's, by variant."""
    generator = np.random.default_rng(candidates)
    rows = generator.integers(len(bundle.items.vectors), size=(len(states), candidates), dtype=np.int32)
    asked = [(one.state, own, one.contexts[:1]) for one, own in zip(states, rows, strict=True)]
    first = ways[0]
    assert first.name == DEFAULT
    for way in ways:
        _cpu_ms(way, asked[:3], 3)
    turns = max(3, round(TURN_MS / _cpu_ms(first, asked, 20)))
    costs: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for place in generator.permutation(len(ways)).tolist():
            costs[ways[place].name].append(_cpu_ms(ways[place], asked, turns))
    by_name: dict[str, NDArray[np.float64]] = {name: np.array(one) for name, one in costs.items()}
    return {
        name: (float(np.median(one)), float(np.median(one / by_name[DEFAULT])))
        for name, one in by_name.items()
    }


def _cpu_ms(way: Variant, asked: Sequence[tuple[Any, Any, Any]], turns: int) -> float:
    began = time.process_time()
    for turn in range(turns):
        way.score(*asked[turn % len(asked)])
    return 1000 * (time.process_time() - began) / turns


def of_run(config: RunConfig, settings: StoreSettings, rounds: int) -> dict[str, Any]:
    """The variants of what a run exported last, for JSON; writes its plain graph where that is not there."""
    folder = settings.runs_dir / config.name
    bundle = find_bundle(exported(folder), settings.bundles_dir)
    plain = plain_path(settings.var_dir, bundle.manifest)
    if not plain.exists():
        write_plain(config, folder, plain)
    prepared = Prepared.load(folder / "prepared")
    found = measure(bundle, prepared, plain, rounds=rounds)
    return {
        "model": bundle.manifest.version,
        "state": bundle.manifest.state.kind,
        "test_rows": len(prepared.rows.of(TEST)),
        "variants": [one.as_dict() for one in found],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write where that is wanted."""
    parser = argparse.ArgumentParser(
        prog="python -m srp4ctr_offline.study.variants",
        description="Reads runs' prepared/, finetune/ and export/, and the bundles that they were exported as. Writes "
        "scorer-variants.md and .json with --out: CPU of ways to run the scorer, and what they cost in AUC.",
    )
    parser.add_argument("configs", type=Path, nargs="+", help="the runs' TOML files")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of timing (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, help=f"folder for the page and its JSON, such as {OUT} (default: none)"
    )
    arguments = parser.parse_args(argv)
    settings = read_settings(StoreSettings)
    models = [of_run(load_config(path), settings, arguments.rounds) for path in arguments.configs]
    content = {
        "benchmark": "scorer-variants",
        "date": datetime.now(UTC).date().isoformat(),
        "rounds": arguments.rounds,
        "models": models,
    }
    for model in models:
        print(f"{model['model']}, {model['state']}\n\n{table(model['variants'])}\n")
    if arguments.out is not None:
        (arguments.out / "scorer-variants.json").write_text(json.dumps(content, indent=1) + "\n")
        (arguments.out / "scorer-variants.md").write_text(page(content))
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("variants", main))
