"""MIND: from the original files or a Parquet copy to histories and shown news, or to an error that says what to do."""

import os
from pathlib import Path

import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.config import load_config
from srp4ctr_offline.data import command
from srp4ctr_offline.data.mind import LATEST, canonical_tables, write_mind
from srp4ctr_offline.data.mind_files import digest, read_local
from srp4ctr_offline.data.tables import TABLES, fingerprint
from srp4ctr_offline.prepare import prepare

CONFIG = Path(__file__).parents[2] / "configs" / "mind.toml"

# impression, user, time, history, shown: not in the order of time, user 3 without a history. Ten impressions: seven
# train, one validates, two test.
BEHAVIORS = [
    (4, 1, "11/12/2019 1:02:03 PM", [100, 101, 102], [(203, 0), (201, 1)]),
    (1, 1, "11/9/2019 12:01:13 AM", [100, 101, 102], [(201, 0), (202, 1), (100, 0)]),
    (2, 3, "11/9/2019 12:30:00 PM", [], [(201, 1), (203, 0)]),
    *((at, 2, f"11/10/2019 {at}:00:00 AM", [101], [(202, 0), (203, 1)]) for at in range(5, 10)),
    (10, 2, "11/14/2019 11:50:13 PM", [101], [(205, 0), (204, 1)]),
    (3, 3, "11/14/2019 11:50:13 PM", [], [(205, 1), (201, 0)]),
]
# News 102 and 205 are in no list of news.
NEWS = {
    100: ("news", "newsworld"),
    101: ("sports", "football"),
    201: ("news", "newsus"),
    202: ("video", None),
    203: (None, None),
    204: ("news", "newsus"),
    999: ("travel", "nobody"),
}
SECONDS = {"11/9/2019 12:01:13 AM": 1573257673, "11/14/2019 11:50:13 PM": 1573775413}


def write_originals(folder, behaviors, *, labels=True) -> Path:
    """The tiny data set as behaviors.tsv and news.tsv."""
    folder.mkdir()
    lines = []
    for impression, user, time, history, shown in behaviors:
        seen = " ".join(f"N{item}" for item in history)
        listed = " ".join(f"N{item}-{label}" if labels else f"N{item}" for item, label in shown)
        lines.append("\t".join([str(impression), f"U{user}", time, seen, listed]))
    (folder / "behaviors.tsv").write_text("\n".join(lines) + "\n")
    lines = [
        "\t".join([f"N{item}", category or "", subcategory or "", 'A "title', "é", "https://x", "[]", "[]"])
        for item, (category, subcategory) in NEWS.items()
    ]
    (folder / "news.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def originals(tmp_path):
    """Tiny files in the original format."""
    return write_originals(tmp_path / "originals", BEHAVIORS)


@pytest.fixture
def copy(tmp_path):
    """The same as Parquet."""
    folder = tmp_path / "copy"
    folder.mkdir()
    shown = [
        (impression, user, time, position, item, label)
        for impression, user, time, _, shown in BEHAVIORS
        for position, (item, label) in enumerate(shown)
    ]
    columns = ["impression_id", "user_id", "time", "position", "item_id", "label"]
    seconds = pl.col("time").str.to_datetime("%m/%d/%Y %I:%M:%S %p").dt.epoch("s").alias("timestamp")
    pl.DataFrame(shown, columns, orient="row").with_columns(seconds).write_parquet(
        folder / "impressions.parquet"
    )
    histories = {user: history for _, user, _, history, _ in BEHAVIORS}
    clicks = [(user, item, at) for user, history in histories.items() for at, item in enumerate(history)]
    pl.DataFrame(clicks, ["user_id", "item_id", "order"], orient="row").write_parquet(
        folder / "interactions.parquet"
    )
    news = [(item, *NEWS.get(item, (None, None))) for item in (*NEWS, 102, 205)]
    pl.DataFrame(news, ["item_id", "category", "subcategory"], orient="row").write_parquet(
        folder / "items.parquet"
    )
    return folder


def test_rows_are_what_was_shown_in_time(originals):
    """Rows stand in the order of time, impression and position, split by whole impressions; names become numbers."""
    events, rows, items, users = canonical_tables(read_local(originals))
    assert rows.columns == [
        *("row_id", "impression_id", "user_id", "item_id", "order", "position", "timestamp", "split", "label")
    ]
    assert rows["impression_id"].unique(maintain_order=True).to_list() == [1, 2, 5, 6, 7, 8, 9, 4, 3, 10]
    assert rows.row(0) == (0, 1, 1, 201, 0, 0, SECONDS["11/9/2019 12:01:13 AM"], "train", 0)
    assert rows["item_id"].to_list()[:5] == [201, 202, 100, 201, 203]
    assert rows["timestamp"].max() == SECONDS["11/14/2019 11:50:13 PM"]
    parts = rows.group_by("split").agg(pl.col("impression_id").unique().sort())
    assert dict(parts.iter_rows()) == {"train": [1, 2, 5, 6, 7, 8, 9], "valid": [4], "test": [3, 10]}
    assert users["user_id"].to_list() == [1, 2, 3]
    assert dict(zip(items["item_id"], items["category"], strict=True)) == {
        **{item: category for item, (category, _) in NEWS.items()},
        102: None,
        205: None,
    }
    assert events.columns == ["user_id", "item_id", "order"]


def test_all_of_a_users_events_come_before_his_rows(originals):
    """Events count back from -1, impressions forward from 0, and what one impression shows has one order."""
    events, rows, *_ = canonical_tables(read_local(originals))
    assert events.rows() == [(1, 100, -3), (1, 101, -2), (1, 102, -1), (2, 101, -1)]
    own = rows.filter(user_id=1)
    assert own["order"].to_list() == [0, 0, 0, 1, 1]
    assert own["impression_id"].to_list() == [1, 1, 1, 4, 4]


def test_prepared_rows_have_their_users_whole_history(originals, tmp_path):
    """Prepared by the configuration, each row's history is what its user clicked on before the log began."""
    write_mind(tmp_path / "out", read_local(originals), digest(originals))
    config = load_config(CONFIG)
    tables = config.tables.model_copy(update={"folder": tmp_path / "out"})
    prepared = prepare(config.model_copy(update={"tables": tables}))
    assert dict(zip(prepared.rows.user.tolist(), prepared.rows.cut.tolist(), strict=True)) == {
        0: 3,
        1: 1,
        2: 0,
    }
    assert prepared.users.train_events.tolist() == [3, 1, 0]


def test_a_long_history_keeps_its_latest_clicks(tmp_path):
    """Of more than LATEST clicks the last ones are events, and the report counts those that are not."""
    history = list(range(100, 100 + LATEST + 7))
    behaviors = [(*line[:3], history, line[4]) if line[1] == 1 else line for line in BEHAVIORS]
    folder = write_originals(tmp_path / "long", behaviors)
    report = write_mind(tmp_path / "out", read_local(folder), digest(folder))
    events = pl.read_parquet(tmp_path / "out" / "events.parquet").filter(user_id=1)
    assert events["item_id"].to_list() == history[-LATEST:]
    assert events["order"].to_list() == list(range(-LATEST, 0))
    assert report.origin.dropped[0].rows == 7
    assert "Dropped: 7 rows" in report.render()


def test_both_copies_give_the_same_tables(originals, copy, tmp_path):
    """The original files and the Parquet copy lead to equal bytes, and the report names source, terms and check value."""
    for folder in (originals, copy):
        report = write_mind(tmp_path / "out" / folder.name, read_local(folder), digest(folder))
        check = fingerprint(pl.read_parquet(tmp_path / "out" / folder.name / "rows.parquet"))[:16]
        text = report.render()
        for part in (str(folder), "Microsoft Research License", "ACL 2020", check, "2019-11-09 00:01:13"):
            assert part in text
        assert list(report.splits) == ["train", "valid", "test"]
    for table in TABLES:
        assert (tmp_path / "out" / "copy" / f"{table}.parquet").read_bytes() == (
            tmp_path / "out" / "originals" / f"{table}.parquet"
        ).read_bytes(), table


def test_other_files_make_other_tables(originals, tmp_path, capsys):
    """Tables of the same files are left as they are; those of other files are made again."""
    arguments = ["mind", "--from", str(originals), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "already holds" not in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "already holds these tables" in capsys.readouterr().out
    other = write_originals(tmp_path / "other", BEHAVIORS[1:])
    assert command.main(["mind", "--from", str(other), "--out", str(tmp_path / "out")]) == 0
    assert "already holds" not in capsys.readouterr().out
    assert pl.read_parquet(tmp_path / "out" / "rows.parquet")["impression_id"].n_unique() == 9


def test_a_test_set_is_refused(tmp_path):
    """A folder without labels, as MIND's test set, is an error that says which folders have them."""
    folder = write_originals(tmp_path / "test", BEHAVIORS, labels=False)
    with pytest.raises(DataError, match="labels are missing from test sets: take a train or dev folder"):
        write_mind(tmp_path / "out", read_local(folder), digest(folder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("behaviors.tsv", "1\tU1\n", r"behaviors\.tsv in .* is not the official file|lack a value"),
        ("behaviors.tsv", "one\tU1\t11/9/2019 1:00:00 AM\tN1\tN2-1\n", r"behaviors\.tsv in .* is not the"),
        ("behaviors.tsv", "1\tX1\t11/9/2019 1:00:00 AM\tN1\tN2-1\n", "1 shown news lack a value"),
        ("behaviors.tsv", "1\tU1\t2019-11-09\tN1\tN2-1\n", "1 shown news lack a value"),
        (
            "behaviors.tsv",
            "1\tU1\t11/9/2019 1:00:00 AM\tN1  N3\tN2-1\n",
            "1 clicks of histories lack a value",
        ),
        (
            "behaviors.tsv",
            "1\tU1\t11/9/2019 1:00:00 AM\tN1\tN2-1\n1\tU2\t11/9/2019 1:00:00 AM\tN1\tN2-1\n",
            "sever",
        ),
        (
            "news.tsv",
            "N1\ta\tb\tc\td\te\tf\tg\nN1\ta\tb\tc\td\te\tf\tg\n",
            "2 news are without an id or listed",
        ),
    ],
)
def test_wrong_files_are_refused(originals, tmp_path, file, text, message):
    """Lines of another form are an error that names the source, and says where to get a whole one."""
    (originals / file).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        write_mind(tmp_path / "out", read_local(originals), digest(originals))
    assert str(originals) in str(caught.value)
    assert "msnews.github.io" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_copy_is_refused(copy):
    """A Parquet file without a column is an error that names both."""
    frame = pl.read_parquet(copy / "impressions.parquet")
    frame.drop("label").write_parquet(copy / "impressions.parquet")
    with pytest.raises(DataError, match=r"impressions\.parquet is not .* label .*--from"):
        read_local(copy)


def test_without_files_the_error_says_where_to_get_them(tmp_path):
    """No --from and a folder without the files both name the page and --from."""
    with pytest.raises(DataError, match=r"msnews\.github\.io.*--from"):
        command.main(["mind", "--out", str(tmp_path / "out")])
    with pytest.raises(DataError, match=r"holds neither behaviors\.tsv.*msnews\.github\.io"):
        command.main(["mind", "--from", str(tmp_path), "--out", str(tmp_path / "out")])


def test_the_real_copy_agrees_with_the_known_one(tmp_path, capsys):
    """The real copy, and original files made of it, give the known rows."""
    data = os.environ.get("SRP4CTR_TEST_DATA")
    if not data:
        pytest.skip("SRP4CTR_TEST_DATA names no folder with real data")
    known = Path(data) / "mind-small-5k"
    assert command.main(["mind", "--from", str(known), "--out", str(tmp_path / "out")]) == 0
    assert "24dcddfd8a59ba0e" in capsys.readouterr().out
    events = pl.read_parquet(tmp_path / "out" / "events.parquet")
    assert events.group_by("user_id").len()["len"].max() == LATEST

    originals = tmp_path / "originals"
    originals.mkdir()
    clicks = pl.read_parquet(known / "interactions.parquet").sort("user_id", "order")
    histories = clicks.group_by("user_id").agg(pl.format("N{}", "item_id").str.join(" ").alias("history"))
    time = pl.from_epoch("timestamp").dt.strftime("%m/%d/%Y %I:%M:%S %p")
    behaviors = (
        pl.read_parquet(known / "impressions.parquet")
        .sort("impression_id", "position")
        .group_by("impression_id", "user_id", "timestamp")
        .agg(pl.format("N{}-{}", "item_id", "label").str.join(" ").alias("shown"))
        .join(histories, on="user_id", how="left")
        .select("impression_id", pl.format("U{}", "user_id"), time, "history", "shown")
    )
    behaviors.write_csv(originals / "behaviors.tsv", include_header=False, separator="\t")
    pl.read_parquet(known / "items.parquet").select(
        pl.format("N{}", "item_id"), "category", "subcategory", *(pl.lit("").alias(f"{n}") for n in range(5))
    ).write_csv(originals / "news.tsv", include_header=False, separator="\t", quote_style="never")
    assert command.main(["mind", "--from", str(originals), "--out", str(tmp_path / "again")]) == 0
    for table in TABLES:
        first, again = (pl.read_parquet(tmp_path / out / f"{table}.parquet") for out in ("out", "again"))
        assert first.equals(again), table
