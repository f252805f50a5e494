"""`srp4ctr prepare`: canonical tables to vocabularies, codes and histories.

Vocabularies and quantile buckets are fitted on training rows, and on the events that belong to training. A row's
history is what its user did before it by `order`: where events and rows are one file, the rows before it, ties in the
order of the file; where they are two, the events whose order is less.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.manifest import sha256_file
from srp4ctr.contract.schema import FeatureSchema
from srp4ctr.contract.transforms import (
    BEHAVIOUR,
    CONTEXT,
    GROUPS,
    ITEM,
    ITEM_ID,
    USER,
    Boundaries,
    Transforms,
)
from srp4ctr.contract.vocabulary import UNKNOWN, Codes, Texts, Vocabulary
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import Catalogue
from srp4ctr_offline.columns import encode_frame, fit_features, numbers_of
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepared import SPLITS, TEST, Events, Ints, Prepared, Rows, Users
from srp4ctr_offline.rates import smoothed
from srp4ctr_offline.run import job_arguments
from srp4ctr_offline.source import EVENTS, ITEMS, ROW_ID, ROWS, TABLES, USERS, Source, labels
from srp4ctr_offline.timeline import Timeline, is_train, split_rows

# No feature can be called so.
_PLACE = "place among the ids"


def prepare(config: RunConfig) -> Prepared:
    """Read the tables of a run and encode them."""
    schema, source = config.features, Source.read(config)
    frames = source.frames
    timeline = Timeline.of(source)
    split = split_rows(config.split, source)
    train = is_train(split)
    train_events = timeline.training_events(source.user_of[ROWS], train)
    transforms = _fit(schema, source, train, _in_training(source, timeline, train_events))

    items = _align(frames[ITEMS], source.item_of[ITEMS], source.items, ITEM_ID)
    # Before them the row of the item that no catalogue knows.
    items = pl.concat([items.clear(1), items])
    rows = _rows(schema, transforms, source, timeline, split)
    _check_references(transforms, rows.contexts[train])
    catalogue = Catalogue(
        ids=source.items,
        codes=_encode(transforms, ITEM, items, ITEMS),
        prior=_prior(rows.item[train], rows.label[train], len(source.items)),
    )
    return Prepared(
        transforms=transforms,
        items=catalogue,
        events=_events(schema, transforms, source, timeline),
        rows=rows,
        users=_users(schema, transforms, source, train_events),
        report=_report(config, source, rows, catalogue),
    )


def prepare_for(bundle: Bundle, config: RunConfig, users: Sequence[str]) -> Prepared:
    """The histories and rows of some users, from the tables of a run, in the codes of a bundle that may be another run's.

    The bundle decides the features and what is known of an item: what its item table lacks is an unknown item, as it is
    when serving. The run says what the columns of users, items, order and label are called. All rows count as test rows.
    Raises DataError where the tables lack a feature of the bundle.
    """
    transforms = bundle.transforms
    features = ("behaviour_features", "user_features", "context_features")
    theirs = {name: getattr(transforms.schema, name) for name in features}
    schema = config.features.model_copy(update={"item_attributes": (), **theirs})
    source = Source.read(config.model_copy(update={"features": schema}), users)
    timeline = Timeline.of(source)
    split = np.full(len(source.frames[ROWS]), SPLITS.index(TEST), np.int8)
    known = np.append(0, bundle.items.rows([item.decode() for item in source.items.tolist()]))
    return Prepared(
        transforms=transforms,
        items=Catalogue(source.items, bundle.items.codes[known], bundle.items.prior[known]),
        events=_events(schema, transforms, source, timeline),
        rows=_rows(schema, transforms, source, timeline, split),
        users=_users(schema, transforms, source, np.zeros(len(source.users), np.int64)),
        report={},
    )


def _in_training(source: Source, timeline: Timeline, train_events: Ints) -> NDArray[np.bool_]:
    """Which events [E], in the order of their table, belong to training."""
    user = source.user_of[EVENTS][timeline.sorting]
    within = np.arange(len(user)) - timeline.start[user]
    belongs = np.empty(len(user), bool)
    belongs[timeline.sorting] = within < train_events[user]
    return belongs


def _fit(
    schema: FeatureSchema, source: Source, train: NDArray[np.bool_], event_train: NDArray[np.bool_]
) -> Transforms:
    frames, item_of = source.frames, source.item_of
    seen = np.zeros(len(source.items), bool)
    for table, part in ((ROWS, train), (EVENTS, event_train)):
        seen |= np.bincount(item_of[table][part], minlength=len(seen)) >= schema.item_min_count
    trained_users = np.isin(source.user_of[USERS], source.user_of[ROWS][train])
    vocabularies = {f"{ITEM}.{ITEM_ID}": Vocabulary(source.items[seen])}
    boundaries: dict[str, Boundaries] = {}
    for group, features, frame, table in (
        (ITEM, schema.item_attributes, frames[ITEMS].filter(seen[item_of[ITEMS]]), ITEMS),
        (BEHAVIOUR, schema.behaviour_features, frames[EVENTS].filter(event_train), EVENTS),
        (USER, schema.user_features, frames[USERS].filter(trained_users), USERS),
        (CONTEXT, schema.context_features, frames[ROWS].filter(train), ROWS),
    ):
        fitted = fit_features(group, features, frame, table)
        vocabularies |= fitted[0]
        boundaries |= fitted[1]
    return Transforms(schema, vocabularies, boundaries)


def _check_references(transforms: Transforms, trained: Codes) -> None:
    """Raise DataError where serving would hold a context feature at what training never saw, by its codes [N, W]."""
    reference = transforms.encode_values(CONTEXT, {}, CONTEXT)
    for column, feature in enumerate(transforms.features(CONTEXT)):
        if feature.reference is None:
            continue
        code = reference[column]
        if code == UNKNOWN or not (trained[:, column] == code).any():
            raise DataError(
                f"{ROWS}.{feature.name}: the reference {feature.reference!r}, at which serving holds it, is not a value "
                "that training knows; choose one that training rows have"
            )


def _rows(
    schema: FeatureSchema,
    transforms: Transforms,
    source: Source,
    timeline: Timeline,
    split: NDArray[np.int8],
) -> Rows:
    frame = source.frames[ROWS]
    label = labels(frame[schema.label], ROWS)
    row_id = frame[ROW_ID].cast(pl.Int64).to_numpy() if ROW_ID in frame.columns else np.arange(len(label))
    return Rows(
        row_id=row_id,
        user=source.user_of[ROWS],
        item=source.item_of[ROWS] + 1,
        cut=timeline.cut,
        place=timeline.place,
        label=label,
        split=split,
        contexts=_encode(transforms, CONTEXT, frame, ROWS),
    )


def _users(schema: FeatureSchema, transforms: Transforms, source: Source, train_events: Ints) -> Users:
    frame = _align(source.frames[USERS], source.user_of[USERS], source.users, schema.user_id)
    return Users(source.users, _encode(transforms, USER, frame, USERS), train_events)


def _events(schema: FeatureSchema, transforms: Transforms, source: Source, timeline: Timeline) -> Events:
    frame = source.frames[EVENTS]
    label = np.full(len(frame), -1, np.int8)
    if schema.event_label is not None:
        label = labels(frame[schema.event_label], EVENTS)
    time_ms = np.full(len(frame), -1, np.int64)
    if schema.timestamp is not None:
        seconds = numbers_of(frame[schema.timestamp], EVENTS)
        time_ms = np.where(np.isnan(seconds), -1, np.nan_to_num(seconds) * 1000).astype(np.int64)
    sorting = timeline.sorting
    return Events(
        start=timeline.start,
        item=source.item_of[EVENTS][sorting] + 1,
        behaviours=_encode(transforms, BEHAVIOUR, frame, EVENTS)[sorting],
        label=label[sorting],
        time_ms=time_ms[sorting],
    )


def _align(frame: pl.DataFrame, place: NDArray[np.int32], ids: Texts, key: str) -> pl.DataFrame:
    """The table's rows in the order of `ids`, rows of nulls where it has none; `key` holds the ids' texts."""
    wanted = pl.DataFrame({key: [value.decode() for value in ids.tolist()]}).with_row_index(_PLACE)
    keyed = frame.drop(key, strict=False).with_columns(pl.Series(_PLACE, place).cast(pl.UInt32))
    return wanted.join(keyed, on=_PLACE, how="left", maintain_order="left").drop(_PLACE)


def _encode(transforms: Transforms, group: str, frame: pl.DataFrame, table: str) -> Codes:
    columns = {feature.name: frame[feature.name] for feature in transforms.features(group)}
    return encode_frame(transforms, group, columns, len(frame), table)


def _prior(row_item: NDArray[np.int32], label: NDArray[np.int8], items: int) -> NDArray[np.float32]:
    """Smoothed click rates [N + 1] of the training rows; an item without any has the average."""
    shown = np.bincount(row_item, minlength=items + 1).astype(np.float64)
    clicked = np.bincount(row_item, label, items + 1).astype(np.float64)
    return smoothed(clicked, shown, float(label.mean())).astype(np.float32)


def _report(config: RunConfig, source: Source, rows: Rows, items: Catalogue) -> dict[str, Any]:
    tables = config.tables
    sha = hashlib.sha256()
    for name in (tables.events, tables.rows, tables.items, tables.users):
        sha.update(f"{name} {sha256_file(tables.folder / name)}\n".encode())
    parts = {}
    for name in SPLITS:
        at = rows.of(name)
        parts[name] = {
            "rows": len(at),
            "ctr": round(float(rows.label[at].mean()), 5),
            "rows_of_new_items": int((items.codes[rows.item[at], 0] == UNKNOWN).sum()),
            "rows_without_history": int((rows.cut[at] == 0).sum()),
            "mean_history": round(float(rows.cut[at].mean()), 1),
        }
    return {
        "name": config.name,
        "data_fingerprint": sha.hexdigest(),
        "rows": len(rows.label),
        "events": len(source.frames[EVENTS]),
        "users": len(source.users),
        "items": len(source.items),
        "splits": parts,
        "nulls": {
            table: {
                name: count
                for name, count in source.frames[table].null_count().row(0, named=True).items()
                if count
            }
            for table in TABLES
        },
    }


def print_report(prepared: Prepared) -> None:
    """Print what was prepared, for people."""
    report, fields = prepared.report, prepared.transforms.fields
    print(
        f"{report['rows']:,} rows, {report['users']:,} users, {report['items']:,} items, {report['events']:,} events"
    )
    for name, part in report["splits"].items():
        print(
            f"  {name:<6}{part['rows']:>10,} rows  CTR {part['ctr']:.4f}  {part['rows_of_new_items']:,} of items "
            f"that training never saw  {part['rows_without_history']:,} without history"
        )
    for group in GROUPS:
        sizes = ", ".join(f"{field.name} ({field.size})" for field in getattr(fields, group))
        print(f"  {group:<10}{sizes or '-'}")


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    config, folder = job_arguments(
        "prepare",
        argv,
        reads="the four tables that [tables] names",
        writes="prepared/ with schema, vocabularies, codes, histories and report.json",
    )
    prepared = prepare(config)
    stage: Path = folder / "prepared"
    prepared.save(stage)
    print_report(prepared)
    print(f"written to {stage}")
    return 0
