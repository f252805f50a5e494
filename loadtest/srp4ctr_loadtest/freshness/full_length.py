"""A run of many synthetic users, each with as many events as the model reads: what publishing is measured with.

Its model is of the default sizes and hardly trained, without pre-training and on a few users: how fast it computes does not depend on what it has
learnt. The many are copies of those of the few whose histories are long enough, under ids of their own. They have events
and no rows, so that vocabularies, which know training alone, are the same with them and without.
"""

import json
import math
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from srp4ctr.contract.errors import DataError
from srp4ctr_loadtest.freshness.workplace import Workplace

CONFIG = """\
name = "full-length"
seed = 1
threads = 1

[tables]
folder = "{folder}"

[schema]
order = "order"
timestamp = "timestamp"
label = "label"
max_events = {max_events}
item_attributes = [
    {{ name = "category", type = "categorical" }},
    {{ name = "brand", type = "categorical" }},
    {{ name = "tags", type = "multi_valued", max_values = 4 }},
    {{ name = "price", type = "numeric", buckets = 12 }},
]
behaviour_features = [
    {{ name = "event_type", type = "categorical" }},
    {{ name = "dwell_seconds", type = "numeric", buckets = 8 }},
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
column = "split"

[finetune]
epochs = 1
learning_rate = 3e-3
"""
_COPY = "number of the copy"


@dataclass(frozen=True)
class Few:
    """The generated users that the model is trained on."""

    users: int = 200
    items: int = 1000
    rows_per_user: int = 300
    ctr: float = 0.4


def train(workplace: Workplace, few: Few, max_events: int) -> tuple[str, Path, Path]:
    """Train and export a model whose histories have so many events; gives its version, configuration and run."""
    folder = workplace.folder / "full-length"
    data, config, run = folder / "few", folder / "few.toml", workplace.folder / "runs" / "few"
    folder.mkdir(parents=True)
    sizes = {
        "--users": few.users,
        "--items": few.items,
        "--rows-per-user": few.rows_per_user,
        "--ctr": few.ctr,
    }
    options = [str(word) for option in sizes.items() for word in option]
    workplace.command("data", "synthetic", "--out", str(data), *options)
    config.write_text(CONFIG.format(folder=data, max_events=max_events))
    for job in (["prepare"], ["finetune", "--from-scratch"], ["export"]):
        workplace.command(*job, str(config), "--run", str(run))
    version: str = json.loads((run / "export" / "metrics.json").read_bytes())["version"]
    return version, config, run


def multiply(workplace: Workplace, config: Path, run: Path, users: int) -> Path:
    """A run for the bundle of another one, with at least so many users more whose histories are full; gives its folder.

    Events and rows must be two files. Raises DataError where no user has a full history.
    """
    text = config.read_text()
    options = tomllib.loads(text)
    folder, many = workplace.folder / "many", workplace.folder / "runs" / "many"
    _copy_users(options, folder, users)
    theirs, ours = json.dumps(options["tables"]["folder"]), json.dumps(str(folder))
    assert text.count(theirs) == 1, text
    path = folder / "many.toml"
    path.write_text(text.replace(theirs, ours))
    workplace.command("prepare", str(path), "--run", str(many))
    # What `publish` takes for the configuration of the run.
    told = json.loads((run / "finetune" / "config.json").read_bytes())
    told["tables"]["folder"] = str(folder)
    (many / "finetune").mkdir()
    (many / "finetune" / "config.json").write_text(json.dumps(told))
    return many


def _copy_users(options: Mapping[str, Any], folder: Path, users: int) -> None:
    schema, keep = options["schema"], options["schema"]["max_events"]
    tables, user = Path(options["tables"]["folder"]), schema.get("user_id", "user_id")
    events = pl.scan_parquet(tables / "events.parquet")
    full = (
        events.filter(pl.len().over(user) >= keep)
        .sort(user, schema.get("order", "order"))
        .group_by(user, maintain_order=True)
        .tail(keep)
        .collect()
    )
    found = full[user].n_unique()
    if not found:
        raise DataError(f"{tables} has no user with {keep} events")
    copies = pl.LazyFrame({_COPY: range(math.ceil(users / found))})
    folder.mkdir(parents=True)
    for table in ("events", "users"):
        own = pl.scan_parquet(tables / f"{table}.parquet")
        what = full.lazy() if table == "events" else own.join(full.lazy().select(user).unique(), on=user)
        multiplied = (
            copies.join(what, how="cross")
            .with_columns(pl.format("{}-{}", user, _COPY).alias(user))
            .select(own.collect_schema().names())
        )
        pl.concat([own, multiplied]).sink_parquet(folder / f"{table}.parquet")
    for table in ("rows", "items"):
        shutil.copy(tables / f"{table}.parquet", folder)
