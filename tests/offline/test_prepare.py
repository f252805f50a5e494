"""Tables to histories: what a row may see, and what the vocabularies may know."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.vocabulary import UNKNOWN
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import Prepared

COLUMN = {"rule": "column"}


def write_tables(folder: Path, rows: pl.DataFrame, events: pl.DataFrame | None = None) -> None:
    """Write canonical tables; items and users are those that the rows and events name."""
    named = rows if events is None else pl.concat([rows, events], how="diagonal_relaxed")
    rows.write_parquet(folder / "rows.parquet")
    if events is not None:
        events.write_parquet(folder / "events.parquet")
    items = named.select(pl.col("item_id").unique().sort())
    items.with_columns(genre=pl.col("item_id").cast(pl.String).str.slice(0, 1)).write_parquet(
        folder / "items.parquet"
    )
    users = named.select(pl.col("user_id").unique().sort())
    users.with_columns(age=pl.int_range(pl.len()) + 20).write_parquet(folder / "users.parquet")


def config_for(folder: Path, *, one_file: bool = False, split: dict | None = None, **schema) -> RunConfig:
    """A configuration for such tables."""
    return RunConfig.model_validate(
        {
            "name": "test",
            "tables": {"folder": folder, "events": "rows.parquet" if one_file else "events.parquet"},
            "schema": {
                "max_events": 4,
                "item_attributes": [{"name": "genre", "type": "categorical"}],
                "behaviour_features": [{"name": "rating", "type": "categorical"}],
                "user_features": [{"name": "age", "type": "numeric", "buckets": 3}],
            }
            | schema,
            "split": split or COLUMN,
        }
    )


def history_of(prepared: Prepared, row: int) -> list[str]:
    """Item ids that a row's history shows, oldest first."""
    table = prepared.rows
    start = prepared.events.start[table.user[row]]
    end = start + table.cut[row]
    places = prepared.events.item[max(start, end - prepared.max_events) : end] - 1
    return [prepared.items.ids[place].decode() for place in places]


def table(**columns) -> pl.DataFrame:
    """A table with ratings, where none are given."""
    frame = pl.DataFrame(columns)
    return frame if "rating" in frame.columns else frame.with_columns(rating=pl.lit(3))


def test_a_history_is_what_came_before(tmp_path) -> None:
    """A row sees the user's events of lesser order, the latest max_events of them, and nobody else's."""
    events = table(
        user_id=["u"] * 6 + ["v"],
        item_id=["e1", "e5", "e2", "e3", "e4", "e6", "x"],
        order=[1, 5, 2, 3, 4, 6, 0],
    )
    rows = table(
        user_id=["u"] * 4,
        item_id=["a"] * 4,
        order=[1, 3, 6, 9],
        label=[0, 1, 0, 1],
        split=["train", "train", "valid", "test"],
    )
    write_tables(tmp_path, rows, events)
    prepared = prepare(config_for(tmp_path))
    assert [history_of(prepared, row) for row in range(4)] == [
        [],
        ["e1", "e2"],
        ["e2", "e3", "e4", "e5"],
        ["e3", "e4", "e5", "e6"],
    ]


def test_rows_that_are_events_see_the_rows_before_them(tmp_path) -> None:
    """In one file each row is an event; ties keep the order of the file, and a row never sees itself."""
    rows = table(
        user_id=[7, 8, 7, 7, 7, 8],
        item_id=[10, 99, 11, 12, 13, 98],
        order=[2, 0, 1, 2, 2, 0],
        label=[1, 0, 1, 0, 1, 1],
        split=["train", "train", "train", "valid", "test", "train"],
        rating=[5, 1, 4, 2, 4, 5],
    )
    write_tables(tmp_path, rows)
    prepared = prepare(config_for(tmp_path, one_file=True))
    assert [history_of(prepared, row) for row in range(6)] == [
        ["11"],
        [],
        [],
        ["11", "10"],
        ["11", "10", "12"],
        ["99"],
    ]


def test_a_planted_future_event_cannot_be_seen(tmp_path, tiny) -> None:
    """Events after a row, or after the training period, change neither that row's input nor what training sees."""
    source = tiny.config.tables.folder
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("rows", "items", "users", "events"):
        (folder / f"{name}.parquet").write_bytes((source / f"{name}.parquet").read_bytes())
    events = pl.read_parquet(folder / "events.parquet")
    rows = pl.read_parquet(folder / "rows.parquet")
    row = rows.with_row_index("at").filter(split="valid").sort("order").row(-1, named=True)
    planted = events.head(1).with_columns(
        user_id=pl.lit(row["user_id"]),
        item_id=pl.lit("from-the-future"),
        order=pl.lit(row["order"] + 1).cast(events.schema["order"]),
        event_type=pl.lit("from-the-future"),
    )
    pl.concat([planted, events]).write_parquet(folder / "events.parquet")
    tables = tiny.config.tables.model_copy(update={"folder": folder})
    spoilt = prepare(tiny.config.model_copy(update={"tables": tables}))
    clean = tiny.prepared
    assert spoilt.transforms.digest() == clean.transforms.digest()
    for part in ("train", "valid"):
        earlier = rows["order"].to_numpy() <= row["order"]
        at = np.intersect1d(clean.rows.of(part), np.flatnonzero(earlier))
        users = clean.rows.user[at]
        mine, theirs = (p.histories(users, p.rows.cut[at]) for p in (clean, spoilt))
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(spoilt.users.train_events, clean.users.train_events)
    # The planted event is not simply lost: a row after it would see it.
    user = int(np.searchsorted(spoilt.users.ids, row["user_id"].encode()))
    grown = spoilt.event_counts() - clean.event_counts()
    assert grown[user] == 1
    assert grown.sum() == 1


def test_vocabularies_know_training_alone(tmp_path) -> None:
    """Values that occur only in validation or test rows, or in events after training, are unknown."""
    events = table(user_id=["u"] * 3, item_id=["a", "b", "c"], order=[1, 2, 30], rating=[1, 2, 5])
    rows = table(
        user_id=["u", "u", "u", "w"],
        item_id=["a", "a", "d", "d"],
        order=[10, 20, 30, 40],
        label=[0, 1, 0, 1],
        split=["train", "train", "valid", "test"],
        hour=[1, 2, 3, 4],
    )
    write_tables(tmp_path, rows, events)
    prepared = prepare(config_for(tmp_path, context_features=[{"name": "hour", "type": "categorical"}]))
    known = {key: vocabulary.values.tolist() for key, vocabulary in prepared.transforms.vocabularies.items()}
    assert known == {
        "item.id": [b"a", b"b"],
        "item.genre": [b"a", b"b"],
        "behaviour.rating": [b"1", b"2"],
        "context.hour": [b"1", b"2"],
    }
    assert prepared.rows.contexts[2:, 0].tolist() == [UNKNOWN, UNKNOWN]
    assert prepared.users.train_events.tolist() == [2, 0]


def positions(folder: Path, kind: str, reference: object, values: list | None = None, **more) -> Prepared:
    """Five rows at positions, the first two for training, prepared with that reference."""
    write_tables(folder, table(**GOOD_BOTH).with_columns(position=pl.Series(values or [2, 1, 1, 2, 3])))
    feature = {"name": "position", "type": kind, "reference": reference} | more
    return prepare(config_for(folder, one_file=True, context_features=[feature]))


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
def test_logged_positions_are_kept(tmp_path, kind) -> None:
    """Prepared rows have the values that were logged, and serving's can be had from them."""
    prepared = positions(tmp_path, kind, 1)
    codes = prepared.rows.contexts[:, 0]
    assert (codes[:2] == [3, 2]).all()
    assert prepared.transforms.at_reference(prepared.rows.contexts)[:, 0].tolist() == [2] * 5


@pytest.mark.parametrize(
    ("kind", "reference", "more"),
    [
        ("categorical", 3, {}),
        ("categorical", "top", {}),
        ("categorical", 1, {"min_count": 2}),
        ("numeric", 1.0, {"values": [None, None, 1, 2, 3]}),
        ("categorical", 1, {"values": [None, 2, 1, 1, 1]}),
    ],
)
def test_a_reference_that_training_never_saw_is_refused(tmp_path, kind, reference, more) -> None:
    """Serving could hold a feature only at what the model has not learnt: an error names the feature and the value."""
    with pytest.raises(DataError, match=rf"rows\.position: the reference {reference!r}, "):
        positions(tmp_path, kind, reference, **more)


def test_items_outside_the_vocabulary_keep_their_attributes(tmp_path) -> None:
    """A catalogue item that training never saw has the unknown id and its own, known attributes."""
    rows = table(
        user_id=[1, 1, 1],
        item_id=["a1", "a2", "a3"],
        order=[1, 2, 3],
        label=[1, 0, 1],
        split=["train", "valid", "test"],
    )
    write_tables(tmp_path, rows)
    prepared = prepare(config_for(tmp_path, one_file=True))
    assert prepared.items.codes.tolist() == [[1, 1], [2, 2], [1, 2], [1, 2]]
    assert prepared.items.prior[2] == prepared.items.prior[0] == prepared.rows.label[0]


def test_per_user_split(tmp_path) -> None:
    """Each user's first rows train, the next validate, the rest test, by the floor of the parts."""
    rows = table(
        user_id=["u"] * 15 + ["v"] * 10,
        item_id=list(range(25)),
        order=list(range(15))[::-1] + list(range(10)),
        label=[0, 1] * 12 + [1],
    )
    write_tables(tmp_path, rows)
    prepared = prepare(
        config_for(tmp_path, one_file=True, split={"rule": "per_user", "train": 0.8, "valid": 0.1})
    )
    assert prepared.rows.split[:15][::-1].tolist() == [0] * 12 + [1] + [2] * 2
    assert prepared.rows.split[15:].tolist() == [0] * 8 + [1] + [2]


def test_global_split(tmp_path) -> None:
    """One clock for all: no test row is earlier than a training row."""
    rows = table(user_id=[1, 2] * 10, item_id=list(range(20)), order=list(range(20))[::-1], label=[0, 1] * 10)
    write_tables(tmp_path, rows)
    prepared = prepare(
        config_for(tmp_path, one_file=True, split={"rule": "global", "train": 0.5, "valid": 0.25})
    )
    assert prepared.rows.split[::-1].tolist() == [0] * 10 + [1] * 5 + [2] * 5


GOOD = {
    "user_id": ["u", "u", "u"],
    "item_id": ["a", "b", "c"],
    "order": [1, 2, 3],
    "label": [0, 1, 0],
    "split": ["train", "valid", "test"],
    "rating": [1, 2, 3],
}


GOOD_BOTH = {
    "user_id": ["u"] * 5,
    "item_id": list("abcde"),
    "order": [1, 2, 3, 4, 5],
    "label": [0, 1, 0, 1, 0],
    "split": ["train", "train", "valid", "valid", "test"],
    "rating": [1, 2, 3, 4, 5],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_id": ["a", "b" * 257, "c"]}, r"item_id: a value has more than 256 characters"),
        ({"rating": ["x" * 1001, "y", "z"]}, r"rating: a value has more than 1000 characters"),
        ({"row_id": ["1", "2", "3"]}, r"rows\.row_id: must be integers"),
        ({"row_id": [1, 1, 3]}, r"rows\.row_id: must be integers, each once"),
        ({"label": [0, 2, 0]}, r"rows\.label: a label must be 0 or 1, and 1 are not"),
        ({"label": [0, None, 0]}, r"rows\.label"),
        ({"order": [1, None, 3]}, r"rows\.order|events\.order: 1 rows have no order"),
        ({"order": ["1", "2", "3"]}, r"order is String"),
        ({"split": ["train", "train", "test"]}, "no valid rows"),
        (
            {"split": ["train", "val", "test"]},
            r"rows\.split: must be one of train, valid, test; 1 are not, such as 'val'",
        ),
        ({"user_id": ["u", None, "u"]}, "1 rows have no id"),
        ({"rating": [1.5, 2.0, 3.0]}, r"rating is Float64; a categorical column must hold"),
        ({"rating": None}, r"lacks the column 'rating'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, change, message) -> None:
    """A table that breaks the schema is an error that names the table, the column and what is wrong."""
    columns = {name: values for name, values in (GOOD | change).items() if values is not None}
    rows = pl.DataFrame(columns)
    write_tables(tmp_path, rows)
    with pytest.raises(DataError, match=message):
        prepare(config_for(tmp_path, one_file=True))


def test_orders_are_exact(tmp_path) -> None:
    """Integer orders are compared as integers: events a nanosecond apart, rows reversed, keep their order."""
    orders = [10**18 + i for i in range(6)][::-1]
    split = ["test", "valid", "valid", "train", "train", "train"]
    write_tables(
        tmp_path,
        table(user_id=[1] * 6, item_id=list("fedcba"), order=orders, label=[0, 1, 0, 1, 0, 1], split=split),
    )
    prepared = prepare(config_for(tmp_path, one_file=True))
    assert [history_of(prepared, row) for row in range(6)] == [
        list("abcde"[max(0, n - 4) : n]) for n in range(6)
    ][::-1]


def test_one_file_by_another_name(tmp_path) -> None:
    """Events and rows are one file also where the configuration spells its name in two ways."""
    rows = table(
        user_id=[1] * 5,
        item_id=list("abcde"),
        order=[1, 1, 1, 2, 3],
        label=[0, 1, 0, 1, 1],
        split=["train"] * 2 + ["valid"] * 2 + ["test"],
    )
    write_tables(tmp_path, rows)
    config = config_for(tmp_path, one_file=True)
    tables = config.tables.model_copy(update={"events": "./rows.parquet"})
    prepared = prepare(config.model_copy(update={"tables": tables}))
    assert history_of(prepared, 2) == ["a", "b"]


def test_a_rows_own_outcome_is_no_context(tmp_path) -> None:
    """Where each row is an event, its behaviour cannot be declared context: it would tell the label."""
    with pytest.raises(ValueError, match="would tell its label"):
        config_for(tmp_path, one_file=True, context_features=[{"name": "rating", "type": "categorical"}])


def test_shuffled_events_take_their_rows_along(tmp_path) -> None:
    """Training events change places within their users, each row stays at its event, and later ones see what they saw."""
    generator = np.random.default_rng(3)
    users, size = 8, 20
    rows = table(
        user_id=np.repeat(np.arange(users), size),
        item_id=np.arange(users * size),
        order=np.tile(np.arange(size), users),
        label=generator.integers(2, size=users * size),
        rating=generator.integers(5, size=users * size),
        split=np.where(
            np.tile(np.arange(size), users) < np.repeat(10 + np.arange(users), size), "train", "test"
        ),
    ).with_columns(
        split=pl.when(pl.int_range(pl.len()) % size == size - 1).then(pl.lit("valid")).otherwise("split")
    )
    write_tables(tmp_path, rows.sample(fraction=1.0, shuffle=True, seed=2))
    prepared = prepare(config_for(tmp_path, one_file=True, event_label="label"))
    train = prepared.rows.of("train")
    rest = np.setdiff1d(np.arange(len(rows)), train)
    orders = []
    for _ in range(2):
        shuffled = prepared.shuffled(generator)
        mine, events = shuffled.rows, shuffled.events
        at = events.start[mine.user] + mine.cut
        assert np.array_equal(events.item[at], mine.item)
        assert np.array_equal(events.label[at], mine.label)
        old = prepared.events.start[mine.user] + prepared.rows.cut
        assert np.array_equal(events.behaviours[at], prepared.events.behaviours[old])
        assert np.array_equal(np.argsort(mine.place), np.argsort(at))
        assert np.array_equal(mine.cut[rest], prepared.rows.cut[rest])
        assert (mine.cut[train] < shuffled.users.train_events[mine.user[train]]).all()
        assert (mine.cut[train] != prepared.rows.cut[train]).mean() > 0.8
        orders.append(mine.cut)
    assert not np.array_equal(*orders)


def test_only_events_that_are_rows_are_shuffled(tmp_path) -> None:
    """A row beside its events would have its own click in its history; the message names the job."""
    config = config_for(tmp_path).model_dump(by_alias=True)
    for job in ("pretrain", "finetune"):
        with pytest.raises(ValueError, match=f"{job}.shuffle_events: .* one file"):
            RunConfig.model_validate(config | {job: {"shuffle_events": True}})
    write_tables(tmp_path, table(**GOOD_BOTH), table(**GOOD_BOTH).tail(2))
    with pytest.raises(DataError, match="rows are not events; run srp4ctr prepare"):
        prepare(config_for(tmp_path)).shuffled(np.random.default_rng(0))


def test_features_may_have_any_name(tmp_path) -> None:
    """A user feature called like one of our own columns is an ordinary feature."""
    write_tables(tmp_path, table(**GOOD_BOTH))
    users = pl.read_parquet(tmp_path / "users.parquet")
    users.with_columns(place=pl.lit("here"), index=pl.lit(1)).write_parquet(tmp_path / "users.parquet")
    features = [{"name": name, "type": "categorical"} for name in ("place", "index")]
    assert prepare(config_for(tmp_path, one_file=True, user_features=features)).users.codes.tolist() == [
        [2, 2]
    ]


def test_preparing_again_leaves_nothing_behind(tmp_path) -> None:
    """Prepared again after a feature was taken out, the data are those of a clean run."""
    write_tables(tmp_path, table(**GOOD_BOTH, hour=[1, 2, 3, 4, 5]))
    for features in ([{"name": "hour", "type": "categorical"}], []):
        prepared = prepare(config_for(tmp_path, one_file=True, context_features=features))
        prepared.save(tmp_path / "prepared")
    assert Prepared.load(tmp_path / "prepared").transforms.digest() == prepared.transforms.digest()


def test_items_must_be_unique(tmp_path) -> None:
    """Two rows for one item are an error: which of them would be true?"""
    write_tables(tmp_path, pl.DataFrame(GOOD))
    items = pl.read_parquet(tmp_path / "items.parquet")
    pl.concat([items, items.head(1)]).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="items: the id 'a' stands in more than one row"):
        prepare(config_for(tmp_path, one_file=True))


def test_prepared_data_is_read_back(tiny, tmp_path) -> None:
    """What prepare saves is what the later jobs load."""
    tiny.prepared.save(tmp_path / "copy")
    copy = Prepared.load(tmp_path / "copy")
    assert copy.transforms.digest() == tiny.prepared.transforms.digest()
    for part in ("events", "rows", "users"):
        for name, value in vars(getattr(copy, part)).items():
            np.testing.assert_array_equal(value, getattr(getattr(tiny.prepared, part), name))
    with pytest.raises(DataError, match="srp4ctr prepare"):
        Prepared.load(tmp_path / "nowhere")
