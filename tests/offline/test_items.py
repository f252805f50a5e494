"""`srp4ctr items`: what a revision of an item table holds, what it is called, and which ones stay."""

import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from srp4ctr.cli import main
from srp4ctr.contract.errors import BundleError, StoreError
from srp4ctr.contract.manifest import REVISION
from srp4ctr.runtime.bundle import find_bundle, open_revision
from srp4ctr.runtime.sessions import OnnxItems
from srp4ctr_offline.items import revisions

# Between an item's vector computed among others and alone.
ROUNDING = 1e-5


@pytest.fixture
def shop(tiny, store, redis_server, tmp_path, monkeypatch):
    """A copy of the small run's bundle, which the commands see, and the table of its items with ids as text."""
    version = tiny.bundle.manifest.version
    shutil.copytree(tiny.bundle.folder, tmp_path / "bundles" / version)
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tmp_path))
    tables = tiny.config.tables
    items = pl.read_parquet(tables.folder / tables.items).with_columns(pl.col("item_id").cast(pl.String))
    bundle = find_bundle(version, tmp_path / "bundles")
    folder = tmp_path / "bundles" / ".items" / version
    return SimpleNamespace(
        version=version, items=items, bundle=bundle, store=store, var=tmp_path, folder=folder
    )


def publish(shop, frame, *options) -> int:
    """Run the command on a table of these items; gives its exit code."""
    frame.write_parquet(shop.var / "table.parquet")
    return main(["items", shop.version, str(shop.var / "table.parquet"), *options])


def table(shop):
    """The item table in use."""
    return open_revision(shop.bundle, shop.store.items_revision(shop.version)).items


def named(shop, item_id, like=7):
    """An item of that id with the attributes of another."""
    return shop.items[like].with_columns(pl.lit(item_id).alias("item_id"))


def test_vectors_are_the_item_graphs(shop) -> None:
    """New and changed items have the vectors that the bundle's graph gives of their codes; all others theirs, to the bit."""
    changed = shop.items["item_id"][0]
    assert publish(shop, pl.concat([named(shop, "new"), named(shop, changed)])) == 0
    own, now = shop.bundle.items, table(shop)
    (new, moved), (like,) = now.rows(["new", changed]), own.rows([shop.items["item_id"][7]])
    assert now.codes[new].tolist() == [1, *own.codes[like].tolist()[1:]]
    assert now.codes[moved].tolist() == [own.codes[own.rows([changed])[0]][0], *own.codes[like].tolist()[1:]]
    graph = OnnxItems(shop.bundle)
    for row in (new, moved):
        np.testing.assert_allclose(now.vectors[row], graph(now.codes[row][None])[0], atol=ROUNDING)
    others = [one for one in shop.items["item_id"].to_list() if one != changed]
    for name in ("codes", "prior", "vectors"):
        was, is_ = (
            getattr(own, name)[own.rows(["", *others])],
            getattr(now, name)[now.rows(["", *others])],
        )
        np.testing.assert_array_equal(is_, was)
    assert now.vectors.dtype == own.vectors.dtype


def test_a_table_goes_on_top_of_the_one_in_use(shop) -> None:
    """Items of earlier tables stay, the counts are against the export, and ids take no more room for it."""
    widths = set()
    for number in range(4):
        assert publish(shop, named(shop, f"new-{number}", like=number)) == 0
        widths.add(table(shop).index.ids.dtype.itemsize)
    assert 0 not in table(shop).rows([f"new-{number}" for number in range(4)])
    newest, *_ = revisions(shop.bundle)
    known = len(shop.items)
    assert (newest.items, newest.new, newest.changed, newest.removed) == (known + 4, 4, 0, 0)
    assert len(widths) == 1


def test_services_that_went_back_are_followed(shop) -> None:
    """What was published and is not in use is not in the next revision."""
    assert publish(shop, named(shop, "regretted")) == 0
    assert main(["items", shop.version, "--use", "bundle"]) == 0
    assert publish(shop, named(shop, "good")) == 0
    assert (table(shop).rows(["regretted", "good"]) > 0).tolist() == [False, True]


def test_a_whole_catalogue(shop) -> None:
    """With --replace there are the table's items alone; who comes back later has the click rate of the export again."""
    first, last = shop.items["item_id"][0], shop.items["item_id"][-1]
    assert publish(shop, shop.items[:50], "--replace") == 0
    assert len(table(shop).codes) == 51
    assert table(shop).rows([first, last])[1] == 0
    newest, *_ = revisions(shop.bundle)
    assert (newest.items, newest.new, newest.removed) == (50, 0, len(shop.items) - 50)
    assert publish(shop, shop.items[-1]) == 0
    own, now = shop.bundle.items, table(shop)
    np.testing.assert_array_equal(now.prior[now.rows([first, last])], own.prior[own.rows([first, last])])
    np.testing.assert_array_equal(now.codes[now.rows([last])], own.codes[own.rows([last])])


def test_equal_content_is_an_equal_revision(shop) -> None:
    """The name is of what the table holds: not of the order of its rows, nor of the way there."""
    both = pl.concat([named(shop, "a", like=1), named(shop, "b", like=2)])
    assert publish(shop, both) == 0
    at_once = shop.store.items_revision(shop.version)
    assert publish(shop, both.reverse()) == 0
    assert shop.store.items_revision(shop.version) == at_once
    assert main(["items", shop.version, "--use", "bundle"]) == 0
    assert publish(shop, both[0]) == 0
    assert shop.store.items_revision(shop.version) != at_once
    assert publish(shop, both[1]) == 0
    assert shop.store.items_revision(shop.version) == at_once
    assert len(list(shop.folder.iterdir())) == 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda frame: frame.drop("brand"), "brand"),
        (lambda frame: frame.drop("item_id"), "item_id"),
        (lambda frame: frame.with_columns(pl.lit(1.5).alias("category")), "items.category is Float64"),
        (lambda frame: frame.with_columns(pl.lit("a").alias("tags")), "items.tags is String"),
        (lambda frame: frame.with_columns(pl.lit("dear").alias("price")), "items.price is String"),
        (lambda frame: frame.with_columns(pl.lit(None, pl.String).alias("item_id")), "rows have no id"),
        (lambda frame: frame.with_columns(pl.lit("").alias("item_id")), "an id is the empty text"),
        (lambda frame: pl.concat([frame, frame[3]]), "stands in more than one row"),
        (lambda frame: frame.clear(), "has no items"),
    ],
)
def test_wrong_tables_are_refused(shop, capsys, spoil, said) -> None:
    """A table that is not the schema's ends in one line that names the column, and leaves nothing behind."""
    for options in ((), ("--replace",)):
        assert publish(shop, spoil(shop.items), *options) == 1
        assert said in capsys.readouterr().err
    assert shop.store.items_revision(shop.version) is None
    assert [path.name for path in (shop.var / "bundles").iterdir()] == [shop.version]


def test_what_is_not_there_is_named(shop, capsys) -> None:
    """A file, a version and a revision that are not there end in one line each, and the pointer stays."""
    for command, said in (
        ([shop.version, str(shop.var / "none.parquet")], "none.parquet does not exist"),
        (["elsewhere", str(shop.var / "none.parquet")], shop.version),
        ([shop.version, "--use", "0" * 8], "there are: none"),
        ([shop.version, "--use", "../x"], "there are: none"),
    ):
        assert main(["items", *command]) == 1
        assert said in capsys.readouterr().err
    assert shop.store.items_revision(shop.version) is None


def test_two_at_a_time_lose_nothing(shop) -> None:
    """A revision that was made of another table than is in use by then is refused, for the other's items would be lost."""
    assert publish(shop, named(shop, "mine"), "--no-use") == 0
    (mine,) = revisions(shop.bundle)
    assert publish(shop, named(shop, "theirs")) == 0
    with pytest.raises(StoreError, match="publish yours again"):
        shop.store.follow_items_revision(shop.version, None, mine.revision)
    assert table(shop).rows(["theirs"])[0] > 0


def test_a_lost_revision_can_be_replaced(shop, capsys) -> None:
    """Where the revision in use is gone, a table is not put on top of nothing in silence, and a whole catalogue will do."""
    assert publish(shop, named(shop, "new")) == 0
    shutil.rmtree(shop.folder)
    assert publish(shop, named(shop, "newer")) == 1
    assert "has no revision of the item table" in capsys.readouterr().err
    assert publish(shop, shop.items, "--replace") == 0
    assert len(table(shop).codes) == len(shop.items) + 1


def test_damaged_revisions_stop_no_others(shop, capsys) -> None:
    """One that cannot be read is named and left out of the list; the others can still be used."""
    for name in ("one", "two"):
        assert publish(shop, named(shop, name)) == 0
    two, one = (made.revision for made in revisions(shop.bundle))
    (shop.folder / two / REVISION).write_text("{")
    capsys.readouterr()
    assert main(["items", shop.version, "--list"]) == 0
    told = capsys.readouterr()
    assert one in told.out
    assert two not in told.out
    assert f"{two}/{REVISION} is left out" in told.err
    assert main(["items", shop.version, "--use", two]) == 1
    assert main(["items", shop.version, "--use", one]) == 0
    with pytest.raises(BundleError, match="is damaged"):
        open_revision(shop.bundle, two)


def test_old_revisions_go(shop) -> None:
    """So many stay, and the one in use; not one of another version."""
    other = shop.folder.parent / "other" / "00000000"
    other.mkdir(parents=True)
    for number in range(4):
        assert publish(shop, named(shop, f"new-{number}"), "--keep", "2") == 0
    kept = {made.revision for made in revisions(shop.bundle)}
    assert len(kept) == 3
    assert shop.store.items_revision(shop.version) in kept
    assert other.exists()


def test_pruned_versions_lose_their_revisions(shop, capsys) -> None:
    """What `srp4ctr versions --prune` removes the states of loses its revisions, too, and never the bundle."""
    assert publish(shop, named(shop, "new")) == 0
    shop.store.mark_published(shop.version, shop.bundle.manifest.fingerprint, 0)
    for name in ("a", "b"):
        shop.store.mark_published(name, name * 64, 0)
        shop.store.activate(name, name * 64)
    assert main(["versions", "--prune"]) == 0
    assert f"removed 1 revisions of the item table of {shop.version}" in capsys.readouterr().out
    assert not shop.folder.exists()
    assert shop.store.items_revision(shop.version) is None
    assert find_bundle(shop.version, shop.var / "bundles").manifest == shop.bundle.manifest


def test_pruning_that_is_cut_off_before_the_revisions_removes_them_when_run_again(shop, capsys) -> None:
    """A version is struck off the list when nothing of it is left, on the disk neither."""
    assert publish(shop, named(shop, "new")) == 0
    shop.store.mark_published(shop.version, shop.bundle.manifest.fingerprint, 0)
    shop.store.drop(shop.version)
    assert shop.folder.exists()
    assert main(["versions", "--prune"]) == 0
    assert f"removed 1 revisions of the item table of {shop.version}" in capsys.readouterr().out
    assert not shop.folder.exists()
    assert shop.store.versions() == []
