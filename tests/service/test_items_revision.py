"""`srp4ctr items`: new items between two models, scored by the same graphs, taken up while requests go on."""

import asyncio
import contextlib
import http.client
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from srp4ctr.cli import main
from srp4ctr.contract.errors import NoActiveModel, StoreUnavailable
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.async_state_store import AsyncStateStore
from srp4ctr.runtime.redis_client import connect, connect_async
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.publish import publish
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.versions import Versions


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


@pytest.fixture
def corner(first, tmp_path, settings, store, activate, start, monkeypatch):
    """A copy of `first`, whose scores a test can work out, active and served, and the commands that see it."""
    shutil.copytree(first.bundle.folder, tmp_path / "bundles" / first.version)
    for name, value in (
        ("REDIS_URL", settings.redis_url),
        ("NAMESPACE", settings.namespace),
        ("VAR_DIR", tmp_path),
    ):
        monkeypatch.setenv(f"SRP4CTR_{name}", str(value))

    def publish(*item_ids, version=first.version, options=()):
        frame = pl.DataFrame({"item_id": item_ids, "genre": ["Drama"] * len(item_ids)})
        frame.write_parquet(tmp_path / "table.parquet")
        assert main(["items", version, str(tmp_path / "table.parquet"), *options]) == 0
        return store.items_revision(version)

    activate(first)
    settings = settings.model_copy(
        update={"var_dir": tmp_path, "record_dir": tmp_path / "records", "record_rate": 1.0}
    )
    api = start(settings)
    return SimpleNamespace(
        api=api,
        store=store,
        publish=publish,
        bundles=tmp_path / "bundles",
        records=tmp_path / "records",
        revision=lambda: api.get("/model").json()["items_revision"],
        model=lambda: api.get("/readyz").json()["dependencies"]["model"],
    )


def test_spoilt_pointers_are_survived(corner, redis_server, wait_until):
    """Whatever stands in the pointer, the table that is there goes on, /readyz says so, and the next revision is followed."""
    revision = corner.publish("new")
    wait_until(lambda: corner.revision() == revision)
    for spoil in (
        lambda redis: redis.set("test:items:first", b"\xff"),
        lambda redis: redis.hset("test:items:first", "a", "b"),
    ):
        with redis_server.client() as redis, redis.pipeline() as at_once:
            at_once.delete("test:items:first")
            spoil(at_once)
            at_once.execute()
        wait_until(lambda: corner.model()["status"] == "degraded")
        assert corner.revision() == revision
        with redis_server.client() as redis:
            redis.delete("test:items:first")
        wait_until(lambda: corner.revision() is None)
        corner.store.set_items_revision("first", revision)
        wait_until(lambda: corner.revision() == revision)


def test_a_pointer_that_may_not_be_read_is_told(corner, redis_server, wait_until):
    """Where Redis answers, and not that, services go on with the table that is there, and /readyz says so until it does."""
    with redis_server.client() as redis:
        redis.execute_command("ACL SETUSER", "default", "resetkeys", "~test:active")
        wait_until(lambda: corner.model()["status"] == "degraded")
        assert "which items first has is not known" in corner.model()["detail"]
        assert corner.api.post("/score", json={"user_id": "1", "item_ids": ["1"]}).status_code == 200
        redis.execute_command("ACL SETUSER", "default", "allkeys")
        wait_until(lambda: corner.model()["status"] == "ok")


def test_a_wrong_pointer_does_not_hold_up_a_version(corner, redis_server, second, activate, wait_until):
    """A new version is taken up with its own table where nobody can say which revision it has."""
    shutil.copytree(second.bundle.folder, corner.bundles / second.version)
    with redis_server.client() as redis:
        redis.hset("test:items:second", "a", "b")
    activate(second)
    wait_until(lambda: corner.api.get("/model").json()["version"] == "second")
    assert corner.revision() is None


def test_redis_away_leaves_the_table(corner, redis_server, wait_until):
    """While Redis is gone, and when it is back, the revision is what it was."""
    revision = corner.publish("new")
    wait_until(lambda: corner.revision() == revision)
    redis_server.kill()
    answer = corner.api.post("/score", json={"user_id": "1", "item_ids": ["new"]}).json()
    assert (answer["items_revision"], answer["unknown_items"]) == (revision, [])
    redis_server.start()
    wait_until(lambda: corner.api.get("/readyz").json()["dependencies"]["redis"]["status"] == "ok")
    assert corner.revision() == revision


def test_redis_that_goes_between_version_and_items_is_no_word_of_them(
    corner, settings, redis_server, second, activate, tmp_path
):
    """A version is not taken up with its bundle's own items because Redis went before it could say which it has."""
    shutil.copytree(second.bundle.folder, corner.bundles / second.version)
    revisions = {
        "first": corner.publish("new"),
        "second": corner.publish("new", "2", version=second.version),
    }
    settings = settings.model_copy(update={"var_dir": tmp_path})

    class Going(AsyncStateStore):
        goes_at = "first"
        looks = 0

        async def active(self, limit_s):
            self.looks += 1
            return await super().active(limit_s)

        async def items_revision(self, version, limit_s):
            if version == self.goes_at:
                self.goes_at = None
                redis_server.kill()
            return await super().items_revision(version, limit_s)

    async def until(condition):
        give_up_at = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.01)

    def served(versions):
        model = versions.current()
        return model.version, model.revision

    async def scenario():
        async with connect_async(settings, redis_server.url) as client:
            store = Going(client, Keys(settings.namespace))
            versions = Versions(settings, store, Telemetry())
            async with versions.followed():
                with pytest.raises(NoActiveModel, match="which items first has is not known"):
                    versions.current()
                redis_server.start()
                await until(lambda: versions.trouble is None)
                assert served(versions) == ("first", revisions["first"])
                store.goes_at = "first"
                await until(lambda: store.goes_at is None)
                # The look that lost Redis is over when the next begins.
                looks = store.looks
                await until(lambda: store.looks > looks)
                assert (versions.trouble, served(versions)) == (None, ("first", revisions["first"]))
                redis_server.start()
                store.goes_at = "second"
                with contextlib.suppress(StoreUnavailable):
                    # The new version may be seen, and Redis gone, before this has its answer.
                    await asyncio.to_thread(activate, second)
                await until(lambda: versions.trouble is not None)
                assert served(versions) == ("first", revisions["first"])
                redis_server.start()
                await until(lambda: served(versions) != ("first", revisions["first"]))
                assert served(versions) == ("second", revisions["second"])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("looks", "troubled"),
    [(".-.", "..."), (".--.", "..x."), (".-oo-.", "......"), (".-.-.", "....."), (".---.", "..xx.")],
)
@pytest.mark.usefixtures("corner")
def test_only_what_lasts_is_trouble(settings, redis_server, tmp_path, looks, troubled):
    """Looks where all goes well (.), Redis goes before the items (-) or is away (o): trouble begins with the second - in a row."""
    settings = settings.model_copy(update={"var_dir": tmp_path})
    planned = iter(looks)
    found = []

    async def scenario():
        looked = asyncio.Event()

        class Going(AsyncStateStore):
            now = "."

            async def active(self, limit_s):
                found.append(versions.trouble)
                if len(found) > len(looks):
                    looked.set()
                self.now = next(planned, ".")
                if self.now == "o":
                    raise StoreUnavailable("Redis: away")
                return await super().active(limit_s)

            async def items_revision(self, version, limit_s):
                if self.now == "-":
                    raise StoreUnavailable("Redis: gone")
                return await super().items_revision(version, limit_s)

        async with connect_async(settings, redis_server.url) as client:
            versions = Versions(settings, Going(client, Keys(settings.namespace)), Telemetry())
            async with versions.followed():
                await asyncio.wait_for(looked.wait(), 20)

    asyncio.run(scenario())
    # Each look finds what the one before it left.
    assert "".join("." if trouble is None else "x" for trouble in found[1 : len(looks) + 1]) == troubled


def test_the_bundles_own_table_is_verified_again(corner, wait_until):
    """Going back to a table that has been damaged since leaves the revision in place until it is mended."""
    revision = corner.publish("new")
    wait_until(lambda: corner.revision() == revision)
    codes = corner.bundles / "first" / "items" / "codes.npy"
    whole = codes.read_bytes()
    codes.unlink()
    corner.store.set_items_revision("first", None)
    wait_until(lambda: "codes.npy is missing" in corner.model()["detail"])
    assert corner.revision() == revision
    codes.write_bytes(whole)
    wait_until(lambda: corner.revision() is None)
    wait_until(lambda: corner.model()["status"] == "ok")


def test_a_renamed_revision_is_not_taken_up(corner, wait_until):
    """A revision in the folder of another is refused: answers would name what they are not scored by."""
    revision = corner.publish("new", options=["--no-use"])
    assert revision is None
    (folder,) = (corner.bundles / ".items" / "first").iterdir()
    folder.rename(folder.with_name("0" * 8))
    corner.store.set_items_revision("first", "0" * 8)
    wait_until(lambda: f"holds {folder.name} of first" in corner.model()["detail"])
    assert corner.revision() is None


def test_a_version_comes_with_its_items(corner, second, activate, wait_until):
    """From the first answer of a version on, its items are those of its own revision; and so when it is left again."""
    shutil.copytree(second.bundle.folder, corner.bundles / second.version)
    revisions = {
        "first": corner.publish("new", "1"),
        "second": corner.publish("new", "2", "3", version=second.version),
    }
    wait_until(lambda: corner.revision() == revisions["first"])
    stop, seen = threading.Event(), set()

    def ask():
        while not stop.is_set():
            answer = corner.api.post("/score", json={"user_id": "1", "item_ids": ["new"]}).json()
            seen.add((answer["model_version"], answer["items_revision"], tuple(answer["unknown_items"])))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for known in (second, None, second):
            activate(known) if known else corner.store.roll_back()
            version = known.version if known else "first"
            wait_until(lambda version=version: any(one[0] == version for one in seen))
            wait_until(lambda version=version: corner.api.get("/model").json()["version"] == version)
    finally:
        stop.set()
        thread.join(30)
    assert seen == {(version, revision, ()) for version, revision in revisions.items()}


def test_added_items_do_not_vanish_at_an_activation(corner, second, capsys):
    """A version that lacks items which were added to the active one is refused until it has them, or they are to be left."""
    shutil.copytree(second.bundle.folder, corner.bundles / second.version)
    revision = corner.publish("1", "new", "newer")
    corner.store.mark_published(second.version, second.bundle.manifest.fingerprint, 0)
    activate = ["activate", second.version, "--no-gate"]
    assert main(activate) == 1
    said = capsys.readouterr().err
    assert f"second lacks 2 of 2 items that the revision {revision} added to first (new, newer)" in said
    assert "srp4ctr items second TABLE" in said
    assert (corner.store.active().version, corner.store.upcoming()) == ("first", None)
    corner.publish("new", version=second.version)
    assert main(activate) == 1
    assert "lacks 1 of 2 items" in capsys.readouterr().err
    corner.publish("newer", version=second.version)
    assert main(activate) == 0
    assert f"the revision {revision} stays with first; second has all 2 items" in capsys.readouterr().out
    corner.publish("newest", version=second.version)
    assert main(["activate", "first", "--no-gate"]) == 1
    assert main(["activate", "first", "--no-gate", "--leave-items"]) == 0
    assert corner.store.active().version == "first"


def test_replay_knows_which_items_were_served(corner, wait_until, capsys):
    """Records of a revision are replayed by that revision, and nothing differs."""
    revision = corner.publish("new")
    for used in (revision, None):
        corner.store.set_items_revision("first", used)
        wait_until(lambda used=used: corner.revision() == used)
        assert (
            corner.api.post("/score", json={"user_id": "1", "item_ids": ["1", "new"]}).status_code
            == http.client.OK
        )
    wait_until(lambda: sum(len(file.read_bytes().splitlines()) for file in corner.records.iterdir()) == 2)
    assert main(["replay", str(corner.records), "--no-torch"]) == 0
    assert "2 records" in capsys.readouterr().out


def test_doctor_looks_at_the_items(corner, capsys):
    """`srp4ctr doctor` names the revision in use, and says what to do where it is not here; serving goes on."""
    revision = corner.publish("new")
    assert main(["doctor"]) == 0
    assert f"revision {revision}, 41 items" in capsys.readouterr().out
    shutil.rmtree(corner.bundles / ".items")
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "srp4ctr items first --list" in told
    assert "ready to serve" in told
