"""POST /impressions and the monitor: what users were shown and clicked tells how good the served probabilities are."""

import os
import signal
import subprocess
import sys
import time

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sklearn.metrics import log_loss, roc_auc_score

from srp4ctr.contract.errors import ConfigError, StoreUnavailable
from srp4ctr.contract.events import RawEvent
from srp4ctr.contract.keys import PARTITIONS, Keys, partition
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.feedback_store import EACH, FeedbackStore, MonitoredAnswer, ShownItems
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.serving import free_port
from srp4ctr.runtime.settings import read_settings
from srp4ctr_service.online_quality import CLOCKS_APART_S, Clicks, Monitor, OnlineQuality, judge, places_of
from srp4ctr_service.settings import MonitorSettings

ITEMS = [str(number) for number in range(1, 21)]
WINDOW_S = 600
NOT_MATCHED = "srp4ctr_unmatched_impressions_total"


def metric(text, name, **labels):
    """The value of a metric with these labels, None where it is not there."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


class Watched:
    """A service all of whose answers are monitored, and a monitor that judges at once what is asked of it."""

    def __init__(self, settings, api, client):
        self.api = api
        self.redis = client
        self.keys = Keys(settings.namespace)
        self.feedback = FeedbackStore(client, self.keys)
        self.events = EventStore(client, self.keys, settings.retention)
        self.registry = CollectorRegistry()
        self.quality = OnlineQuality(1000, self.registry)

    def score(self, user_id="7", request_id="r-1"):
        """The scores of all items."""
        body = {"user_id": user_id, "item_ids": ITEMS}
        answer = self.api.post("/score", json=body, headers={"x-request-id": request_id})
        assert answer.status_code == 200, answer.text
        return dict(zip(ITEMS, answer.json()["scores"], strict=True))

    def show(self, item_ids, user_id="7", request_id="r-1", ago_ms=0):
        """Report what was shown; gives how many impressions are kept."""
        now = time.time_ns() // 1_000_000
        one = {
            "request_id": request_id,
            "user_id": user_id,
            "item_ids": item_ids,
            "timestamp_ms": now - ago_ms,
        }
        answer = self.api.post("/impressions", json={"impressions": [one]})
        assert answer.status_code == 200, answer.text
        return answer.json()["monitored"]

    def click(self, *item_ids, user_id="7"):
        """The user clicks the items."""
        now = time.time_ns() // 1_000_000
        events = [
            {"user_id": user_id, "item_id": item_id, "event_id": f"e-{item_id}", "timestamp_ms": now}
            for item_id in item_ids
        ]
        assert self.api.post("/events", json={"events": events}).status_code == 200

    def kept(self, stream):
        """Entries of the streams of that kind, of all partitions."""
        return sum(self.redis.xlen(stream(number)) for number in range(PARTITIONS))

    def wait_for(self, answers):
        """Until so many answers are written, which nobody waits for otherwise."""
        limit = time.monotonic() + 20
        while self.kept(self.keys.answered) != answers:
            assert time.monotonic() < limit, self.kept(self.keys.answered)
            time.sleep(0.05)

    def monitor(self, window_s=WINDOW_S, rule=""):
        """A monitor that waits for no event to arrive late, and judges before the window is over."""
        return Monitor(self.feedback, self.events, window_s, Clicks(rule), self.quality, late_s=-window_s)

    def metrics(self):
        """The monitor's metrics as text."""
        return generate_latest(self.registry).decode()


@pytest.fixture
def watch(settings, first, activate, start):
    """A watched service; its share of monitored answers is all of them, or what a test says."""
    activate(first)
    clients = []

    def watch(share=1.0, **others):
        changed = settings.model_copy(update={"monitored_share": share, **others})
        clients.append(connect(settings, settings.redis_url))
        return Watched(changed, start(changed), clients[-1])

    yield watch
    for client in clients:
        client.close()


def test_shown_and_clicked_items_give_the_quality_of_the_served_version(watch, first):
    """Click rate, expectation, AUC, logloss and ECE are those of the shown items, with the probabilities that were served."""
    watched = watch()
    scores = watched.score()
    shown, clicked = ITEMS[:10], {"2", "9"}
    assert watched.show(shown) == 1
    watched.click("2", "9", "15")
    watched.wait_for(1)

    assert watched.monitor().step() == 1

    text = watched.metrics()
    label = [item_id in clicked for item_id in shown]
    probability = np.array([scores[item_id] for item_id in shown])
    of = {"version": first.version}
    assert metric(text, "srp4ctr_shown_items_total") == 10
    assert metric(text, "srp4ctr_clicked_items_total") == 2
    assert metric(text, "srp4ctr_expected_clicks_total") == pytest.approx(probability.sum(), rel=1e-6)
    assert metric(text, "srp4ctr_online_items", **of) == 10
    assert metric(text, "srp4ctr_online_click_rate", **of) == pytest.approx(0.2)
    assert metric(text, "srp4ctr_online_expected_click_rate", **of) == pytest.approx(probability.mean())
    assert metric(text, "srp4ctr_online_auc", **of) == pytest.approx(roc_auc_score(label, probability))
    assert metric(text, "srp4ctr_online_logloss", **of) == pytest.approx(
        log_loss(label, probability), rel=1e-5
    )
    assert 0 < metric(text, "srp4ctr_online_ece", **of) <= 1
    assert watched.kept(watched.keys.shown) == 0


def test_without_any_click_there_is_no_auc(watch, first):
    """What the shown items do not define is absent, not 0."""
    watched = watch()
    watched.score()
    watched.show(ITEMS)
    watched.wait_for(1)
    watched.monitor().step()
    assert metric(watched.metrics(), "srp4ctr_online_click_rate", version=first.version) == 0
    assert metric(watched.metrics(), "srp4ctr_online_auc", version=first.version) is None


def test_what_is_reported_twice_or_was_never_answered_does_not_count(watch):
    """Of an answer an item counts once, and again as a duplicate; an impression without its answer is counted as unmatched."""
    watched = watch()
    watched.score()
    for _ in range(2):
        watched.show(["1", "2", "not-a-candidate"])
    watched.show(["3"], request_id="never-asked")
    watched.wait_for(1)
    assert watched.monitor().step() == 3
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 2
    assert metric(watched.metrics(), "srp4ctr_duplicate_items_total") == 2
    assert metric(watched.metrics(), NOT_MATCHED, reason="no_answer") == 1


def test_what_is_shown_later_of_an_answer_is_judged_with_it(watch):
    """A user who scrolls sees more of an answer, and some of it again, long after the first of it has been judged."""
    watched = watch()
    scores = watched.score()
    watched.show(["1", "2", "3"])
    watched.wait_for(1)
    assert watched.monitor().step() == 1
    watched.show(["3", "4", "4", "5"])
    watched.show(["5", "1"])
    assert watched.monitor().step() == 2
    text = watched.metrics()
    assert metric(text, "srp4ctr_shown_items_total") == 5
    assert metric(text, "srp4ctr_duplicate_items_total") == 4
    expected = sum(scores[item_id] for item_id in ("1", "2", "3", "4", "5"))
    assert metric(text, "srp4ctr_expected_clicks_total") == pytest.approx(expected, rel=1e-6)
    assert metric(text, NOT_MATCHED, reason="no_answer") == 0


def test_what_was_shown_before_it_was_answered_is_not_matched(watch):
    """A little before is what clocks are apart; more says that something is wrong with the impression."""
    watched = watch()
    watched.score()
    watched.show(["1"], ago_ms=1000 * (CLOCKS_APART_S + 30))
    watched.show(["2"], ago_ms=1000 * (CLOCKS_APART_S - 30))
    watched.wait_for(1)
    watched.monitor().step()
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 1
    assert metric(watched.metrics(), NOT_MATCHED, reason="before_answer") == 1


def test_of_many_impressions_only_some_are_read_at_once(watch):
    """However many wait, all are judged, and no look takes more than its part of them into memory."""
    watched = watch()
    watched.score()
    waiting = 2 * EACH + 1
    for _ in range(waiting):
        watched.show(["1"])
    watched.wait_for(1)
    until_ms = watched.feedback.reported_before(-1)
    assert len(watched.feedback.due(until_ms, range(PARTITIONS))) == EACH
    assert watched.monitor().step() == waiting
    assert metric(watched.metrics(), "srp4ctr_duplicate_items_total") == waiting - 1


def test_an_answer_that_was_not_asked_for_is_not_read(watch):
    """What a look costs is up to what is to be judged, not to all that is kept of the partition."""
    watched = watch()
    for number in range(5):
        watched.score(request_id=f"r-{number}")
    watched.show(["1"], request_id="r-3")
    watched.wait_for(5)
    (due,) = watched.feedback.due(watched.feedback.reported_before(-1), range(PARTITIONS))
    assert due.answer.request_id == "r-3"
    before = watched.redis.info("commandstats")["cmdstat_xrange"]["calls"]
    watched.feedback.due(watched.feedback.reported_before(-1), [due.partition])
    after = watched.redis.info("commandstats")["cmdstat_xrange"]["calls"]
    assert after - before == 2


def test_nothing_is_judged_before_its_window_is_over(watch):
    """A click may still come until then."""
    watched = watch()
    watched.score()
    watched.show(["1"])
    watched.wait_for(1)
    monitor = Monitor(watched.feedback, watched.events, WINDOW_S, Clicks(""), watched.quality)
    assert monitor.step() == 0
    assert watched.kept(watched.keys.shown) == 1


def test_two_monitors_share_the_impressions(watch):
    """What one has taken, another is not given."""
    watched = watch()
    for number in range(5):
        watched.score(request_id=f"r-{number}")
        watched.show(["1"], request_id=f"r-{number}")
    watched.wait_for(5)
    until_ms = watched.feedback.reported_before(-1)
    seen = watched.feedback.due(until_ms, range(PARTITIONS))
    assert watched.monitor().step() == 5
    # Another that had seen them before they were taken.
    assert watched.feedback.take([(due, [0]) for due in seen]) == []
    assert watched.monitor().step() == 0


def test_every_process_decides_alike_which_answers_are_monitored(watch):
    """Of a share, the impressions that are kept are those whose answers are."""
    watched = watch(share=0.4)
    kept = 0
    for number in range(100):
        watched.score(user_id=str(number), request_id=f"r-{number}")
        kept += watched.show(["1", "2"], user_id=str(number), request_id=f"r-{number}")
    assert 20 < kept < 60
    watched.wait_for(kept)
    watched.monitor().step()
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 2 * kept
    assert metric(watched.metrics(), NOT_MATCHED, reason="no_answer") == 0
    bins = watched.api.get("/metrics").text
    counted = [
        sample.value
        for family in text_string_to_metric_families(bins)
        for sample in family.samples
        if sample.name == "srp4ctr_scores_total"
    ]
    assert sum(counted) == kept * len(ITEMS)


def test_by_default_nothing_is_kept(watch):
    """Answers are kept with users' ids: somebody has to have asked for it."""
    watched = watch(share=0)
    watched.score()
    assert watched.show(["1"]) == 0
    time.sleep(1.5)
    assert watched.kept(watched.keys.shown) == watched.kept(watched.keys.answered) == 0


def test_forgetting_a_user_removes_what_is_monitored(watch):
    """And nothing of anybody else, even in the same partition's streams."""
    watched = watch()
    for user_id in ("7", "8"):
        watched.score(user_id)
        watched.show(["1"], user_id)
    watched.wait_for(2)
    assert watched.api.delete("/users/7").json()["removed"] == 2
    assert watched.kept(watched.keys.answered) == watched.kept(watched.keys.shown) == 1
    assert sum(watched.redis.hlen(watched.keys.answers(number)) for number in range(PARTITIONS)) == 1


def test_a_user_who_is_asked_for_again_and_again_takes_bounded_room(watch):
    """Streams give their oldest entries up, which is counted, and go by themselves where nobody looks at them."""
    watched = watch(monitored_max_mb=16)
    asked = 60
    for number in range(asked):
        watched.score(request_id=f"r-{number}")
        watched.show(["1"], request_id=f"r-{number}")

    def pushed_out():
        return metric(watched.api.get("/metrics").text, "srp4ctr_pushed_out_total", kind="answer")

    limit = time.monotonic() + 20
    while watched.kept(watched.keys.answered) + pushed_out() < asked:
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert 0 < pushed_out() < asked
    (stream,) = (
        one for number in range(PARTITIONS) if watched.redis.exists(one := watched.keys.answered(number))
    )
    assert watched.redis.memory_usage(stream) <= 16_000_000 / PARTITIONS / 2
    assert 0 < watched.redis.ttl(stream) <= 86_400
    watched.monitor().step()
    assert metric(watched.metrics(), NOT_MATCHED, reason="no_answer") == pushed_out()
    (noted,) = (
        one for number in range(PARTITIONS) if watched.redis.exists(one := watched.keys.answers(number))
    )
    assert watched.redis.hlen(noted) == watched.redis.xlen(stream)
    assert (
        watched.redis.memory_usage(stream) + watched.redis.memory_usage(noted) <= 16_000_000 / PARTITIONS / 2
    )
    assert 0 < watched.redis.ttl(noted) <= 86_400


def test_damaged_data_of_one_user_does_not_stop_the_monitor(watch):
    """What cannot be read is counted and removed, and everybody else is judged."""
    watched = watch()
    for user_id in ("7", "8", "9"):
        watched.score(user_id)
        watched.show(["1", "2"], user_id)
    watched.wait_for(3)
    watched.redis.set(watched.keys.history("8"), b"no history")
    (damaged,) = watched.redis.xrange(watched.keys.shown(partition("9")))
    watched.redis.xdel(watched.keys.shown(partition("9")), damaged[0])
    watched.redis.xadd(watched.keys.shown(partition("9")), {**damaged[1], b"items": b"[no"})
    assert watched.monitor().step() == 3
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 2
    assert metric(watched.metrics(), "srp4ctr_unreadable_impressions_total") == 2
    assert watched.kept(watched.keys.shown) == 0


def test_what_could_not_be_looked_up_is_judged_later(watch, redis_server):
    """While Redis is away nothing is taken, and nothing is lost."""
    watched = watch()
    watched.score()
    watched.show(["1", "2"])
    watched.wait_for(1)
    monitor = watched.monitor()
    redis_server.kill()
    with pytest.raises(StoreUnavailable):
        monitor.step()
    redis_server.start()
    assert monitor.step() == 1
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 2


def test_answers_are_kept_again_when_what_was_wrong_in_redis_is_mended(watch):
    """What lies where answers belong costs those that could not be kept, which are counted, and no later ones."""
    watched = watch()
    stream = watched.keys.answered(partition("7"))
    watched.redis.set(stream, b"no stream")

    def dropped():
        return metric(watched.api.get("/metrics").text, "srp4ctr_monitored_total", outcome="dropped")

    watched.score()
    limit = time.monotonic() + 20
    while dropped() != 1:
        assert time.monotonic() < limit
        time.sleep(0.05)
    watched.redis.delete(stream)
    watched.score()
    watched.wait_for(1)


@pytest.mark.parametrize(
    "change",
    [
        {b"items": b'["1"]'},
        {b"items": b'{"1": 2}'},
        {b"items": b"[[1], [2]]"},
        {b"scores": b"abc"},
        {b"at": b"today"},
    ],
)
def test_a_damaged_answer_does_not_stop_the_monitor(watch, change):
    """Its impressions are counted as unreadable and removed, and everybody else is judged."""
    watched = watch()
    for user_id in ("7", "8"):
        watched.score(user_id)
        watched.show(["1", "2"], user_id)
    watched.wait_for(2)
    stream, noted = watched.keys.answered(partition("8")), watched.keys.answers(partition("8"))
    ((entry, fields),) = watched.redis.xrange(stream)
    watched.redis.xdel(stream, entry)
    ((name, _),) = watched.redis.hgetall(noted).items()
    watched.redis.hset(noted, name, watched.redis.xadd(stream, fields | change))
    assert watched.monitor().step() == 2
    assert metric(watched.metrics(), "srp4ctr_shown_items_total") == 2
    assert metric(watched.metrics(), "srp4ctr_unreadable_impressions_total") == 1
    assert watched.kept(watched.keys.shown) == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"item_ids": []}, "impressions[0].item_ids"),
        ({"item_ids": ["a\0b"]}, "impressions[0].item_ids[0]"),
        ({"user_id": "a\0b"}, "impressions[0].user_id"),
        ({"request_id": ""}, "impressions[0].request_id"),
        ({"timestamp_ms": 0}, "impressions[0].timestamp_ms"),
        ({"timestamp_ms": 4_000_000_000_000}, "impressions[0].timestamp_ms"),
        ({"position": 1}, "impressions[0].position"),
    ],
)
def test_a_wrong_impression_is_refused_by_its_field(shared_api, change, field):
    """The problem names the field."""
    one = {"request_id": "r", "user_id": "1", "item_ids": ["1"], "timestamp_ms": 1} | change
    answer = shared_api.post("/impressions", json={"impressions": [one]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("rule", "after_ms", "clicked"),
    [
        ("", 0, True),
        ("", -1, False),
        ("", 1000 * WINDOW_S, True),
        ("", 1000 * WINDOW_S + 1, False),
        ("rating=4,5", 10, True),
        ("rating=5.0", 10, True),
        ("kind=a b,c", 10, True),
        ("tags=y", 10, True),
        ("tags=z", 10, False),
        ("rating=1", 10, False),
        ("missing=1", 10, False),
    ],
)
def test_an_event_is_a_click_within_the_window_and_by_the_rule(rule, after_ms, clicked):
    """Attribution: of that item, not before it was shown, and not too long after."""
    shown = ShownItems("7", "r", 1_000_000, ["1", "2"])
    answer = MonitoredAnswer("7", "r", 1_000_000, "v", ["2", "1"], np.array([0.25, 0.75], np.float32))
    events = [
        RawEvent(1_000_000 + after_ms, "e", "1", {"rating": 5, "kind": "a b", "tags": ["x", "y"]}),
        RawEvent(1_000_001, "f", "3", {}),
    ]
    judged = judge(shown, answer, places_of(shown, answer), events, 1000 * WINDOW_S, Clicks(rule))
    assert judged == [("v", 0.75, clicked), ("v", 0.25, False)]


def test_a_rule_that_is_none_is_refused(monkeypatch):
    """The setting is named."""
    monkeypatch.setenv("SRP4CTR_MONITOR_CLICKS", "rating")
    with pytest.raises(ConfigError, match="SRP4CTR_MONITOR_CLICKS"):
        read_settings(MonitorSettings)


def test_the_command_serves_metrics_and_stops_in_order(settings, tmp_path):
    """`srp4ctr monitor` answers Prometheus, waits for a Redis that is away, and ends with 0."""
    port = free_port()
    variables = {
        "SRP4CTR_REDIS_URL": settings.redis_url,
        "SRP4CTR_VAR_DIR": str(tmp_path),
        "SRP4CTR_MONITOR_PORT": str(port),
    }
    command = [sys.executable, "-m", "srp4ctr.cli", "monitor"]
    with subprocess.Popen(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert '"monitoring"' in process.stdout.readline()
            text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            assert metric(text, "srp4ctr_shown_items_total") == 0
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
