"""Recorded requests warm a model up before it serves, whichever version they are of."""

import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr_service.app import create_app
from srp4ctr_service.model import ServedModel
from srp4ctr_service.warm_up import warm_up


@pytest.fixture
def records(settings, first, store, activate, serving, tmp_path):
    """A file of what a service was asked: of a known user and of a stranger, with features and new items."""
    recording = settings.model_copy(update={"record_dir": tmp_path / "records", "record_rate": 1.0})
    store.put_many("first", [("1", first.state())])
    activate(first)
    with serving(recording) as client:
        for user in ("1", "nobody"):
            for count in (1, 7, 30):
                body = {"user_id": user, "item_ids": [*map(str, range(1, count + 1)), "new"]}
                body |= {"context": {"weekday": "Mo"}, "items": {"new": {"genre": "Drama"}}}
                assert client.post("/score", json=body).status_code == 200
    (file,) = recording.record_dir.iterdir()
    return file


def test_a_model_scores_the_recorded_requests(records, first, second):
    """All requests are scored by the version that served them, and by another one; up to the limit."""
    for known in (first, second):
        model = ServedModel.load(known.bundle.folder, threads=1)
        assert warm_up(model, records) == 6
        assert warm_up(model, records, limit=4) == 4


def test_requests_that_no_longer_fit_are_left_out(records, first):
    """A request with a feature that the model does not take is not scored, and no error."""
    records.write_bytes(records.read_bytes().replace(b'"weekday":"Mo"', b'"weather":"fine"', 2))
    assert warm_up(ServedModel.load(first.bundle.folder, threads=1), records) == 4


def test_a_service_starts_warm(records, settings, start):
    """A service with such a file becomes ready, and answers as without."""
    client = start(settings.model_copy(update={"warmup_file": records}))
    assert client.get("/readyz").status_code == 200
    answer = client.post("/score", json={"user_id": "1", "item_ids": ["1", "2"]}).json()
    assert (answer["tier"], answer["user_state"]["status"]) == ("full", "fresh")


def test_a_file_that_goes_later_stops_no_version(records, settings, start, second, activate, wait_until):
    """When the file is gone by the next activation, that version is loaded all the same."""
    client = start(settings.model_copy(update={"warmup_file": records}))
    records.unlink()
    activate(second)
    wait_until(lambda: client.get("/model").json()["version"] == "second")


def test_a_wrong_file_ends_the_start(records, settings, tmp_path):
    """A file that is missing, empty or not of records ends the start, and the message names the setting and the place."""
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.write_bytes(b"")
    damaged.write_bytes(records.read_bytes() + b'{"request_id": "x"}\n')
    for file, message in (
        (tmp_path / "nothing", "cannot be read"),
        (empty, "no records"),
        (damaged, "damaged:7"),
    ):
        wrong = settings.model_copy(update={"warmup_file": file})
        with pytest.raises(ConfigError, match=f"SRP4CTR_WARMUP_FILE.*{message}"):
            create_app(wrong, wrong.redis_url)
