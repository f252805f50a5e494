"""Amazon Beauty: from the files of S3-Rec or a Parquet copy to reviews, sampled negatives and named attributes."""

import json
import os
from pathlib import Path

import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.config import load_config
from srp4ctr_offline.data import amazon_beauty, command
from srp4ctr_offline.data.amazon_beauty import canonical_tables, write_amazon_beauty
from srp4ctr_offline.data.amazon_beauty_files import name_attributes, read_local
from srp4ctr_offline.data.tables import TABLES, fingerprint
from srp4ctr_offline.prepare import prepare

CONFIG = Path(__file__).parents[2] / "configs" / "amazon-beauty.toml"

SEQUENCES = {1: [1, 2, 3, 4, 5], 2: [2, 1, 5, 6, 7, 8], 3: [8, 7, 6, 1, 2]}
# 1 and 17 are departments: 1 begins a path with and without a brand, and so does 17. 90, 91 and 92 are brands; 92 is
# the name of a category, too.
ATTRIBUTES = {
    1: [90, 1, 5, 6],
    2: [1, 5],
    3: [91, 17, 7],
    4: [17, 7, 92],
    5: [92, 17, 7, 92],
    6: [1, 1, 5],
    7: [17],
    8: [90, 1, 5],
}


@pytest.fixture
def originals(tmp_path):
    """Tiny files in the format of S3-Rec."""
    folder = tmp_path / "originals"
    folder.mkdir()
    lines = [" ".join(map(str, [user, *items])) for user, items in SEQUENCES.items()]
    (folder / "Beauty.txt").write_text("\n".join(lines) + "\n")
    named = {str(item): attributes for item, attributes in ATTRIBUTES.items()}
    (folder / "Beauty_item2attributes.json").write_text(json.dumps(named))
    return folder


@pytest.fixture
def copy(tmp_path):
    """The same as Parquet."""
    folder = tmp_path / "copy"
    folder.mkdir()
    reviews = [(user, item, at) for user, items in SEQUENCES.items() for at, item in enumerate(items)]
    columns = ["user_id", "item_id", "order"]
    pl.DataFrame(reviews, columns, orient="row").write_parquet(folder / "interactions.parquet")
    attributes = {"item_id": list(ATTRIBUTES), "attribute_ids": list(ATTRIBUTES.values())}
    pl.DataFrame(attributes).write_parquet(folder / "items.parquet")
    return folder


@pytest.fixture
def tiny(originals):
    """The fingerprint of the tiny copies' rows."""
    return fingerprint(canonical_tables(read_local(originals))[1])


def test_events_are_all_reviews_and_rows_begin_with_the_third(originals):
    """From a user's third review on, a positive row is followed by a negative one of the same order and split."""
    events, rows, _, users = canonical_tables(read_local(originals))
    assert events.columns == ["user_id", "item_id", "order"]
    assert events.filter(user_id=2).rows() == [(2, item, at) for at, item in enumerate(SEQUENCES[2])]
    assert rows.columns == ["row_id", "user_id", "item_id", "order", "split", "label"]
    assert rows["row_id"].to_list() == list(range(len(rows)))
    assert rows["label"].to_list() == [1, 0] * (len(rows) // 2)
    positives = rows.filter(label=1).filter(user_id=2)
    assert positives["item_id"].to_list() == SEQUENCES[2][2:]
    assert positives["order"].to_list() == [2, 3, 4, 5]
    assert positives["split"].to_list() == ["train", "train", "valid", "test"]
    negatives = rows.filter(label=0)
    assert negatives.select("user_id", "order", "split").equals(
        rows.filter(label=1).select("user_id", "order", "split")
    )
    assert users.rows() == [(1,), (2,), (3,)]


def test_negatives_are_what_the_user_never_reviewed(originals):
    """No negative is an item of its user, and each is one that somebody reviewed."""
    rows = canonical_tables(read_local(originals))[1].filter(label=0)
    assert all(item in range(1, 9) and item not in SEQUENCES[user] for _, user, item, *_ in rows.rows())


def test_negatives_follow_the_popularity_of_reviews(tmp_path):
    """An item that has three times the reviews of another is drawn about three times as often."""
    # Of ten users, three reviewed item 1 and one item 2; all their other items are theirs alone.
    shared = [1, 1, 1, 2, 0, 0, 0, 0, 0, 0]
    sequences = {user: [*range(10 * user, 10 * user + 4), shared[user % 10]] for user in range(10, 20_000)}
    sequences = {user: items if items[-1] else items[:-1] for user, items in sequences.items()}
    lines = [" ".join(map(str, [user, *items])) for user, items in sequences.items()]
    (tmp_path / "Beauty.txt").write_text("\n".join(lines) + "\n")
    attributes = {item: [1] for items in sequences.values() for item in items}
    (tmp_path / "Beauty_item2attributes.json").write_text(json.dumps(attributes))
    rows = canonical_tables(read_local(tmp_path))[1].filter(label=0)
    drawn = rows.filter(pl.col("user_id") % 10 > 3)["item_id"]
    assert 2.5 < (drawn == 1).sum() / (drawn == 2).sum() < 3.5


def test_attributes_are_told_apart(originals):
    """What begins a list and is no department is the brand, even if it is a category elsewhere; a path has no repeats."""
    items = name_attributes(read_local(originals).items)
    assert items.columns == ["item_id", "brand_id", "category_ids", "category_l1_id", "attribute_ids"]
    assert items.select("item_id", "brand_id", "category_ids", "category_l1_id").rows() == [
        (1, 90, [1, 5, 6], 1),
        (2, None, [1, 5], 1),
        (3, 91, [17, 7], 17),
        (4, None, [17, 7, 92], 17),
        (5, 92, [17, 7, 92], 17),
        (6, None, [1, 5], 1),
        (7, None, [17], 17),
        (8, 90, [1, 5], 1),
    ]


def test_both_copies_give_the_same_tables(originals, copy, tmp_path, tiny):
    """The files of S3-Rec and the Parquet copy lead to equal bytes, and the report names source, terms and check value."""
    for folder in (originals, copy):
        report = write_amazon_beauty(tmp_path / "out" / folder.name, read_local(folder), tiny)
        text = report.render()
        for part in (str(folder), "McAuley", "S3-Rec", tiny[:16], "Time: not in the tables"):
            assert part in text
    for table in TABLES:
        assert (tmp_path / "out" / "copy" / f"{table}.parquet").read_bytes() == (
            tmp_path / "out" / "originals" / f"{table}.parquet"
        ).read_bytes(), table


def test_training_ends_before_the_last_two_events(originals, tmp_path, tiny):
    """Prepared by the configuration, a user of n events trains on n - 2: the last two are validation and test."""
    write_amazon_beauty(tmp_path / "out", read_local(originals), tiny)
    config = load_config(CONFIG)
    tables = config.tables.model_copy(update={"folder": tmp_path / "out"})
    prepared = prepare(config.model_copy(update={"tables": tables}))
    assert prepared.users.train_events.tolist() == [len(items) - 2 for items in SEQUENCES.values()]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "Beauty.txt",
            "1 1 2 3\n2 one two\n",
            r"Beauty\.txt, line 2, is not 'user item item \.\.\.'.*--from",
        ),
        ("Beauty.txt", "1 1 2 3 99\n2 5 6\n", "1 reviews are of an item without attributes"),
        ("Beauty.txt", "1 1 2 3 4\n", "4 reviews are by users who reviewed every item"),
        ("Beauty.txt", "1 1 2 3 4\n2 5 6\n", "does not hold the known reviews"),
        ("Beauty.txt", "1 1 2 3 99999999999\n", r"Beauty\.txt, line 2, is not"),
        ("Beauty_item2attributes.json", "[1, 2]", r"Beauty_item2attributes\.json is not JSON of the form"),
        ("Beauty_item2attributes.json", '{"1": 5}', r"Beauty_item2attributes\.json is not JSON of the form"),
        ("Beauty_item2attributes.json", '{"1": []}', "reviews are of an item without attributes"),
    ],
)
def test_wrong_files_are_refused(originals, tmp_path, tiny, file, text, message):
    """A file that is something else, or of another data set, is an error that names it and says where to get it."""
    (originals / file).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        write_amazon_beauty(tmp_path / "out", read_local(originals), tiny)
    assert "RUCAIBox/CIKM2020-S3Rec" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_copy_is_refused(copy):
    """A Parquet file without a column, or of another kind, is an error that names both."""
    (copy / "items.parquet").write_text("text")
    with pytest.raises(DataError, match=r"items\.parquet is not a Parquet file .* attribute_ids .*--from"):
        read_local(copy)


def test_without_files_the_error_says_where_to_get_them(tmp_path):
    """No --from and a folder without the files both name the files, the page and --from."""
    with pytest.raises(DataError, match=r"Beauty\.txt .*RUCAIBox.*--from"):
        command.main(["amazon-beauty", "--out", str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"holds neither Beauty\.txt.*RUCAIBox"):
        read_local(tmp_path)


def test_the_real_copy_agrees_with_the_known_one(tmp_path, capsys):
    """The real copy, and originals made of it, give the known rows and attributes; and once is enough."""
    data = os.environ.get("SRP4CTR_TEST_DATA")
    if not data:
        pytest.skip("SRP4CTR_TEST_DATA names no folder with real data")
    known = Path(data) / "amazon-beauty"
    arguments = ["amazon-beauty", "--from", str(known), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "6df0cbd6a46a0b89" in capsys.readouterr().out
    assert command.main(arguments[:1] + arguments[3:]) == 0
    assert "already holds these tables" in capsys.readouterr().out
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert fingerprint(rows) == amazon_beauty.FINGERPRINT
    known_items = pl.read_parquet(known / "items.parquet").sort("item_id")
    items = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert items.equals(known_items.select(items.columns))

    originals = tmp_path / "originals"
    originals.mkdir()
    sequences = pl.read_parquet(known / "interactions.parquet").group_by("user_id").agg("item_id")
    lines = [" ".join(map(str, [user, *own])) for user, own in sequences.iter_rows()]
    (originals / "Beauty.txt").write_text("\n".join(lines) + "\n")
    attributes = dict(known_items.select("item_id", "attribute_ids").iter_rows())
    (originals / "Beauty_item2attributes.json").write_text(json.dumps(attributes))
    assert command.main(["amazon-beauty", "--from", str(originals), "--out", str(tmp_path / "again")]) == 0
    for table in TABLES:
        first, again = (pl.read_parquet(tmp_path / out / f"{table}.parquet") for out in ("out", "again"))
        assert first.equals(again), table
