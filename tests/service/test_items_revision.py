"""`srp4ctr items`: new items between two models, scored by the same graphs, taken up while requests go on."""

import shutil
import threading
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from srp4ctr.cli import main
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.publish import publish


@pytest.fixture
def shop(tiny, tmp_path, redis_server, service_settings, serving, monkeypatch):
    """A copy of the small run's bundle, published, active and served: its client, store and version, and its items."""
    shutil.copytree(tiny.bundle.folder, tmp_path / "bundles" / tiny.bundle.manifest.version)
    settings = service_settings(tmp_path, redis_server.url)
    for name, value in (
        ("REDIS_URL", redis_server.url),
        ("NAMESPACE", settings.namespace),
        ("VAR_DIR", tmp_path),
    ):
        monkeypatch.setenv(f"SRP4CTR_{name}", str(value))
    manifest = tiny.bundle.manifest
    with connect(settings, redis_server.url) as client:
        store = StateStore(client, Keys(settings.namespace))
        publish(tiny.bundle, tiny.prepared, store)
        store.activate(manifest.version, manifest.fingerprint)
        tables = tiny.config.tables
        items = pl.read_parquet(tables.folder / tables.items)
        with serving(settings) as api:
            yield SimpleNamespace(
                api=api,
                store=store,
                version=manifest.version,
                items=items,
                folder=tmp_path,
                user=tiny.user_ids[3],
            )


def score(shop, *item_ids, **more):
    """The answer for some items."""
    answer = shop.api.post("/score", json={"user_id": shop.user, "item_ids": list(item_ids), **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def write(shop, frame, name="new.parquet"):
    """The path of a table of items."""
    frame.write_parquet(shop.folder / name)
    return str(shop.folder / name)


def test_new_items_are_scored_by_their_attributes(shop, wait_until, capsys):
    """An item that was unknown is, after the revision, scored as with its attributes in the request, and others as before."""
    known = [str(one) for one in shop.items["item_id"][:5].to_list()]
    like = shop.items[7]
    new = like.with_columns(pl.lit("brand-new").alias("item_id"))
    attributes = {
        name: (value.to_list() if isinstance(value, pl.Series) else value)
        for name, value in new.select("category", "brand", "tags", "price").row(0, named=True).items()
    }
    before = score(shop, *known, "brand-new")
    assert (before["unknown_items"], before["items_revision"]) == ([5], None)
    inline = score(shop, "brand-new", items={"brand-new": attributes})["scores"][0]
    items = shop.items.with_columns(pl.col("item_id").cast(pl.String))
    changed = items[0].with_columns(like["category"].alias("category"), like["brand"].alias("brand"))
    assert changed["item_id"][0] == known[0]
    table = write(shop, pl.concat([new.select(changed.columns), changed]))
    assert main(["items", shop.version, table]) == 0
    said = capsys.readouterr().out
    assert "121 items, of which 1 are new, 1 changed and 0 removed" in said
    revision = shop.store.items_revision(shop.version)
    wait_until(lambda: score(shop, "brand-new")["items_revision"] == revision)
    after = score(shop, *known, "brand-new")
    assert after["model_version"] == shop.version
    assert after["unknown_items"] == []
    # The item's own id is unknown to the model in either case.
    assert after["scores"][5] == pytest.approx(inline, abs=1e-6)
    assert after["scores"][1:5] == before["scores"][1:5]
    assert after["scores"][0] != pytest.approx(before["scores"][0], abs=1e-6)
    info = shop.api.get("/model").json()
    assert (info["items"], info["items_revision"]) == (121, revision)
    # The same again is the same revision; the version's own table is still there.
    assert main(["items", shop.version, table]) == 0
    assert shop.store.items_revision(shop.version) == revision
    assert main(["items", shop.version, "--list"]) == 0
    assert f"{revision}" in capsys.readouterr().out
    assert main(["items", shop.version, "--use", "bundle"]) == 0
    wait_until(lambda: score(shop, "brand-new")["items_revision"] is None)
    assert score(shop, *known, "brand-new")["scores"] == before["scores"]


def test_a_whole_catalogue_replaces_the_old_one(shop, wait_until):
    """With --replace, items that the table lacks are unknown from then on."""
    first, last = (str(shop.items["item_id"][place]) for place in (0, -1))
    assert main(["items", shop.version, write(shop, shop.items[:100]), "--replace"]) == 0
    wait_until(lambda: score(shop, first, last)["unknown_items"] == [1])


def test_tables_are_swapped_under_requests(shop, wait_until):
    """While revisions come and go, every request is answered, by one table or the other."""
    stop, failures, seen = threading.Event(), [], set()
    expected = score(shop, "brand-new")["scores"]

    def ask():
        while not stop.is_set():
            answer = shop.api.post("/score", json={"user_id": shop.user, "item_ids": ["brand-new"]})
            if answer.status_code != 200:
                failures.append(answer.text)
                return
            content = answer.json()
            seen.add((content["items_revision"], content["scores"][0], tuple(content["unknown_items"])))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        new = shop.items[7].with_columns(pl.lit("brand-new").alias("item_id"))
        assert main(["items", shop.version, write(shop, new)]) == 0
        revision = shop.store.items_revision(shop.version)
        for _ in range(3):
            shop.store.set_items_revision(shop.version, None)
            wait_until(lambda: shop.api.get("/model").json()["items_revision"] is None)
            shop.store.set_items_revision(shop.version, revision)
            wait_until(lambda: shop.api.get("/model").json()["items_revision"] == revision)
    finally:
        stop.set()
        thread.join(30)
    assert failures == []
    by_revision = {name: (value, unknown) for name, value, unknown in seen}
    assert len(seen) == len(by_revision) == 2
    assert by_revision[None] == (expected[0], (0,))
    assert by_revision[revision][1] == ()


def test_a_damaged_revision_is_not_taken_up(shop, wait_until):
    """A revision with a changed file is refused, said by /readyz, and the table that is there goes on."""
    new = shop.items[7].with_columns(pl.lit("brand-new").alias("item_id"))
    assert main(["items", shop.version, write(shop, new), "--no-use"]) == 0
    (folder,) = (shop.folder / "bundles" / ".items" / shop.version).iterdir()
    codes = folder / "items" / "codes.npy"
    codes.write_bytes(codes.read_bytes()[:-1] + b"\7")
    shop.store.set_items_revision(shop.version, folder.name)
    wait_until(lambda: "codes.npy" in shop.api.get("/readyz").json()["dependencies"]["model"]["detail"])
    answer = score(shop, "brand-new")
    assert (answer["items_revision"], answer["unknown_items"], answer["tier"]) == (None, [0], "full")
    shop.store.set_items_revision(shop.version, "../../x")
    wait_until(
        lambda: "name of a revision" in shop.api.get("/readyz").json()["dependencies"]["model"]["detail"]
    )
    shop.store.set_items_revision(shop.version, None)
    wait_until(lambda: shop.api.get("/readyz").json()["dependencies"]["model"]["status"] == "ok")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda frame: frame.drop("price"), "price"),
        (lambda frame: pl.concat([frame, frame]), "more than one row"),
        (lambda frame: frame.with_columns(pl.lit(None, pl.String).alias("item_id")), "item_id"),
        (lambda frame: frame.with_columns(pl.lit("dear").alias("price")), "price"),
    ],
)
def test_a_wrong_table_is_refused(shop, capsys, spoil, said):
    """A table without the schema's columns, or with an item twice, is named with what is wrong, and changes nothing."""
    assert main(["items", shop.version, write(shop, spoil(shop.items))]) == 1
    assert said in capsys.readouterr().err
    assert shop.store.items_revision(shop.version) is None


def test_known_items_keep_their_click_rates(shop):
    """The prior of an item that is known stays, and a new one has that of the unknown item."""
    new = shop.items[7].with_columns(pl.lit("brand-new").alias("item_id"))
    assert main(["items", shop.version, write(shop, new)]) == 0
    (folder,) = (shop.folder / "bundles" / ".items" / shop.version).iterdir()
    own = shop.folder / "bundles" / shop.version / "items"
    ids, old_ids = (np.load(path / "ids.npy") for path in (folder / "items", own))
    rates, old_rates = (np.load(path / "prior.npy") for path in (folder / "items", own))
    found = dict(zip(ids.tolist(), rates.tolist(), strict=True))
    assert found.pop(b"brand-new") == old_rates[0]
    assert found == dict(zip(old_ids.tolist(), old_rates.tolist(), strict=True))
