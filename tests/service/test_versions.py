"""Which version scores: whole ones only, and one at a time."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from srp4ctr_service.model import ServedModel

GOOD = {"user_id": "1", "item_ids": ["1", "2", "3"]}


def test_switch_under_load_never_mixes(first, second, store, activate, api, wait_until):
    """While versions are switched to and fro, no request fails, and each answer is one version's alone."""
    tokens = {"first": 0.5, "second": -0.5}
    for known in (first, second):
        store.put_many(known.version, [("1", known.state(tokens[known.version]))])
    expected = {
        known.version: pytest.approx(known.scores(GOOD["item_ids"], tokens[known.version]), abs=1e-6)
        for known in (first, second)
    }
    stop = threading.Event()

    def ask():
        seen = []
        while not stop.is_set():
            response = api.post("/score", json=GOOD)
            assert response.status_code == 200
            answer = response.json()
            assert answer["scores"] == expected[answer["model_version"]]
            assert answer["user_state"]["status"] == "fresh"
            seen.append(answer["model_version"])
        return seen

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for known in (second, first, second):
                activate(known)
                wait_until(lambda known=known: api.get("/model").json()["version"] == known.version)
        finally:
            stop.set()
        seen = {version for task in asking for version in task.result()}
    assert seen == {"first", "second"}


def test_missing_bundle_leaves_the_old_version(first, store, activate, api, wait_until):
    """When a version is activated whose bundle is not here, the old one serves on, and the service says why."""
    store.mark_published("elsewhere", "e" * 64, 0)
    store.activate("elsewhere", "e" * 64)
    wait_until(lambda: "elsewhere" in api.get("/readyz").json()["dependencies"]["model"]["detail"])
    ready = api.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["dependencies"]["model"]["status"] == "degraded"
    assert api.post("/score", json=GOOD).json()["model_version"] == "first"
    assert 'srp4ctr_version_loads_total{result="failed"}' in api.get("/metrics").text
    activate(first)
    wait_until(lambda: api.get("/readyz").json()["dependencies"]["model"]["status"] == "ok")


def test_going_back_reads_no_bundle(first, second, var_dir, activate, api, wait_until):
    """A rollback takes no longer than its pointer, however large the bundle: what was served before is there still."""
    activate(second)
    wait_until(lambda: api.get("/model").json()["version"] == "second")
    folder = first.bundle.folder
    folder.rename(var_dir / "first-is-away")
    try:
        activate(first)
        wait_until(lambda: api.get("/model").json()["version"] == "first")
        assert api.post("/score", json=GOOD).json()["scores"] == pytest.approx(
            first.scores(GOOD["item_ids"]), abs=1e-6
        )
        assert api.get("/readyz").json()["dependencies"]["model"]["status"] == "ok"
    finally:
        (var_dir / "first-is-away").rename(folder)


def test_what_is_about_to_be_active_is_loaded_before(
    second, settings, store, activate, api, wait_until, monkeypatch
):
    """Activation announces its version while it catches up: the switch reads no bundle then, however large it is."""
    opened = []
    load = ServedModel.load

    def noted(folder, threads):
        model = load(folder, threads)
        opened.append(folder.name)
        return model

    monkeypatch.setattr(ServedModel, "load", noted)
    store.announce("second")
    # What has not been published is nothing that could be active.
    time.sleep(5 * settings.version_poll_ms / 1000)
    assert opened == []
    store.mark_published("second", second.bundle.manifest.fingerprint, 0)
    wait_until(lambda: opened == ["second"])
    assert api.post("/score", json=GOOD).json()["model_version"] == "first"
    activate(second)
    store.announce(None)
    wait_until(lambda: api.post("/score", json=GOOD).json()["model_version"] == "second")
    assert opened == ["second"]


def test_the_pointer_is_followed_while_another_version_loads_ahead(
    second, twin, store, activate, api, wait_until, monkeypatch
):
    """However long an announced bundle takes to read, a version that is activated meanwhile is taken up."""
    reading, may_end = threading.Event(), threading.Event()
    load = ServedModel.load

    def slow(folder, threads):
        if folder.name == "twin":
            reading.set()
            assert may_end.wait(30)
        return load(folder, threads)

    monkeypatch.setattr(ServedModel, "load", slow)
    store.mark_published("twin", twin.bundle.manifest.fingerprint, 0)
    store.announce("twin")
    assert reading.wait(30)
    try:
        activate(second)
        wait_until(lambda: api.post("/score", json=GOOD).json()["model_version"] == "second")
    finally:
        may_end.set()
    activate(twin)
    store.announce(None)
    wait_until(lambda: api.post("/score", json=GOOD).json()["model_version"] == "twin")


def test_version_of_the_same_model_is_followed(first, twin, store, activate, api, wait_until):
    """A version that shares its fingerprint with the one in place is taken up, with states of its own."""
    assert twin.bundle.manifest.fingerprint == first.bundle.manifest.fingerprint
    store.put_many("twin", [("1", twin.state())])
    activate(twin)
    wait_until(lambda: api.get("/model").json()["version"] == "twin")
    assert api.post("/score", json=GOOD).json()["user_state"]["status"] == "fresh"


def test_renamed_bundle_is_not_served(first, var_dir, store, api, wait_until):
    """A bundle in the folder of another version is refused, for it would read that version's states."""
    shutil.copytree(first.bundle.folder, var_dir / "bundles" / "renamed")
    store.mark_published("renamed", first.bundle.manifest.fingerprint, 0)
    store.activate("renamed", first.bundle.manifest.fingerprint)
    wait_until(lambda: "the bundle here is first" in api.get("/readyz").text)
    assert api.post("/score", json=GOOD).json()["model_version"] == "first"


@pytest.mark.usefixtures("second")
def test_bundle_of_another_model_is_not_served(store, api, wait_until):
    """A bundle whose fingerprint is not the activated one is refused, though it has the version's name."""
    store.mark_published("second", "a" * 64, 0)
    store.activate("second", "a" * 64)
    wait_until(lambda: "aaaaaaaaaaaa" in api.get("/readyz").json()["dependencies"]["model"]["detail"])
    assert api.post("/score", json=GOOD).json()["model_version"] == "first"


@pytest.mark.parametrize("version", ["../first", "/etc", ".", "x" * 65])
def test_pointer_is_not_a_path(redis_server, api, wait_until, version):
    """Whatever stands in the pointer, nothing outside the folder of bundles is opened."""
    with redis_server.client() as client:
        client.hset("test:active", mapping={"version": version, "fingerprint": "f" * 64})
    wait_until(lambda: "is not the name of a bundle" in api.get("/readyz").text)
    assert api.post("/score", json=GOOD).json()["model_version"] == "first"


def test_spoilt_pointer_leaves_the_old_version(redis_server, api, wait_until, second, activate):
    """A pointer that cannot be read leaves the version in place, and the next activation is followed."""
    with redis_server.client() as client:
        client.delete("test:active")
        client.hset("test:active", mapping={"version": b"\xff"})
        assert api.post("/score", json=GOOD).json()["model_version"] == "first"
        client.delete("test:active")
    activate(second)
    wait_until(lambda: api.post("/score", json=GOOD).json()["model_version"] == "second")
