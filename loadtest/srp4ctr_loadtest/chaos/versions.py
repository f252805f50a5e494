"""The versions that are published and activated in turns: small models of one generated data set, trained once and kept."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl

from srp4ctr.contract.errors import BundleError, ServiceNotReady
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.serving import COMMAND
from srp4ctr_loadtest.chaos.place import environment

NAME = "chaos"
VERSIONS = "versions.json"
DATA_SET = "data"
DATA = ("--users", "400", "--items", "120", "--rows-per-user", "25", "--seed", "5", "--ctr", "0.25")
CONFIG = """\
name = "{name}"
seed = {seed}
threads = 1
tables = {{ folder = "{data}" }}
model = {{ width = 16, heads = 2, {state}, cross_layers = 2, tower = [16] }}
pretrain = {{ epochs = 3, batch_size = 16, learning_rate = 5e-3 }}
finetune = {{ epochs = 4, batch_size = 16, learning_rate = 5e-3 }}

[schema]
timestamp = "timestamp"
item_title = "title"
max_events = 12
item_attributes = [
    {{ name = "category", type = "categorical" }},
    {{ name = "brand", type = "categorical" }},
    {{ name = "tags", type = "multi_valued", max_values = 3 }},
    {{ name = "price", type = "numeric", buckets = 6 }},
]
behaviour_features = [
    {{ name = "event_type", type = "categorical" }},
    {{ name = "dwell_seconds", type = "numeric", buckets = 5 }},
]
user_features = [
    {{ name = "age_group", type = "categorical" }},
    {{ name = "region", type = "categorical" }},
]
context_features = [
    {{ name = "hour", type = "categorical" }},
    {{ name = "device", type = "categorical" }},
]

[split]
rule = "column"
"""
TOKENS = "layers = 1, query_tokens = 4, recent_events = 4"
EXTRA = tuple(f"extra-{number}" for number in range(5))
"""Items that training knew nothing of, which `srp4ctr items` adds, now with the attributes of some and now with those of others."""
TABLES = 2
STATES = (TOKENS, TOKENS, 'layers = 2, state = "sequence", state_dtype = "int8"')
"""Of the versions: two of one kind that only their weights tell apart, and one of the other kind."""


@dataclass(frozen=True)
class Trained:
    """Bundles by version, and the run's folder of each, below a folder that is a SRP4CTR_VAR_DIR of its own."""

    folder: Path
    bundles: Mapping[str, Bundle]
    runs: Mapping[str, Path]

    @classmethod
    def below(cls, folder: Path) -> Self:
        """What is there, or is made now: a minute or two of CPU. Raises ServiceNotReady where a command fails."""
        try:
            return cls._there(folder)
        except (FileNotFoundError, BundleError):
            _train(folder)
        return cls._there(folder)

    @classmethod
    def _there(cls, folder: Path) -> Self:
        runs: dict[str, str] = json.loads((folder / VERSIONS).read_bytes())
        bundles = {version: find_bundle(version, folder / "bundles") for version in runs}
        return cls(folder, bundles, {version: folder / run for version, run in runs.items()})


def extra_tables(folder: Path) -> list[Path]:
    """Tables of the extra items, made of the first items of the data set in that folder."""
    items = pl.read_parquet(folder / DATA_SET / "items.parquet")
    tables = [folder / f"extra-{number}.parquet" for number in range(TABLES)]
    for number, table in enumerate(tables):
        others = items.slice(number * len(EXTRA), len(EXTRA))
        others.with_columns(pl.Series("item_id", EXTRA)).write_parquet(table)
    return tables


def _train(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.absolute()
    data, run = folder / DATA_SET, Path("runs", NAME)
    _run(folder, ["data", "synthetic", *DATA, "--out", str(data)])
    runs = {}
    for place, state in enumerate(STATES):
        config = folder / f"{NAME}-{place}.toml"
        config.write_text(CONFIG.format(name=NAME, seed=place, data=data, state=state))
        # The schema is the same in all of them, and so is what is prepared.
        for job in ("prepare", "pretrain", "finetune", "export")[place > 0 :]:
            _run(folder, [job, str(config)])
        exported = json.loads((folder / run / "export" / "metrics.json").read_bytes())
        runs[str(exported["version"])] = str(run)
    (folder / VERSIONS).write_text(json.dumps(runs, indent=1) + "\n")


def _run(folder: Path, arguments: Sequence[str]) -> None:
    print(f"== srp4ctr {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(VAR_DIR=folder),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ServiceNotReady(f"srp4ctr {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")
