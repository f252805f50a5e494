"""MovieLens 1M: from the archive or a partial Parquet copy to the same rows, or to an error that says what to do."""

import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data import command, movielens_1m
from srp4ctr_offline.data.movielens import Expected
from srp4ctr_offline.data.movielens_1m import canonical_tables, write_movielens_1m
from srp4ctr_offline.data.movielens_1m_files import fetch, read_local
from srp4ctr_offline.data.tables import TABLES, fingerprint

# user, item, rating, time, in the order of the file: 8 train, 1 validates, 1 tests. User 1 has training rows alone;
# user 2's last two ratings share their second with the end of validation.
RATINGS = [
    (2, 40, 5, 900),
    (2, 10, 2, 950),
    (2, 30, 5, 950),
    (2, 20, 3, 800),
    (1, 10, 5, 100),
    (1, 20, 1, 110),
    (1, 30, 4, 120),
    (1, 40, 2, 130),
    (1, 50, 4, 130),
    (1, 60, 3, 140),
]
ITEMS = [
    (10, "Toy Story (1995)", "Animation|Children's|Comedy"),
    (20, "Misérables, Les (1995)", "Drama"),
    *((item, f"Film {item} (2000)", "Drama") for item in (30, 40, 50, 60)),
]
USERS = [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072")]


@pytest.fixture
def archive(tmp_path):
    """A tiny archive in the official format, unpacked."""
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    for file, lines in (("ratings.dat", RATINGS), ("users.dat", USERS), ("movies.dat", ITEMS)):
        text = "".join("::".join(map(str, line)) + "\n" for line in lines)
        (folder / file).write_text(text, encoding="latin-1")
    return folder


@pytest.fixture
def packed(archive, tmp_path):
    """The same as a zip file."""
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(archive.iterdir()):
            packed.write(file, f"ml-1m/{file.name}")
    return path


@pytest.fixture
def copy(tmp_path):
    """The same as Parquet, without the times of the dislikes that train."""
    folder = tmp_path / "copy"
    folder.mkdir()
    ratings = pl.DataFrame(RATINGS, ["user_id", "item_id", "rating", "timestamp"], orient="row")
    lost = (pl.col("timestamp") < 950) & (pl.col("rating") < 4)
    ratings.sort("user_id", "timestamp", maintain_order=True).with_columns(
        pl.int_range(pl.len()).over("user_id").alias("order"),
    ).select(
        "user_id",
        "item_id",
        pl.when(~lost).then("order").alias("order"),
        pl.when(~lost).then("timestamp").alias("timestamp"),
        "rating",
        pl.when(pl.col("timestamp") < 950)
        .then(pl.lit("train"))
        .when(pl.col("item_id") == 10)
        .then(pl.lit("val"))
        .otherwise(pl.lit("test"))
        .alias("period"),
    ).write_parquet(folder / "interactions.parquet")
    pl.DataFrame(
        {
            "item_id": [item for item, _, _ in ITEMS],
            "title": [title[:-7] for _, title, _ in ITEMS],
            "release_year": [int(title[-5:-1]) for _, title, _ in ITEMS],
            "genres": [genres.split("|") for _, _, genres in ITEMS],
        }
    ).write_parquet(folder / "items.parquet")
    columns = ["user_id", "gender", "age_code", "occupation_code", "zip_code"]
    pl.DataFrame(USERS, columns, orient="row").write_parquet(folder / "users.parquet")
    return folder


@pytest.fixture
def tiny(archive):
    """What the tiny copies hold."""
    rows = canonical_tables(read_local(archive))[1]
    return Expected(ratings=10, users=2, items=6, fingerprint=fingerprint(rows))


def test_tables_have_the_canonical_columns_and_values(archive, tmp_path, tiny):
    """Ratings become rows and events, each numbered within its user; titles lose their year; no table has a time."""
    report = write_movielens_1m(tmp_path / "out", read_local(archive), tiny)
    tables = {name: pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in TABLES}
    rows = tables["rows"]
    assert rows.columns == ["row_id", "user_id", "item_id", "seq", "split", "label", "rating"]
    assert rows["row_id"].to_list() == list(range(10))
    assert rows["seq"].to_list() == [*range(6), *range(4)]
    assert tables["events"].equals(rows.select("user_id", "item_id", "seq", "rating", "label"))
    assert rows["label"].to_list() == [int(rating >= 4) for rating in rows["rating"]]
    assert tables["items"].rows()[:2] == [
        (10, "Toy Story", 1995, ["Animation", "Children's", "Comedy"]),
        (20, "Misérables, Les", 1995, ["Drama"]),
    ]
    assert tables["users"].rows() == USERS
    assert list(report.splits) == ["train", "valid", "test"]
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("Time: not in the tables", "Harper", str(archive), tiny.fingerprint[:16]):
        assert part in text


def test_one_clock_splits_and_orders_what_does_not_train(archive):
    """80 % of all ratings train, whoever's they are; the others follow in time, those of one second as in the file."""
    rows = canonical_tables(read_local(archive))[1]
    assert rows.filter(user_id=1)["split"].unique().to_list() == ["train"]
    own = rows.filter(user_id=2)
    assert own["split"].to_list() == ["train", "train", "valid", "test"]
    assert own["item_id"].to_list()[2:] == [10, 30]


def test_training_rows_stand_in_an_order_that_time_did_not_make(archive):
    """Neither times nor the order of the file move a training row: who reads its place learns nothing of its label."""
    rows = canonical_tables(read_local(archive))[1]
    # User 1's times run backwards.
    lines = [(user, item, rating, 500 - time if user == 1 else time) for user, item, rating, time in RATINGS]
    (archive / "ratings.dat").write_text("".join("::".join(map(str, line)) + "\n" for line in lines))
    assert canonical_tables(read_local(archive))[1].equals(rows)
    assert rows.filter(user_id=1)["item_id"].to_list() != [10, 20, 30, 40, 50, 60]


def test_every_copy_gives_the_same_tables(archive, packed, copy, tmp_path, tiny):
    """The unpacked archive, the zip file and a copy without the times of training dislikes lead to equal bytes."""
    copies = {"folder": archive, "zip": packed, "copy": copy}
    for name, path in copies.items():
        write_movielens_1m(tmp_path / "out" / name, read_local(path), tiny)
    for table in TABLES:
        written = {(tmp_path / "out" / name / f"{table}.parquet").read_bytes() for name in copies}
        assert len(written) == 1, table


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ratings.dat", "1::10::4::100\n", "is not whole: 1 ratings"),
        (
            "ratings.dat",
            "1::10::four::100\n" * 10,
            r"ratings\.dat in .* is not the official file.*ml-1m\.zip",
        ),
        ("ratings.dat", "1::10::4::\n" * 10, "10 ratings lack a value"),
        ("ratings.dat", "1::99::4::100\n" * 10, "10 ratings lack a value"),
        ("ratings.dat", "1::10::4::100\n" * 10, "are not those of the official archive"),
        ("movies.dat", "ten::Toy Story (1995)::Drama\n", r"movies\.dat in .* is not the official file"),
    ],
)
def test_a_wrong_archive_is_refused(archive, tmp_path, tiny, file, text, message):
    """Missing rows, unreadable values, no times, unlisted items and other ratings each get an error of their own."""
    (archive / file).write_text(text)
    with pytest.raises(DataError, match=message):
        write_movielens_1m(tmp_path / "out", read_local(archive), tiny)
    assert not (tmp_path / "out").exists()


def test_a_wrong_copy_is_refused(copy, tmp_path, tiny):
    """A missing column, and a row that does not train and has no place in time, are errors."""
    ratings = pl.read_parquet(copy / "interactions.parquet")
    ratings.with_columns(order=None).write_parquet(copy / "interactions.parquet")
    with pytest.raises(DataError, match="2 ratings lack a value"):
        write_movielens_1m(tmp_path / "out", read_local(copy), tiny)
    ratings.drop("period").write_parquet(copy / "interactions.parquet")
    with pytest.raises(DataError, match=r"interactions\.parquet is not .* period, .*--from"):
        read_local(copy)


def test_a_path_that_is_something_else_is_refused(packed, tmp_path):
    """A missing path, a folder without the files and a truncated archive say what is expected."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="does not exist; --from takes"):
        read_local(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds neither ratings\.dat.*grouplens\.org"):
        read_local(tmp_path / "empty")
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"not a whole zip file.*grouplens\.org"):
        read_local(packed)


def test_fetch_downloads_the_archive_or_says_what_to_do(packed):
    """Where the address answers, its archive is read; where not, the error names the page and --from."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(packed.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        raw = fetch(f"http://127.0.0.1:{server.server_port}/{packed.name}")
        server.shutdown()
        thread.join()
    assert raw.ratings.height == 10
    with pytest.raises(DataError, match=r"grouplens\.org/datasets/movielens/1m/ and give it with --from"):
        fetch("http://127.0.0.1:9/ml-1m.zip")


def test_the_real_copy_agrees_with_the_known_one(tmp_path, capsys):
    """A copy of the real data, and an archive made of it, give the known rows; and once is enough."""
    data = os.environ.get("SRP4CTR_TEST_DATA")
    if not data:
        pytest.skip("SRP4CTR_TEST_DATA names no folder with real data")
    known = Path(data) / "ml-1m"
    arguments = ["movielens-1m", "--from", str(known), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "60cc1c25870fe831" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "already holds these tables" in capsys.readouterr().out
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert fingerprint(rows) == movielens_1m.MOVIELENS_1M.fingerprint

    archive = tmp_path / "ml-1m"
    archive.mkdir()
    lines = {
        # Lost times are of training rows: any before its end will do.
        "ratings.dat": pl.read_parquet(known / "interactions.parquet").select(
            pl.format("{}::{}::{}::{}", "user_id", "item_id", "rating", pl.col("timestamp").fill_null(1))
        ),
        "movies.dat": pl.read_parquet(known / "items.parquet").select(
            pl.format("{}::{} ({})::{}", "item_id", "title", "release_year", pl.col("genres").list.join("|"))
        ),
        "users.dat": pl.read_parquet(known / "users.parquet").select(
            pl.format("{}::{}::{}::{}::{}", "user_id", "gender", "age_code", "occupation_code", "zip_code")
        ),
    }
    for file, frame in lines.items():
        (archive / file).write_text("\n".join(frame.to_series()) + "\n", encoding="latin-1")
    assert command.main(["movielens-1m", "--from", str(archive), "--out", str(tmp_path / "again")]) == 0
    for table in TABLES:
        first, again = (pl.read_parquet(tmp_path / out / f"{table}.parquet") for out in ("out", "again"))
        assert first.equals(again), table
