"""The record: a share of what is asked and answered, with all that the scores came from, in files of bounded size."""

import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.records import Record, checksums, read_records
from srp4ctr_service import recorder
from srp4ctr_service.app import create_app

ITEMS = ["1", "40", "new", "2"]


@pytest.fixture
def recording(settings, tmp_path):
    """Settings of a service that records everything."""
    return settings.model_copy(update={"record_dir": tmp_path / "records", "record_rate": 1.0})


@pytest.fixture
def recorded(recording, first, activate, serving):
    """What a service has recorded of what it was asked, once it has stopped; and its answers."""

    def record(asked, settings=recording) -> tuple[list[Record], list[dict]]:
        activate(first)
        with serving(settings) as client:
            answers = []
            for path, body in asked:
                response = client.post(path, json=body)
                assert response.status_code == 200
                answers.append(response.json())
        return list(read_records([settings.record_dir])), answers

    return record


def test_nothing_is_recorded_by_default(settings, first, api):
    """A service that was not told to record writes no file, and counts no record."""
    assert settings.record_dir is None
    api.post("/score", json={"user_id": "1", "item_ids": ITEMS})
    assert not list(first.bundle.folder.parent.parent.rglob("*.jsonl"))
    assert 'srp4ctr_records_total{outcome="written"} 0.0' in api.get("/metrics").text


def test_what_was_served_is_recorded(recorded, first, store):
    """A record has the request, the state's bytes, the codes by feature, and the scores that the answer has."""
    state = first.state(tokens=0.25)
    store.put_many("first", [("7", state)])
    question = {
        "user_id": "7",
        "item_ids": ITEMS,
        "context": {"weekday": "Tu"},
        "candidate_features": {"hour": [1, 7, 13.5, None]},
        "items": {"new": {"genre": "Drama"}},
    }
    (record,), (answer,) = recorded([("/score", question | {"deadline_ms": 30_000})])
    assert (record.request_id, record.model_version) == (answer["request_id"], "first")
    assert record.fingerprint == first.bundle.manifest.fingerprint
    assert record.request.model_dump(exclude_defaults=True) == question
    assert (record.status, record.state) == ("fresh", state)
    items = first.bundle.items
    codes = [*items.codes[items.rows(["1", "40"])].tolist(), [1, 3], *items.codes[items.rows(["2"])].tolist()]
    assert record.item_codes == codes
    assert record.item_vectors == checksums(np.array(codes, np.float32))
    assert record.context_codes == [[3, hour, 3] for hour in (2, 3, 4, 1)]
    assert record.user_codes == []
    assert np.float32(record.scores).tolist() == np.float32(answer["scores"]).tolist()


def test_every_path_is_recorded_as_questions_about_one_user(recorded):
    """A ranking's record has the request's order, and a batch is as many records as users, by one request id."""
    one, other = {"user_id": "1", "item_ids": ITEMS}, {"user_id": "2", "item_ids": ITEMS[:1]}
    records, answers = recorded([("/rank", one | {"top_k": 2}), ("/score/batch", {"requests": [one, other]})])
    assert [record.request.user_id for record in records] == ["1", "1", "2"]
    assert {record.state for record in records} == {None}
    assert {record.status for record in records} == {"cold"}
    rank, batch = answers
    by_score = sorted(zip(records[0].scores, ITEMS, strict=True), reverse=True)
    assert [item for _, item in by_score[:2]] == rank["item_ids"]
    assert [record.request_id for record in records[1:]] == [batch["request_id"]] * 2
    assert [len(record.scores) for record in records[1:]] == [4, 1]


def test_answers_without_the_model_are_not_recorded(recorded):
    """What the prior answered is no score of the model, and not in the record."""
    records, (answer,) = recorded([("/score", {"user_id": "1", "item_ids": ITEMS, "deadline_ms": 0.0001})])
    assert (records, answer["tier"]) == ([], "prior")


def test_a_share_is_recorded(recorded, recording):
    """Of many requests about the share is recorded that was asked for."""
    asked = [("/score", {"user_id": "1", "item_ids": ["1"]})] * 200
    records, _ = recorded(asked, recording.model_copy(update={"record_rate": 0.5}))
    assert 50 < len(records) < 150


def test_files_are_private(recorded, recording):
    """Records hold users' ids and states: no other user of the machine may read them."""
    before = os.umask(0)
    try:
        recorded([("/score", {"user_id": "1", "item_ids": ITEMS})])
    finally:
        os.umask(before)
    (file,) = recording.record_dir.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(recording.record_dir.stat().st_mode) == 0o700


def test_the_folder_is_bounded(recorded, recording):
    """Two services fill one folder up to its limit and no further; the newest records are there, and no file of others is removed."""
    recording.record_dir.mkdir()
    other = recording.record_dir / "notes.jsonl.txt"
    other.write_text("of somebody else")
    small = recording.model_copy(update={"record_max_mb": 1})
    many = {"user_id": "1", "item_ids": ["1", "2", "3", "4"] * 500}
    for user in ("1", "2"):
        records, answers = recorded([("/score", many | {"user_id": user})] * 15, small)
        assert answers[-1]["request_id"] in {record.request_id for record in records}
        sizes = [file.stat().st_size for file in recording.record_dir.glob("*.jsonl")]
        assert 500_000 < sum(sizes) <= 1_000_000
        assert len(sizes) > 1
        assert len(records) < 15
    assert other.exists()


def test_what_waits_is_bounded(recording, first, activate, serving, monkeypatch):
    """What cannot be written as fast as it comes is dropped and counted; what was taken is written when the service stops."""
    monkeypatch.setattr(recorder, "WRITE_EVERY_S", 600.0)
    monkeypatch.setattr(recorder, "MAX_WAITING", 250)
    activate(first)
    with serving(recording) as client:
        for _ in range(5):
            assert client.post("/score", json={"user_id": "1", "item_ids": ITEMS}).status_code == 200
        assert 'srp4ctr_records_total{outcome="dropped"} 3.0' in client.get("/metrics").text
        assert not list(read_records([recording.record_dir]))
    assert len(list(read_records([recording.record_dir]))) == 2


def test_scoring_goes_on_without_the_folder(recording, first, activate, serving, wait_until, monkeypatch):
    """When the folder is gone, requests are answered as before, and what is not written is counted; once it is back, it is written to."""
    monkeypatch.setattr(recorder, "WRITE_EVERY_S", 0.02)
    activate(first)
    with serving(recording) as client:

        def ask():
            return client.post("/score", json={"user_id": "1", "item_ids": ITEMS})

        recording.record_dir.rmdir()
        assert ask().status_code == 200
        wait_until(lambda: 'srp4ctr_records_total{outcome="dropped"} 1.0' in client.get("/metrics").text)
        recording.record_dir.mkdir()
        assert ask().status_code == 200
        wait_until(lambda: list(read_records([recording.record_dir])))


def test_a_folder_that_cannot_be_written_ends_the_start(settings, tmp_path):
    """Where records are asked for and cannot be written, the service does not start, and names the setting."""
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "records"):
        wrong = settings.model_copy(update={"record_dir": folder})
        with pytest.raises(ConfigError, match="SRP4CTR_RECORD_DIR"):
            create_app(wrong, wrong.redis_url)


def test_several_workers_say_it_once(redis_server, tmp_path):
    """With several workers, too, the start ends in one line."""
    (tmp_path / "file").write_text("")
    variables = {
        "SRP4CTR_REDIS_URL": redis_server.url,
        "SRP4CTR_PORT": "0",
        "SRP4CTR_RECORD_DIR": str(tmp_path / "file"),
    }
    command = [sys.executable, "-m", "srp4ctr.cli", "serve", "--workers", "2"]
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "SRP4CTR_RECORD_DIR" in done.stderr
