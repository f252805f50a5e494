"""The load test asks like a ranking system, notices every wrong answer, and reports what it measured and how."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import orjson
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from srp4ctr.contract.errors import ConfigError, DataError, ServiceNotReady, StoreError
from srp4ctr.contract.http_types import BatchRequest, EventsRequest, RankRequest, ScoreRequest
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr_loadtest.freshness.publishing import publish
from srp4ctr_loadtest.freshness.workplace import Cores, Workplace
from srp4ctr_loadtest.load.__main__ import main
from srp4ctr_loadtest.load.alone import Alone, questions_alone
from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.checks import (
    Versions,
    WrongAnswer,
    check_batch,
    check_events,
    check_impressions,
    check_rank,
    check_scores,
    is_refusal,
)
from srp4ctr_loadtest.load.open_loop import OpenLoop, Pool, open_loop
from srp4ctr_loadtest.load.population import Population
from srp4ctr_loadtest.load.replay import read_questions
from srp4ctr_loadtest.load.results import Results
from srp4ctr_loadtest.load.routes import Asked, by_routes
from srp4ctr_loadtest.load.saturation import search
from srp4ctr_loadtest.load.server import Use, Watch
from srp4ctr_loadtest.load.settings import LoadSettings, read_load_settings
from srp4ctr_loadtest.load.settings_document import document
from srp4ctr_loadtest.load.shapes import users_at
from srp4ctr_loadtest.load.workload import Question, Workload, Zipf

POPULATION = Population(
    "v1",
    [f"u{number}" for number in range(50)],
    [f"i{number}" for number in range(300)],
    {"hour": ["1", "2"], "age": [0.5]},
    {"event_type": ["click", "buy"]},
)
BRIEF = [
    "--rates",
    "",
    "--search-s",
    "0",
    "--confirm-s",
    "1",
    "--seconds",
    "2",
    "--users",
    "3",
    "--candidates",
    "3,5",
    # Most servers of these tests count what they are asked.
    "--alone-share",
    "0",
]
PROBLEM = b'{"type": "/problems/overloaded"}'


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("SRP4CTR_LOADTEST_")]:
        monkeypatch.delenv(name)


@contextmanager
def server(answer, versions=("v1",), metrics=None):
    """A service whose POST requests are answered by `answer(path, request id, content)`, a status and a body or its content.

    GET /model tells the versions one after the other, then the last; GET /metrics the next of `metrics`. Gives its address.
    """
    told = list(versions)

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        body = b""
        while (part := await receive())["type"] == "http.request":
            body += part["body"]
            if not part["more_body"]:
                break
        if scope["method"] == "GET":
            version = told.pop(0) if len(told) > 1 else told[0]
            model = {"version": version, "state": "tokens", "items": 300}
            status, content = (200, model) if scope["path"] == "/model" else (404, {})
            if scope["path"] == "/metrics" and metrics is not None:
                status, content = 200, next(metrics)
        else:
            request_id = dict(scope["headers"])[b"x-request-id"].decode()
            status, content = await answer(scope["path"], request_id, orjson.loads(body))
        data = content if isinstance(content, bytes) else orjson.dumps(content)
        headers = [(b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    running = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        give_up_at = time.monotonic() + 20
        while not running.started:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def right(path, request_id, content):
    """What a service answers; of users whom nobody knows as it should."""
    if path == "/events":
        return {"request_id": request_id, "stored": len(content["events"]), "duplicates": [], "too_old": []}
    return {
        "request_id": request_id,
        "model_version": "v1",
        "scores": [0.5] * len(content["item_ids"]),
        "user_state": {"status": "cold" if content["user_id"].startswith("nobody-") else "fresh"},
        "tier": "full",
        "degraded": [],
        "unknown_items": [],
    }


def requests(rank_share=0.0, batch_share=0.0, **settings):
    """What an open loop asks, of two candidates where nothing else is said."""
    workload = Workload(POPULATION, LoadSettings(**{"candidates": "2"} | settings), 0)
    return by_routes(iter(workload.question, None), rank_share, batch_share, 0)


@pytest.fixture
def population(tmp_path):
    """A file of a few users and items."""
    path = tmp_path / "population.json"
    POPULATION.write(path)
    return path


@pytest.fixture
def run(population, tmp_path, capsys):
    """Run the command against an address: its exit code and load.json."""

    def command(url, *options, population=population):
        out = tmp_path / "out"
        asked = ["--url", url, "--out", str(out), *BRIEF, *options]
        code = main([*asked, *(["--population", str(population)] if population else [])])
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        content = json.loads((out / "load.json").read_bytes())
        assert told["failures"] == content["failures"]
        return code, content

    return command


@pytest.fixture(scope="module")
def workplace(tiny, tmp_path_factory):
    """A deployment with the small version active."""
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("READ", "SCORE"):
            patch.setenv(f"SRP4CTR_REDIS_{limit}_TIMEOUT_MS", "20000")
        with Workplace.open(tmp_path_factory.mktemp("place") / "load", Cores.available()) as place:
            own = place.take_in(tiny.bundle.folder, tiny.run)
            publish(place, tiny.bundle.manifest.version, own)
            place.command("activate", tiny.bundle.manifest.version, "--no-gate")
            yield place


@pytest.fixture
def deployment(workplace, monkeypatch):
    """The same, named by this process's environment."""
    for name, value in workplace.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SRP4CTR_DEADLINE_MS", "20000")
    return workplace


def test_a_service_is_started_asked_and_reported(tiny, deployment, tmp_path, capsys) -> None:
    """Everything is measured, each loop says which it is, users act, and the deployment's own Redis is as before."""
    before = deployment.client.dbsize(), deployment.client.info("commandstats").get("cmdstat_xadd")
    options = ["--seconds", "4", "--users", "3", "--candidates", "5,20", "--events-share", "0.5"]
    options += ["--alone-share", "0.4", "--rank-share", "0.3", "--batch-share", "0.3"]
    options += [
        "--cold-share",
        "0.3",
        "--rates",
        "15,30",
        "--rate-s",
        "1",
        "--budget-ms",
        "10000",
    ]
    options += [
        "--search-s",
        "0.5",
        "--search-from",
        "20",
        "--search-to",
        "40",
        "--confirm-s",
        "0.75",
        "--out",
        str(tmp_path),
    ]
    assert main(options) == 0
    printed = capsys.readouterr().out.splitlines()
    content = json.loads((tmp_path / "load.json").read_bytes())
    assert (content["failures"], content["rps_at_budget"], content["budget_ms"]) == ({}, 40, 10_000)
    closed = content["closed_loop"]
    assert (closed["loop"], closed["by"], closed["failed"]) == ("closed", "locust", 0)
    assert closed["routes"]["/events"]["requests"] > 0
    assert closed["routes"]["/score"]["requests"] == sum(closed["states"].values())
    assert {"cold", "fresh"} <= set(closed["states"])
    assert closed["requests"] == sum(row["requests"] for row in closed["over_time"])
    assert max(row["users"] for row in closed["over_time"]) == 3
    assert set(closed["alone"]) == {"same"}
    assert 0 < closed["alone"]["same"] < closed["routes"]["/score"]["requests"]
    assert [one["rate_rps"] for one in content["open_loop"]] == [15, 30]
    for one in content["open_loop"]:
        assert one["loop"] == "open"
        assert one["requests"] == one["rate_rps"]
        assert set(one["routes"]) == {"/score", "/rank", "/score/batch"}
        assert set(one["alone"]) == {"same"}
        assert 0 < one["p50_ms"] <= one["p99_ms"] <= one["p999_ms"]
    steps = [(step["rate_rps"], step["seconds"]) for step in content["saturation"]["steps"]]
    assert steps == [(20, 0.5), (40, 0.5), (40, 0.75)]
    assert content["server"]["source"] == "processes"
    assert closed["server"]["cpu_cores_mean"] > 0
    assert closed["server"]["memory_mb_max"] > 20
    assert tiny.bundle.manifest.version in content["about"]["model"]
    assert before == (
        deployment.client.dbsize(),
        deployment.client.info("commandstats").get("cmdstat_xadd"),
    )
    assert not deployment.client.exists(*(deployment.keys.sequence(user) for user in tiny.user_ids[:5]))
    assert not (deployment.folder / "loadtest").exists()
    pictures = sorted(path.name for path in (tmp_path / "load").iterdir())
    assert pictures == ["over-time.png", "saturation.png", "server.png"]
    page = (tmp_path / "load.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "40 requests/s at p99 &lt;= 10000 ms" in page
    assert "kept for 0.75 s" in page
    assert "<td>  /events</td>" in page
    assert "answers compared with what the user was answered alone" in page
    assert "Closed loop:" in page
    assert "Open loop:" in page
    told = json.loads(printed[-1])
    assert (told["benchmark"], told["rps_at_budget"]) == ("load", 40)


def test_users_items_and_features_are_those_of_the_active_version(tiny, deployment, tmp_path) -> None:
    """What is written for elsewhere is read there; features held at a reference are not given."""
    path = tmp_path / "here" / "population.json"
    assert main(["--write-population", str(path)]) == 0
    found = Population.read(path)
    assert found == Population.active(StoreSettings())
    assert found.version == tiny.bundle.manifest.version
    assert (list(found.users), sorted(found.items)) == (tiny.user_ids, tiny.item_ids)
    assert set(found.context) == {"hour", "device"}
    assert set(found.behaviours) == {"event_type", "dwell_seconds"}
    assert "click" in found.behaviours["event_type"]
    deployment.client.flushall()
    with pytest.raises(StoreError, match="no version is active"):
        Population.active(StoreSettings())


def test_wrong_answers_fail_the_run_by_name(run) -> None:
    """Scores of another length and another request's id are counted apart, in closed and open loops; the exit code says it."""
    asked = Counter()

    async def answer(path, request_id, content):
        asked[path] += 1
        found = right(path, request_id, content)
        if asked[path] % 3 == 1:
            found["scores"] = found["scores"][1:]
        if asked[path] % 3 == 2:
            found["request_id"] += "x"
        return 200, found

    with server(answer) as url:
        code, content = run(url, "--events-share", "0", "--rates", "30", "--rate-s", "0.5")
    assert code == 1
    names = {"wrong answer: not as many scores as items", "wrong answer: another request's id"}
    assert set(content["failures"]) == names
    for one in (content["closed_loop"], content["open_loop"][0]):
        assert set(one["errors"]) == names
        assert 0 < one["failed"] < one["requests"]


def test_a_service_that_stops_answering_fails_the_run(run) -> None:
    """Open loops that nobody answers are no result: the run fails, and no rate is told."""
    over = threading.Event()

    async def answer(path, request_id, content):
        if content["deadline_ms"] == 77 and not over.is_set():
            await asyncio.sleep(3)
        return 200, right(path, request_id, content)

    with server(answer) as url:
        options = ["--seconds", "0", "--deadline-ms", "77", "--timeout-s", "0.2", "--search-from", "4"]
        code, content = run(url, *options, "--rates", "5", "--rate-s", "0.5", "--search-s", "0.5")
        over.set()
    assert code == 1
    assert content["rps_at_budget"] is None
    assert content["failures"]["no answer: timeout"] > 0
    assert content["failures"]["no answer in a whole step of the search"] > 0
    assert content["failures"]["no right answer in a whole loop"] > 0


def test_a_service_that_only_refuses_fails_the_run(run) -> None:
    """However much is accepted: a loop of refusals alone has measured nothing."""

    async def answer(_path, _request_id, _content):
        return 503, PROBLEM

    with server(answer) as url:
        code, content = run(url, "--accept-refusals", "--rates", "20", "--rate-s", "0.5")
    assert code == 1
    assert set(content["failures"]) == {"no right answer in a whole loop"}


def scored(user):
    """Scores of three candidates that hardly another user has."""
    return [(sum(user.encode()) % 97) / 100] * 3


def test_an_answer_that_is_another_users_fails_the_run(run) -> None:
    """A known user who is given another's scores under load is noticed, in closed and open loops; right ones are counted."""
    before = {}

    async def answer(path, request_id, content):
        found = right(path, request_id, content)
        user = content["user_id"]
        # Each is asked alone first. Later every second gets what the one before got.
        mixed = not request_id.startswith("alone-") and len(before) % 2
        before[request_id] = user
        asked = list(before.values())
        return 200, found | {"scores": scored(asked[-2] if mixed and len(asked) > 1 else user)}

    options = [
        "--events-share",
        "0",
        "--alone-share",
        "0.5",
        "--candidates",
        "3",
        "--rates",
        "40",
        "--rate-s",
        "1",
    ]
    with server(answer) as url:
        code, content = run(url, *options)
    name = "wrong answer: scores that the user was not answered alone"
    assert code == 1
    assert set(content["failures"]) == {name}
    for one in (content["closed_loop"], content["open_loop"][0]):
        assert one["errors"][name] > 0
        assert one["alone"]["same"] > 0
    # No id is used twice, neither in a loop nor by the next.
    assert len(before) > content["closed_loop"]["requests"] + 40


def test_a_user_who_has_acted_may_be_answered_otherwise() -> None:
    """Other scores are right from a state that was encoded since, and from another version, where they are given alone, too."""
    told = {}

    async def answer(path, request_id, content):
        return 200, right(path, request_id, content) | told

    def state(age_ms, **others):
        return {"user_state": {"status": "fresh", "age_ms": age_ms, **others}}

    def seen(scores, **others):
        return right("/score", "r", asked) | told | {"scores": scores} | others

    asked = {"user_id": "1", "item_ids": ["1", "2"]}
    question = Question(orjson.dumps(asked), "1", ["1", "2"])
    with server(answer) as url:
        told |= state(60_000)
        alone = Alone(url, {}, [question])
        assert alone.check(question, seen([0.5, 0.500001])) == "same"
        assert alone.check(question, seen([0.1, 0.1], degraded=["deadline"])) == "not compared"
        assert alone.check(Question(b"{}", "1", ["1"]), seen([0.1])) is None
        for other in ([0.5, 0.4], [0.4, 0.5]):
            with pytest.raises(WrongAnswer, match="not answered alone"):
                alone.check(question, seen(other))
        # The same scores again, but nothing was encoded that could be why.
        told |= {"scores": [0.4, 0.4]}
        with pytest.raises(WrongAnswer, match="not answered alone"):
            alone.check(question, seen([0.4, 0.4]))
        told |= state(0)
        assert alone.check(question, seen([0.4, 0.4])) == "renewed"
        assert alone.check(question, seen([0.4, 0.4])) == "same"
        told |= {"model_version": "v2", "scores": [0.3, 0.3]}
        assert alone.check(question, seen([0.3, 0.3])) == "same"
        # A state that is about to be another is nothing to compare with.
        told |= state(0, events_behind=1)
        assert Alone(url, {}, [question]).check(question, seen([0.3, 0.3])) is None
    assert alone.check(question, seen([0.9, 0.9])) == "not compared"
    assert alone.check(question, seen([0.9, 0.9])) is None


def test_who_is_asked_alone_does_nothing() -> None:
    """The scores of these users stay what they are: no event is made of them; the same settings ask the same, of known users."""
    settings = LoadSettings(events_share=1, cold_share=0, alone_share=0.5)
    alone = questions_alone(POPULATION, settings)
    assert alone == questions_alone(POPULATION, settings)
    users = {one.user_id for one in alone}
    assert len(users) == len(alone) == 12
    assert users < set(POPULATION.users)
    workload = Workload(POPULATION, settings, 1, alone)
    acted = set()
    for _ in range(200):
        question = workload.question()
        acts = workload.events(question, [0.1] * len(question.item_ids))
        assert (acts is None) == (question.user_id in users)
        acted.add(acts is None)
    assert acted == {True, False}
    assert questions_alone(POPULATION, LoadSettings(alone_share=0)) == []


def test_requests_under_way_in_the_end_are_waited_for(run) -> None:
    """Answers that take longer than the closed loop are counted, and a loop that nobody answers in time fails by its requests."""

    async def answer(path, request_id, content):
        await asyncio.sleep(1.5)
        return 200, right(path, request_id, content)

    options = ["--seconds", "1", "--users", "3", "--events-share", "0"]
    with server(answer) as url:
        code, content = run(url, *options)
        assert (code, content["closed_loop"]["requests"], content["closed_loop"]["failed"]) == (0, 3, 0)
        code, content = run(url, *options, "--timeout-s", "0.7")
    closed = content["closed_loop"]
    assert code == 1
    assert closed["requests"] == closed["failed"] >= 3
    assert content["failures"]["no right answer in a whole loop"] == closed["requests"]


def test_a_loop_in_which_no_request_ended_fails() -> None:
    """Nothing asked is nothing answered: the run fails and says so."""
    results = Results({}, LoadSettings(), Use(None), closed=Answers("closed", 1.0))
    assert results.failures() == {"no right answer in a whole loop": 1}
    assert "no right answer in a whole loop" in results.as_json()["failures"]


@pytest.mark.parametrize("accept", [False, True])
def test_refusals_fail_a_run_unless_they_are_accepted(run, accept) -> None:
    """503 with a problem is what a service may say: counted always, and a failure only where it is not accepted."""
    refused = []

    async def answer(path, request_id, content):
        if content.get("user_id") == "u1":
            refused.append(path)
            return 503, PROBLEM
        return 200, right(path, request_id, content)

    with server(answer) as url:
        options = ["--accept-refusals"] if accept else []
        code, content = run(url, *options, "--user-skew", "0", "--users", "8", "--think-ms", "1")
    assert refused
    assert content["closed_loop"]["errors"] == {"503 /problems/overloaded": len(refused)}
    assert code == (0 if accept else 1)
    assert content["server"] is None


def test_a_log_is_replayed_in_its_order(run, tmp_path) -> None:
    """Records and plain requests are sent as they stand, nothing else is, and over and over."""
    lines = [
        {"user_id": "a", "item_ids": ["1", "2"], "context": {"hour": 3}, "deadline_ms": 70},
        {"user_id": "b", "item_ids": ["9"]},
    ]
    log = tmp_path / "log.jsonl"
    record = {"at_ms": 5, "status": "fresh", "request": lines[1]}
    log.write_bytes(orjson.dumps(lines[0]) + b"\n" + orjson.dumps(record) + b"\n")
    seen = []

    async def answer(path, request_id, content):
        seen.append((path, content))
        return 200, right(path, request_id, content)

    with server(answer) as url:
        code, content = run(url, "--replay", str(log), "--users", "1", "--seconds", "1", population=None)
    assert code == 0
    assert len(seen) > 4
    assert [body for _, body in seen] == [lines[place % 2] for place in range(len(seen))]
    assert {path for path, _ in seen} == {"/score"}
    assert str(log) in content["about"]["asked"]


def test_a_log_that_is_none_names_its_line(tmp_path) -> None:
    """A line that is no request, and a log without any, are errors that say where."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"user_id": "a", "item_ids": ["1"]}\n{"user_id": "a", "items": 3}\n')
    with pytest.raises(DataError, match=r"log\.jsonl:2: no request: item_ids"):
        read_questions(log)
    log.write_text("{")
    with pytest.raises(DataError, match=r"log\.jsonl:1: no JSON"):
        read_questions(log)
    log.write_text("")
    with pytest.raises(DataError, match="no requests"):
        read_questions(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")


@pytest.mark.skipif("SRP4CTR_TEST_DATA" not in os.environ, reason="SRP4CTR_TEST_DATA names no folder of data")
def test_the_impressions_of_mind_are_a_log() -> None:
    """Each impression is a question, its news in the order of what was shown."""
    path = Path(os.environ["SRP4CTR_TEST_DATA"]) / "mind-small-5k" / "impressions.parquet"
    questions = read_questions(path, deadline_ms=50)
    first = ScoreRequest.model_validate_json(questions[0].body)
    assert (first.user_id, first.item_ids[:2], first.deadline_ms) == ("49985", ["20602", "50059"], 50)
    assert len(questions) > 1000
    assert all(question.item_ids and not question.cold for question in questions)


def test_impressions_are_questions_in_the_order_of_the_table(tmp_path) -> None:
    """Rows of an impression are its candidates; a table that lacks a column is an error."""
    import polars as pl

    path = tmp_path / "impressions.parquet"
    table = pl.DataFrame({"impression_id": [7, 7, 3], "user_id": [1, 1, 2], "item_id": [5, 4, 6]})
    table.write_parquet(path)
    assert [(one.user_id, one.item_ids) for one in read_questions(path)] == [("1", ["5", "4"]), ("2", ["6"])]
    table.drop("user_id").write_parquet(path)
    with pytest.raises(DataError, match="holds no impressions"):
        read_questions(path)


@given(
    least=st.integers(1, 60),
    more=st.integers(0, 400),
    skew=st.floats(0, 2),
    cold=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_questions_are_valid_whatever_the_settings(least, more, skew, cold, seed) -> None:
    """Candidates differ, are as many as were wanted or all that there are; what is asked and told is of the contract."""
    settings = LoadSettings(
        candidates=f"{least}-{least + more}", item_skew=skew, cold_share=cold, events_share=1, deadline_ms=9
    )
    workload = Workload(POPULATION, settings, seed)
    for _ in range(5):
        question = workload.question()
        asked = ScoreRequest.model_validate_json(question.body)
        assert len(set(asked.item_ids)) == len(asked.item_ids)
        assert min(least, 300) <= len(asked.item_ids) <= least + more
        assert asked.item_ids == question.item_ids
        assert question.cold == (asked.user_id not in POPULATION.users)
        assert asked.context["hour"] in POPULATION.context["hour"]
        scores = np.random.default_rng(seed).random(len(asked.item_ids))
        acts = workload.events(question, scores.tolist())
        assert (acts is None) == question.cold
        if acts is not None:
            best = [question.item_ids[place] for place in np.argsort(scores)[::-1][:10]]
            for event in EventsRequest.model_validate_json(acts).events:
                assert event.user_id == question.user_id
                assert event.item_id in best
                assert event.features["event_type"] in ("click", "buy")


def test_few_are_asked_for_often() -> None:
    """Frequencies follow Zipf's law, and who is popular does not depend on the user of locust who asks."""
    random = np.random.default_rng(1)
    counts = Counter(Zipf(100, 1.0, np.random.default_rng(0)).draw(random, 100_000).tolist())
    harmonic = sum(1 / k for k in range(1, 101))
    found = [count for _, count in counts.most_common()]
    for k in (1, 2, 5, 10):
        assert found[k - 1] == pytest.approx(100_000 / (k * harmonic), rel=0.1)
    settings = LoadSettings(user_skew=1.5, cold_share=0.2)
    first = []
    for seed in (1, 2):
        users = Counter()
        workload = Workload(POPULATION, settings, seed)
        questions = [workload.question() for _ in range(1000)]
        users.update(one.user_id for one in questions if not one.cold)
        first.append(users.most_common(1)[0][0])
        assert sum(one.cold for one in questions) == pytest.approx(200, rel=0.3)
        sizes = [len(one.item_ids) for one in questions]
        assert 150 < np.median(sizes) < 260
        assert min(sizes) >= 50
    assert first[0] == first[1]


def test_events_of_users_are_never_the_same() -> None:
    """Event ids differ between users of locust and between runs, or Redis would take them for duplicates."""
    settings = LoadSettings(events_share=1, cold_share=0)
    ids = []
    for seed in (1, 2, 1):
        workload = Workload(POPULATION, settings, seed)
        for _ in range(5):
            question = workload.question()
            told = orjson.loads(workload.events(question, [0.1] * len(question.item_ids)))
            ids += [event["event_id"] for event in told["events"]]
    assert len(set(ids)) == len(ids)


def test_requests_go_by_several_routes() -> None:
    """Shares of the requests are as wanted, of the contract, and no question is lost; a batch has the deadline of its users."""
    wanted = list(itertools.islice(requests(0.3, 0.2, deadline_ms=40), 1000))
    counts = Counter(one.route for one in wanted)
    assert counts["/rank"] == pytest.approx(300, rel=0.2)
    assert counts["/score/batch"] == pytest.approx(200, rel=0.2)
    assert counts.total() == 1000
    kinds = {"/score": ScoreRequest, "/rank": RankRequest, "/score/batch": BatchRequest}
    sent = []
    for one in wanted:
        request = kinds[one.route].model_validate_json(one.body)
        assert request.deadline_ms == 40
        users = request.requests if one.route == "/score/batch" else [request]
        assert [(user.user_id, user.item_ids) for user in users] == [
            (question.user_id, question.item_ids) for question in one.questions
        ]
        sent += one.questions
    workload = Workload(POPULATION, LoadSettings(candidates="2", deadline_ms=40), 0)
    assert sent == [workload.question() for _ in sent]
    with pytest.raises(ConfigError, match="1 together"):
        read_load_settings({"rank_share": "0.6", "batch_share": "0.6"})


def test_wrong_rankings_and_batches_are_noticed() -> None:
    """Items that were not asked for, another order, and an answer too few are wrong; a right ranking is told in the question's order."""
    questions = [Question(b"", "1", ["a", "b"]), Question(b"", "2", ["c"])]

    async def never(*_):
        raise AssertionError

    with server(never) as url:
        versions = Versions(url, {})
        ranked = right("/rank", "r", {"user_id": "1", "item_ids": ["b", "a"]})
        ranked |= {"item_ids": ["b", "a"], "scores": [0.9, 0.2]}
        [(_, found)] = Asked("/rank", b"", questions[:1]).check("r", orjson.dumps(ranked), versions)
        assert found["scores"] == [0.2, 0.9]
        for change, wrong in (
            ({"item_ids": ["b", "c"]}, "other items"),
            ({"item_ids": ["b", "b"]}, "other items"),
            ({"scores": [0.2, 0.9]}, "likeliest first"),
            ({"scores": [0.9]}, "not as many scores"),
            ({"scores": [1.9, 0.2]}, "no probability"),
        ):
            with pytest.raises(WrongAnswer, match=wrong):
                check_rank(questions[0], "r", orjson.dumps(ranked | change), versions)
        head = {"request_id": "r", "model_version": "v1", "items_revision": None}
        parts = [
            right("", "r", {"user_id": one.user_id, "item_ids": one.item_ids})
            | {"scores": [0.1 * len(one.user_id)] * len(one.item_ids)}
            for one in questions
        ]
        found = Asked("/score/batch", b"", questions).check(
            "r", orjson.dumps(head | {"answers": parts}), versions
        )
        assert [(one.user_id, answer["model_version"]) for one, answer in found] == [("1", "v1"), ("2", "v1")]
        for wrong in (parts[:1], parts[::-1], None, [1, 2], [{}, {}]):
            with pytest.raises(WrongAnswer):
                check_batch(questions, "r", orjson.dumps(head | {"answers": wrong}), versions)


def test_shapes() -> None:
    """Users over time, of ten at most."""
    parts = [0.0, 0.3, 0.45, 0.7, 0.99]
    assert [users_at("steady", 10, part) for part in parts] == [10] * 5
    assert [users_at("ramp", 10, part) for part in parts] == [1, 3, 5, 7, 10]
    assert [users_at("step", 10, part) for part in parts] == [3, 5, 5, 8, 10]
    assert [users_at("spike", 10, part) for part in parts] == [3, 3, 10, 3, 3]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"scores": [0.5]}, "not as many scores"),
        ({"scores": None}, "not as many scores"),
        ({"scores": [0.5, 1.2]}, "no probability"),
        ({"scores": [0.5, None]}, "no probability"),
        ({"request_id": "other"}, "another request's id"),
        ({"model_version": "v0"}, "has not been active"),
        ({"user_state": {"status": "fresh"}}, "a state for a user whom nobody knows"),
        ({"user_state": {"status": "missing"}}, "a state for a user whom nobody knows"),
        ({"user_state": {"status": "missing"}, "degraded": ["redis_unavailable"]}, None),
        ({"user_state": {}}, "not as the contract has it"),
        ({}, None),
    ],
)
def test_what_is_wrong_with_an_answer(change, wrong, monkeypatch) -> None:
    """Each way in which an answer may be wrong has its name; a user whom nobody knows may be missing only with a reason."""
    monkeypatch.setattr("srp4ctr_loadtest.load.checks.MODEL_LIMIT_S", 0.2)
    content = {"user_id": "nobody-1", "item_ids": ["1", "2"]}
    question = Question(orjson.dumps(content), "nobody-1", ["1", "2"], cold=True)

    async def never(*_):
        raise AssertionError

    with server(never) as url:
        versions = Versions(url, {})
        body = orjson.dumps(right("/score", "r1", content) | change)
        if wrong is None:
            assert check_scores(question, "r1", body, versions)["scores"] == [0.5, 0.5]
        else:
            with pytest.raises(WrongAnswer, match=wrong):
                check_scores(question, "r1", body, versions)


def test_a_version_that_becomes_active_is_right() -> None:
    """An answer by the next version is right as soon as GET /model tells of it, and one by the last stays so."""

    async def never(*_):
        raise AssertionError

    with server(never, versions=["v1", "v1", "v2"]) as url:
        versions = Versions(url, {})
        assert versions.has_been_active("v2")
        assert versions.has_been_active("v1")
    with pytest.raises(ServiceNotReady, match="tells no model"):
        Versions(url, {})


def test_events_are_stored_or_too_old() -> None:
    """An acknowledgement that accounts for other events than were sent is wrong."""
    found = {"request_id": "r", "stored": 1, "duplicates": [], "too_old": [1]}
    check_events(2, "r", orjson.dumps(found), once=True)
    again = orjson.dumps(found | {"stored": 0, "duplicates": [0]})
    check_events(2, "r", again, once=False)
    with pytest.raises(WrongAnswer):
        check_events(2, "r", again, once=True)
    for change in ({"stored": 2}, {"duplicates": [0]}, {"request_id": "s"}, {"too_old": None}):
        with pytest.raises(WrongAnswer):
            check_events(2, "r", orjson.dumps(found | change), once=True)


def test_the_best_candidates_are_reported_as_shown() -> None:
    """An impression names the answer and the candidates with the highest scores, and its acknowledgement counts it at most once."""
    items = [str(number) for number in range(30)]
    scores = [number / 30 for number in range(30)]
    (one,) = orjson.loads(Workload.impressions(Question(b"", "7", items), scores, "r-1"))["impressions"]
    assert (one["request_id"], one["user_id"]) == ("r-1", "7")
    assert one["item_ids"] == [str(number) for number in range(29, 19, -1)]
    check_impressions("r", b'{"request_id": "r", "monitored": 1}')
    for wrong in (
        b'{"request_id": "s", "monitored": 1}',
        b'{"request_id": "r", "monitored": 2}',
        b'{"request_id": "r"}',
    ):
        with pytest.raises(WrongAnswer):
            check_impressions("r", wrong)


def test_what_a_client_has_to_expect() -> None:
    """Refusals are those of the contract; a balancer's own 503 and a bug are none."""
    assert is_refusal("503 /problems/overloaded")
    assert is_refusal("no answer: timeout")
    assert not is_refusal("503")
    assert not is_refusal("500 /problems/internal")
    assert not is_refusal("wrong answer: another request's id")


def test_a_service_that_hangs_is_not_waited_for_forever() -> None:
    """Requests are given up when their time is over, also those that waited for a connection only."""
    go_on = threading.Event()

    async def answer(path, request_id, content):
        await asyncio.to_thread(go_on.wait, 20)
        return 200, right(path, request_id, content)

    with server(answer) as url:
        pool = Pool.of(url, {}, requests(), timeout_s=0.5)
        found = open_loop(pool, connections=2, rate=40, seconds=1)
        go_on.set()
    assert found.answers.errors() == {"no answer: timeout": 40}
    assert found.answers.seconds < 5


@contextmanager
def breaking_server():
    """A service that ends each connection after one request: of four one has no answer, and one half of it; gives its address."""
    turn = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._answer({"version": "v1", "state": "tokens", "items": 300})

        def do_POST(self):
            content = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            number = next(turn) % 4
            if number:
                answer = right(self.path, self.headers["x-request-id"], content)
                self._answer(answer, cut_off=number == 1)
            self.close_connection = True

        def _answer(self, content, *, cut_off=False):
            body = orjson.dumps(content)
            self.send_response(200)
            self.send_header("connection", "close")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut_off else body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=[0.05])
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


def test_open_loops_outlive_connections_that_break() -> None:
    """What is not answered is counted by why, the rest goes on over new connections, and as many are asked as were wanted."""
    with breaking_server() as url:
        pool = Pool.of(url, {}, requests(), timeout_s=5)
        found = open_loop(pool, connections=4, rate=50, seconds=1)
    assert len(found.answers.ms) == 50
    assert set(found.answers.errors()) == {"no answer: connection closed"}
    assert 20 <= found.answers.mix.tiers["full"] <= 30
    assert found.answers.loop == "open"


def test_a_service_that_is_away_for_a_whole_rate_fails_its_requests() -> None:
    """Each request is noted as failed; connections are tried as often as requests are due, and not again and again."""
    tried = 0

    async def answer(path, request_id, content):
        return 200, right(path, request_id, content)

    with server(answer) as url:
        pool = Pool.of(url, {}, requests(), timeout_s=1)
    # Nobody listens there any more.
    found = open_loop(pool, connections=4, rate=40, seconds=1)
    assert found.answers.errors() == {"no answer: no connection": 40}

    # Somebody listens, and hangs up at once: the tries can be counted.
    with socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))) as listener:

        def hang_up():
            nonlocal tried
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    tried += 1
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        found = open_loop(pool, connections=4, rate=40, seconds=1)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found.answers.errors().total() == 40
    assert all(name.startswith("no answer: ") for name in found.answers.errors())
    # Those of the beginning, and one a request at most.
    assert 4 <= tried <= 4 + 40


def test_a_connection_that_nobody_takes_up_is_not_waited_for_forever() -> None:
    """What is spent on connecting is of the request's own time: a host that answers nothing fails requests by it."""

    async def answer(path, request_id, content):
        return 200, right(path, request_id, content)

    with server(answer) as url:
        pool = Pool.of(url, {}, requests(), timeout_s=0.3)
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        pool = replace(pool, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        # Linux drops what comes to a full queue, as a firewall does.
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        found = open_loop(pool, connections=2, rate=20, seconds=0.5)
    assert found.answers.errors() == {"no answer: timeout": 10}
    assert found.answers.seconds < 5


def test_closed_loops_outlive_them_too(run) -> None:
    """As where a replica is killed under load: these answers are missing, none is wrong, and the others are right."""
    with breaking_server() as url:
        code, content = run(url, "--accept-refusals", "--events-share", "0")
    closed = content["closed_loop"]
    assert code == 0
    assert content["failures"] == {}
    assert closed["errors"]
    assert all(name.startswith("no answer: ") for name in closed["errors"])
    assert closed["states"]["fresh"] > 0


@pytest.mark.parametrize("capacity", [3, 90, 777])
def test_the_search_finds_what_a_service_can_do(capacity) -> None:
    """The highest rate whose p99 keeps the budget, within 5 %; it says what is beyond."""

    def ask(rate, _seconds):
        answers = Answers("open", 1.0)
        for number in range(100):
            answers.add(number / 100, 5.0 if rate <= capacity else 50.0, "/score")
            answers.mix.tiers["full"] += 1
        return OpenLoop(answers, rate, 0.1, 0.1)

    found = search(ask, budget_ms=20, step_s=1, first=25, most=10_000)
    assert 0.95 * capacity <= found.rps <= capacity
    assert "p99 50.0 ms" in found.ended
    capped = search(ask, budget_ms=20, step_s=1, first=1, most=2)
    assert capped.rps == 2
    assert "highest rate that was to be tried" in capped.ended


def test_the_rate_that_is_told_was_kept_for_long() -> None:
    """What a service does for a moment only is not told; a lower rate that was once not kept is."""
    hiccups = iter([True])

    def ask(rate, seconds):
        answers = Answers("open", seconds)
        slow = rate > (100 if seconds < 10 else 80) or (rate == 50 and next(hiccups, False))
        answers.add(0.0, 50.0 if slow else 5.0, "/score")
        return OpenLoop(answers, rate, 0.1, 0.1)

    found = search(ask, budget_ms=20, step_s=1, first=25, most=10_000, confirm_s=30)
    assert 0.9 * 80 < found.rps <= 80
    assert (found.steps[-1].rate_rps, found.steps[-1].seconds) == (found.rps, 30)
    assert "at 50 requests/s once: p99 50.0 ms" in found.doubt
    unsteady = search(
        lambda rate, seconds: ask(rate if seconds < 10 else 1000, seconds), 20, 1, 25, 10_000, 30
    )
    assert unsteady.rps is None


@pytest.mark.parametrize(
    ("failure", "tier", "why"),
    [("503 /problems/overloaded", "full", "requests failed"), ("", "prior", "not by the model")],
)
def test_a_rate_with_errors_or_cheaper_answers_is_not_kept(failure, tier, why) -> None:
    """However fast they are."""

    def ask(rate, _seconds):
        answers = Answers("open", 1.0)
        answers.add(0.0, 1.0, "/score", failure)
        answers.add(0.5, 1.0, "/score")
        answers.mix.tiers[tier] += 1
        return OpenLoop(answers, rate, 0.1, 0.1)

    found = search(ask, budget_ms=20, step_s=1, first=2, most=4)
    assert found.rps is None
    assert why in found.ended


def test_use_is_read_from_metrics_where_the_service_is_elsewhere(
    deployment, tiny, serving, service_settings
) -> None:
    """A service that is no process of ours tells its CPU and memory by GET /metrics."""
    del tiny
    settings = service_settings(deployment.folder, deployment.url).model_copy(update={"namespace": "srp4ctr"})
    with serving(settings) as client:
        watch = Watch(f"http://localhost:{client.base_url.port}/metrics", {}, None)
        with watch.going_on() as use:
            give_up_at = time.monotonic() + 20
            while not use.at_s and time.monotonic() < give_up_at:
                time.sleep(0.05)
    assert use.source == "metrics"
    assert use.as_json()["memory_mb_max"] > 20
    assert use.as_json(began_s=1e6) is None


def test_replicas_behind_one_address_are_told_apart() -> None:
    """What two replicas use is added up; what the one has used so far is never taken for what the other does."""

    def tell():
        began = time.monotonic()
        for turn in itertools.count():
            # One that has used much already, at half a core, and one that is new, at a quarter of one.
            used, share, started = ((1000, 0.5, 11), (1, 0.25, 22))[turn % 2]
            yield (
                f"# TYPE x counter\nprocess_cpu_seconds_total {used + share * (time.monotonic() - began)}\n"
                f"process_resident_memory_bytes 5e+07\nprocess_start_time_seconds {started}.5\n"
            ).encode()

    async def never(*_):
        raise AssertionError

    with server(never, metrics=tell()) as url:
        watch = Watch(f"{url}/metrics", {}, None)
        with watch.going_on() as use:
            give_up_at = time.monotonic() + 20
            while len(use.at_s) < 4 and time.monotonic() < give_up_at:
                time.sleep(0.05)
    assert 0.25 < use.cpu_cores[3] < 2
    assert use.memory_mb[3] == 100


@pytest.mark.parametrize(
    "told", [b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{", b"HT", b"nonsense\r\n\r\n"]
)
def test_a_service_that_is_killed_while_it_tells_is_like_one_that_is_away(told) -> None:
    """Half an answer to GET /model or GET /metrics tells nothing, and ends neither the check of a version nor the watch."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(10_000)
                        connection.sendall(told)

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            assert Watch(f"{url}/metrics", {}, None).use.source is None
            with pytest.raises(ServiceNotReady, match="tells no model"):
                Versions(url, {})
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_neither_torch_nor_gevent_is_loaded_with_the_command() -> None:
    """What measures has the standard library as it is: locust changes it, in a process of its own."""
    code = "import srp4ctr_loadtest.load.__main__, sys; assert not {'torch', 'gevent', 'locust'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_are_options_and_variables(monkeypatch, tmp_path) -> None:
    """An option goes before its variable; what is wrong is named; the key's file makes the header."""
    monkeypatch.setenv("SRP4CTR_LOADTEST_USERS", "7")
    monkeypatch.setenv("SRP4CTR_LOADTEST_SECONDS", "3")
    key = tmp_path / "key"
    key.write_text("a-long-enough-key\n")
    settings = read_load_settings({"seconds": "9", "api_key_file": str(key), "rates": "5,7.5"})
    assert (settings.users, settings.seconds, settings.open_rates) == (7, 9, [5, 7.5])
    assert settings.headers() == {"authorization": "Bearer a-long-enough-key"}
    for name, value in settings.variables(users=2).items():
        monkeypatch.setenv(name, value)
    assert read_load_settings() == settings.model_copy(update={"users": 2})
    for wrong in ({"candidates": "9-3"}, {"candidates": "0"}, {"shape": "round"}, {"rates": "fast"}):
        [name] = wrong
        with pytest.raises(ConfigError, match=name):
            read_load_settings(wrong)


def test_a_report_that_cannot_be_written_is_noticed_before_anything_is_asked(tmp_path) -> None:
    """A file where the folder should be ends the command at once."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        main(["--url", "http://127.0.0.1:9", "--out", str(tmp_path / "file")])


def test_settings_are_those_of_the_page() -> None:
    """docs/loadtest-settings.md is what the class says, a line a setting; renew it by: make documents."""
    page = (Path(__file__).parents[2] / "docs" / "loadtest-settings.md").read_text()
    assert page == document()
    for name in LoadSettings.model_fields:
        [line] = [
            one for one in page.splitlines() if one.startswith(f"| `SRP4CTR_LOADTEST_{name.upper()}` |")
        ]
        assert len(re.split(r"(?<!\\)\|", line)) == 6


def test_help_says_what_is_read_and_written(capsys) -> None:
    """Every setting is there with its variable."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "Reads" in told
    assert "Writes" in told
    for name in LoadSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in told
        assert f"SRP4CTR_LOADTEST_{name.upper()}" in told.replace("\n", "").replace(" ", "")
