"""The freshness benchmark: every part runs, measures what it says, touches nothing of a deployment, and keeps what others found."""

import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import orjson
import pytest
import uvicorn
import uvloop

from srp4ctr.contract.errors import ConfigError, Srp4ctrError
from srp4ctr.contract.events import unpack_history
from srp4ctr.contract.state import HEADER_BYTES
from srp4ctr.runtime.event_store import Counted
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.freshness import events, full_length, rollback, sizes
from srp4ctr_loadtest.freshness.__main__ import main
from srp4ctr_loadtest.freshness.publishing import publish
from srp4ctr_loadtest.freshness.report import read_part
from srp4ctr_loadtest.freshness.workplace import Cores, Workplace

FIELDS = (
    "event_to_score_p50_ms",
    "event_to_score_p99_ms",
    "events_per_s",
    "publish_users_per_s",
    "bytes_per_user",
    "rollback_ms",
    "kills",
    "wrong",
    "mixed",
    "lost",
    "auc_by_delay",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """An empty place to work in; what else runs on the machine may delay Redis as long as it likes."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("READ", "SCORE"):
            patch.setenv(f"SRP4CTR_REDIS_{limit}_TIMEOUT_MS", "20000")
        with Workplace.open(tmp_path_factory.mktemp("place") / "freshness", Cores.available()) as place:
            yield place


@pytest.fixture(scope="module")
def run(tiny, workplace):
    """The small run there, published and active."""
    own = workplace.take_in(tiny.bundle.folder, tiny.run)
    publish(workplace, tiny.bundle.manifest.version, own)
    workplace.command("activate", tiny.bundle.manifest.version, "--no-gate")
    return own


@pytest.fixture
def subject(tiny, workplace, run):
    """The published version."""
    del run
    return workplace.subject(tiny.bundle.manifest.version)


@contextmanager
def serving_states(states):
    """A service that refuses an event once and takes it in then, and whose scores say these things of the user's state, one after the other.

    Gives its address, and what it was asked: paths and bodies.
    """
    asked, left = [], iter(states)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        asked.append((scope["path"], orjson.loads((await receive())["body"])))
        # The first is refused.
        status = 200 if len(asked) > 1 else 503
        content = {"too_old": []} if scope["path"] == "/events" else {"user_state": next(left)}
        body = orjson.dumps(content)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        give_up_at = time.monotonic() + 20
        while not running.started:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}", asked
    finally:
        running.should_exit = True
        thread.join()


def test_publishing_leaves_the_run_as_it_is(tiny, workplace, run, subject) -> None:
    """All users are published with their histories, at a rate that is their number by the seconds; the run itself sees nothing."""
    rate = publish(workplace, subject.version, run)
    assert sorted(subject.users) == sorted(tiny.user_ids)
    assert rate.users == len(tiny.user_ids)
    assert rate.users_per_s == rate.users / rate.seconds
    assert rate.users_per_cpu_s == rate.users / rate.cpu_s
    counts = tiny.prepared.event_counts()
    assert (rate.max_events, rate.mean_events) == (12, np.minimum(counts, 12).mean())
    assert (run / "publish").exists()
    assert not (tiny.run / "publish").exists()
    stored = [workplace.client.llen(workplace.keys.history(user)) for user in tiny.user_ids]
    # Histories are of no version: they keep more than this one reads.
    assert stored == np.minimum(counts, workplace.settings.history_events).tolist()


def test_events_are_timed_until_the_scores_know_of_them(workplace, subject) -> None:
    """Every event is taken in and refreshed, beside requests that are answered in full; times are in their order."""
    arrivals = events.Arrivals(per_s=40, seconds=2, samples_per_s=10)
    found = events.measure(workplace, subject, arrivals, candidates=5, count=20)
    assert found.events > 40
    assert 5 < found.samples < found.events / 2
    assert found.never_fresh == 0
    assert (found.left_waiting, found.dead_letters, found.cheaper_answers) == (0, 0, 0)
    assert found.acknowledged_p50_ms > 0
    assert found.acknowledged_to_score_p50_ms < found.event_to_score_p99_ms <= found.event_to_score_max_ms
    assert found.event_to_score_p50_ms <= found.event_to_score_p99_ms
    assert found.polls_per_s > 0
    assert found.scores_per_s > 0
    assert min(found.worker_cpu_share, found.service_cpu_share) > 0
    counted = {
        user: Counted.read(stored)
        for user in subject.users
        if (stored := workplace.client.get(workplace.keys.sequence(user))) is not None
    }
    # One more: that which showed that the worker works.
    assert sum(one.last - one.first for one in counted.values()) == found.events + 1
    for user in counted:
        newest = unpack_history(workplace.client.lrange(workplace.keys.history(user), -1, -1))[0]
        assert newest.event_id.startswith("freshness-")


def test_a_state_from_before_the_event_is_not_fresh(workplace, subject) -> None:
    """A refused event is sent again; an answer counts only where its state lacks nothing and is younger than the event."""
    old = {"events_behind": 0, "age_ms": 100_000}
    answers = [old, {"events_behind": 1, "age_ms": 0}, {"events_behind": None, "age_ms": None}]
    with serving_states([*answers, {"events_behind": 0, "age_ms": 0}]) as (url, asked):
        actor = events.Actor(workplace, subject, events.Arrivals(per_s=10, seconds=0.2, samples_per_s=10))
        uvloop.run(actor.until_refreshed(url))
    assert [path for path, _ in asked] == ["/events"] * 2 + ["/score"] * 4
    assert asked[0] == asked[1]
    sender = asked[0][1]["events"][0]["user_id"]
    assert {body["user_id"] for path, body in asked if path == "/score"} == {sender}


def test_bytes_are_those_of_the_layout_and_of_redis(workplace, subject) -> None:
    """The formula is the state's layout, int8 takes less than float16, Redis more than the bytes, and nothing is left behind."""
    found = sizes.measure(workplace, subject)
    layout = subject.bundle.manifest.state
    expected = HEADER_BYTES + layout.payload_bytes(0)
    assert found.users == len(subject.users)
    assert found.published.formula == found.states["float16"].formula == expected
    assert found.published.memory_usage == pytest.approx(found.states["float16"].memory_usage, rel=0.1)
    assert found.states["int8"].formula < found.states["float16"].formula
    for size in (found.published, found.histories, *found.states.values()):
        assert size.memory_usage > size.formula > 0
    assert set(workplace.client.info("keyspace")) == {"db0"}


def test_rolling_back_is_timed_to_the_first_answer(workplace, subject, run) -> None:
    """The service goes back and forth between the version and its twin, and the command takes longer than the call."""
    found = rollback.measure(workplace, subject, run, times=2, command_times=1)
    assert (found.times, found.command_times) == (2, 1)
    assert 0 < found.median_ms <= found.max_ms
    assert found.command_ms > 0
    assert found.command_to_answer_median_ms > 0
    active = StateStore(workplace.client, workplace.keys).active()
    # An odd number of rollbacks.
    assert active.version == subject.version
    assert active.previous.endswith("-twin")


def test_full_histories_are_copied_for_the_same_bundle(tiny, workplace, subject) -> None:
    """The many users all have as many events as the model reads, and are published by the bundle of the few."""
    many = full_length.multiply(workplace, tiny.config_path, tiny.run, users=300)
    rate = publish(workplace, subject.version, many, histories=False)
    copies = rate.users - len(tiny.user_ids)
    assert copies >= 300
    full = np.minimum(tiny.prepared.event_counts(), 12).sum() + 12 * copies
    assert rate.mean_events == pytest.approx(full / rate.users)
    assert not rate.histories


def test_a_model_of_any_length_is_trained_and_published(workplace) -> None:
    """The commands make a bundle for histories of the wanted length, of hardly any users."""
    few = full_length.Few(users=60, items=50, rows_per_user=60, ctr=0.4)
    version, _, run = full_length.train(workplace, few, max_events=9)
    rate = publish(workplace, version, run)
    assert (rate.users, rate.max_events) == (60, 9)
    assert 0 < rate.mean_events <= 9


def test_a_command_that_fails_says_why(workplace) -> None:
    """What a command says last is in the error, and its name."""
    with pytest.raises(Srp4ctrError, match=r"srp4ctr publish nothing .* no version 'nothing'"):
        workplace.command("publish", "nothing")


def test_one_run_writes_all_fields(tiny, tmp_path, monkeypatch, capsys) -> None:
    """What was measured stands under the agreed names, what was not is null, and other commands' findings are taken or kept."""
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tmp_path))
    (tmp_path / "bundles").symlink_to(tiny.bundles)
    chaos, delays, out = (tmp_path / name for name in ("chaos.json", "delays.json", "freshness.json"))
    counted = {"kills": {"service": 20, "redis": 30}, "wrong": 0, "mixed": 0, "lost": 0, "seconds": 60.5}
    chaos.write_text(f"a table\n\n{json.dumps(counted)}\n")
    delays.write_text(json.dumps({"auc_by_delay": {"0": 0.8, "nightly": None}, "rows": 10}))
    version = tiny.bundle.manifest.version
    asked = ["--version", version, "--run", str(tiny.run), "--only", "bytes", "--out", str(out)]
    assert main([*asked, "--chaos", str(chaos), "--delays", str(delays)]) == 0
    content = json.loads(out.read_bytes())
    printed = capsys.readouterr().out.splitlines()
    assert json.loads(printed[-1]) == {"benchmark": "freshness"} | content
    assert list(content)[: len(FIELDS)] == list(FIELDS)
    null = {name for name in FIELDS if content[name] is None}
    assert null == set(FIELDS[:4]) | {"rollback_ms"}
    assert content["bytes_per_user"] == content["bytes"]["published"]["memory_usage"]
    assert (content["kills"], content["lost"], content["chaos"]["seconds"]) == (50, 0, 60.5)
    assert content["auc_by_delay"] == {"0": 0.8, "nightly": None}
    assert content["about"]["model"] == version
    # Another run, which is told nothing, keeps it.
    kept = {name: read_part(None, out, name) for name in ("chaos", "delays")}
    assert kept == {name: content[name] for name in kept}
    # Its Redis has ended.
    assert not LocalRedis(StoreSettings(var_dir=tmp_path / "freshness")).alive()


def test_findings_of_another_command_are_refused(tmp_path) -> None:
    """A file without the counts is not taken for the chaos run's, and one that is no JSON is named."""
    path = tmp_path / "other.json"
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_part(path, None, "chaos", "kills")
    path.write_text("no JSON\n")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        read_part(path, None, "chaos", "kills")
    for content in ("[1]", '{"kills": 1}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"lacks .*lost"):
            read_part(path, None, "chaos", "kills", "lost")
    assert read_part(None, None, "chaos", "kills") is None
