"""The synthetic data set: reproducible, true to its probabilities, and hard enough to need the history."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from srp4ctr.contract.errors import ConfigError, DataError
from srp4ctr_offline.data import command
from srp4ctr_offline.data.synthetic import write_synthetic
from srp4ctr_offline.data.synthetic_config import SyntheticConfig
from srp4ctr_offline.data.tables import TABLES

SMALL = SyntheticConfig(users=60, items=100, rows_per_user=10, seed=3, ctr=0.2)


def read(folder: Path) -> dict[str, pl.DataFrame]:
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}


@pytest.fixture(scope="module", params=[0, 1, 2])
def tables(request, tmp_path_factory):
    """The tables of 3,000 users, by three seeds."""
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, SyntheticConfig(3_000, 1_000, 30, request.param, 0.15))
    return read(folder)


def test_equal_seeds_give_equal_bytes(tmp_path):
    """The same configuration writes the same files, and another seed other ones."""
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic(tmp_path / name, SyntheticConfig(60, 100, 10, seed, 0.2))
    for table in TABLES:
        a, b, c = ((tmp_path / name / f"{table}.parquet").read_bytes() for name in "abc")
        assert a == b
        assert a != c


@pytest.mark.parametrize("more", [90, 1_500])
def test_users_do_not_change_when_more_follow(tmp_path, more):
    """The first users' rows, events and attributes are the same in a larger data set, of one block or several."""
    write_synthetic(tmp_path / "few", SMALL)
    write_synthetic(tmp_path / "many", SyntheticConfig(more, 100, 10, 3, 0.2))
    few, many = read(tmp_path / "few"), read(tmp_path / "many")
    assert few["items"].equals(many["items"])
    for table in ("rows", "events", "users"):
        assert few[table].equals(many[table].head(few[table].height)), table
        assert f"u{more - 1}" in many["users"]["user_id"]


def test_labels_follow_their_probability(tables):
    """In every bucket of the true probability the share of clicks is the mean probability, within 4 sigma."""
    decile = pl.col("true_probability").rank("ordinal") * 10 // (pl.len() + 1)
    buckets = (
        tables["rows"]
        .group_by(decile.alias("decile"))
        .agg(pl.len(), pl.col("label").mean(), pl.col("true_probability").mean().alias("p"))
    )
    sigma = np.sqrt(buckets["p"] * (1 - buckets["p"]) / buckets["len"])
    assert buckets.height == 10
    assert ((buckets["label"] - buckets["p"]).abs() / sigma).max() < 4


def test_what_stands_lower_is_clicked_less(tables):
    """Positions are drawn evenly, and the true log-odds of a click fall by half the position's logarithm."""
    by_position = (
        tables["rows"]
        .with_columns(logit=(pl.col("true_probability") / (1 - pl.col("true_probability"))).log())
        .group_by("position")
        .agg(pl.len(), pl.col("label", "logit").mean())
        .sort("position")
    )
    assert by_position["position"].to_list() == list(range(1, 11))
    assert by_position["len"].min() > 0.9 * by_position["len"].mean()
    falls = by_position["logit"] - by_position["logit"][0]
    # Other effects have a standard deviation of about 1.5; a mean of 9,000 rows errs by .016, a difference by .02.
    np.testing.assert_allclose(falls, -0.5 * np.log(np.arange(1, 11)), atol=0.1)
    assert by_position["label"][0] > 1.8 * by_position["label"][-1]


def test_size_and_ctr_are_about_what_was_asked(tables):
    """Users and items are exact; rows per user and CTR come within a tenth."""
    rows = tables["rows"]
    assert (tables["users"].height, tables["items"].height) == (3_000, 1_000)
    assert rows.height / 3_000 == pytest.approx(30, rel=0.1)
    assert rows["label"].mean() == pytest.approx(0.15, rel=0.1)


def test_clicks_become_events_and_nothing_else_does(tables):
    """The events in the time of the rows are exactly the clicked rows; the others came before."""
    keys = ["user_id", "item_id", "order", "timestamp"]
    clicks = tables["rows"].filter(label=1).select(keys)
    start = tables["rows"]["timestamp"].min()
    later = tables["events"].join(clicks, on=keys, how="semi")
    assert later.height == clicks.height
    rest = tables["events"].join(clicks, on=keys, how="anti")
    assert rest.height > 0
    assert rest["timestamp"].max() < start
    assert tables["events"]["label"].unique().to_list() == [1]


def test_order_is_unique_and_no_event_is_in_its_own_history(tables):
    """A user's orders are distinct, so that a clicked row's own event is not before the row."""
    for table in ("rows", "events"):
        assert tables[table].select("user_id", "order").is_duplicated().sum() == 0
        assert tables[table].select(pl.col("order").diff().over("user_id"))["order"].min() > 0
    own = tables["rows"].filter(label=1).join(tables["events"], on=["user_id", "order"], how="left")
    assert own["item_id"].equals(own["item_id_right"])
    assert tables["rows"]["row_id"].to_list() == list(range(tables["rows"].height))


def test_split_is_one_cut_in_time(tables):
    """No row of any user's train part is later than any row of the valid part, and so on to the test part."""
    rows = tables["rows"]
    parts = [rows.filter(split=name) for name in ("train", "valid", "test")]
    for earlier, later in pairwise(parts):
        assert earlier["order"].max() < later["order"].min()
    assert [part.height / rows.height for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_cold_items_and_users_exist(tables):
    """Some items are seen in the test part only, and some users have no event at all."""
    rows = tables["rows"]
    before = rows.filter(pl.col("split") != "test")["item_id"].unique()
    cold = rows.filter((pl.col("split") == "test") & ~pl.col("item_id").is_in(before.implode()))
    assert cold["item_id"].n_unique() >= 20
    without = tables["users"].join(tables["events"], on="user_id", how="anti")
    assert 0.01 < without.height / tables["users"].height < 0.2
    assert without.join(rows, on="user_id", how="semi").height == without.height


def test_popularity_is_skewed_and_columns_have_nulls_where_announced(tables):
    """The most shown tenth of the items has at least half of the rows; only brand and region have nulls."""
    shown = tables["rows"]["item_id"].value_counts(sort=True)["count"]
    assert shown.head(100).sum() > 0.5 * shown.sum()
    nulls = {column for table in tables.values() for column in table.columns if table[column].null_count()}
    assert nulls == {"brand", "region"}


def test_the_history_is_worth_more_than_the_means(tables):
    """On the test part the true probability ranks far better than item means, alone or with user means."""
    train, test = (tables["rows"].filter(split=name) for name in ("train", "test"))
    prior = train["label"].mean()

    def means(column):
        smoothed = (pl.col("label").sum() + 20 * prior) / (pl.len() + 20)
        fitted = train.group_by(column).agg(smoothed.alias("mean"))
        joined = test.join(fitted, on=column, how="left", maintain_order="left")
        return joined["mean"].fill_null(prior).to_numpy()

    item, user = means("item_id"), means("user_id")
    labels = test["label"].to_numpy()
    oracle = roc_auc_score(labels, test["true_probability"])
    both = np.log(item / (1 - item)) + np.log(user / (1 - user))
    assert oracle > roc_auc_score(labels, item) + 0.06
    assert oracle > roc_auc_score(labels, both) + 0.04


def test_recent_events_matter_more_than_old_ones(tables):
    """An item of the category of the user's latest event is clicked more than one of an event six before."""
    category = tables["items"].select("item_id", "category")
    events = tables["events"].join(category, on="item_id").sort("user_id", "order")
    events = events.with_columns(old=pl.col("category").shift(6).over("user_id")).rename(
        {"category": "latest"}
    )
    rows = tables["rows"].join(category, on="item_id").sort("order")
    seen = rows.join_asof(
        events.select("user_id", "order", "latest", "old").sort("order"),
        on="order",
        by="user_id",
        allow_exact_matches=False,
        check_sortedness=False,
    ).drop_nulls("old")
    as_latest = (pl.col("category") == pl.col("latest")) & (pl.col("category") != pl.col("old"))
    as_old = (pl.col("category") == pl.col("old")) & (pl.col("category") != pl.col("latest"))
    assert seen.filter(as_latest)["label"].mean() > 1.1 * seen.filter(as_old)["label"].mean()


def test_the_command_writes_once_and_says_so(tmp_path, capsys):
    """A second call with the same options does nothing; other options, or --force, make new tables."""
    arguments = [
        "synthetic",
        "--out",
        str(tmp_path),
        "--users",
        "30",
        "--items",
        "60",
        "--rows-per-user",
        "4",
    ]
    assert command.main(arguments) == 0
    assert "Labelled rows" in capsys.readouterr().out
    written = (tmp_path / "rows.parquet").stat().st_mtime_ns
    assert command.main(arguments) == 0
    assert "already holds these tables" in capsys.readouterr().out
    assert (tmp_path / "rows.parquet").stat().st_mtime_ns == written
    for change in (["--force"], ["--seed", "1"]):
        assert command.main([*arguments, *change]) == 0
        assert "already" not in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(f"{table}.parquet" for table in TABLES), "report.json", "report.md"]
    )


def test_impossible_sizes_and_folders_are_refused(tmp_path):
    """A wrong option is named, and a folder that cannot be written says to choose another."""
    with pytest.raises(ConfigError, match="items must be at least 50, not 10"):
        command.main(["synthetic", "--items", "10"])
    with pytest.raises(ConfigError, match="ctr must be from"):
        command.main(["synthetic", "--ctr", "2"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="choose another folder with --out"):
        write_synthetic(tmp_path / "file", SMALL)
