"""The comparison with other servers: everyone is asked the same, wrong or cheaper answers are refused, nobody is left out."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import psutil
import pytest

from srp4ctr.contract.errors import ConfigError, ServiceNotReady, Srp4ctrError
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.plain_scorer import plain_path
from srp4ctr.runtime.redis_client import connect
from srp4ctr_loadtest.peers import report
from srp4ctr_loadtest.peers.aims import ratios
from srp4ctr_loadtest.peers.asking import TOLERANCE, ask, check_equal
from srp4ctr_loadtest.peers.catalogue import ENVIRONMENTS, PEERS, chosen
from srp4ctr_loadtest.peers.contestants import check_in_full, own_services, peer_contestant
from srp4ctr_loadtest.peers.install import REQUIREMENTS, python_of, version_of
from srp4ctr_loadtest.peers.measure import Exam, Plan, at_own_rate
from srp4ctr_loadtest.peers.processes import running
from srp4ctr_loadtest.peers.protocols import PLAIN, V2_BINARY, V2_JSON, Question, WrongAnswer
from srp4ctr_loadtest.peers.report import ABOUT
from srp4ctr_loadtest.peers.results import Results, Row
from srp4ctr_loadtest.peers.run import common_rates, compare
from srp4ctr_loadtest.peers.workload import Workload
from srp4ctr_loadtest.profile import record
from srp4ctr_offline.study.plain_graph import write_plain

CANDIDATES = (5, 20)
KEYS = {"server", "candidates", "cpu_ms", "rps", "p50_ms", "p99_ms", "p999_ms", "rate_rps"}
QUESTION = Question("ü", ["a", "bc"])


@pytest.fixture(scope="module")
def plan():
    """As little as can be measured."""
    cores = sorted(psutil.Process().cpu_affinity())
    return Plan(requests=20, open_loop_s=0.3, server_core=cores[0], loader_core=cores[-1])


@pytest.fixture(scope="module")
def results(tiny, workload, plan, tmp_path_factory):
    """A comparison with naive FastAPI, which runs the plain graph, and with a peer that is not installed."""
    path = plain_path(workload.settings.var_dir, tiny.bundle.manifest)
    write_plain(tiny.config, tiny.run, path)
    folder = tmp_path_factory.mktemp("peers")
    return compare(workload, chosen(["fastapi-plain", "litserve"]), folder, plan, CANDIDATES)


def test_everyone_is_measured_or_reported(results) -> None:
    """Each server has a row for each number of candidates and rate, or one that says why it has none."""
    for server in ("srp4ctr", "srp4ctr-near", "fastapi-plain"):
        for count in CANDIDATES:
            half, common = results.at_half(server, count), results.at_common(server, count)
            assert half.rps > 0
            assert half.rate_rps == half.rps / 2 >= common.rate_rps == results.common_rps[count]
            # Of so few requests there is no p99.9.
            assert half.p999_ms is common.p999_ms is None
            assert 0 < half.p50_ms <= half.p99_ms
            assert 0 < common.p50_ms <= common.p99_ms
    for server in ("floor", "before"):
        for count in CANDIDATES:
            row = results.closed(server, count)
            assert row.cpu_ms > 0
            assert row.rps > 0
            assert row.rate_rps is None
    assert set(results.errors()) == {"litserve"}
    assert "peers install litserve" in results.errors()["litserve"]
    assert not results.wrong()


def test_what_is_written_is_what_was_measured(results, tmp_path) -> None:
    """serving.json has the agreed fields, the page and the terminal have every server, and the pictures are there."""
    report.write(results, tmp_path)
    rows = json.loads((tmp_path / "serving.json").read_bytes())
    assert rows == [row.as_json() for row in results.rows]
    assert all(set(row) - {"error"} == KEYS for row in rows)
    assert [row["server"] for row in rows if "error" in row] == ["litserve"]
    page, printed = (tmp_path / "serving.md").read_text(), report.lines(results)
    for text in (page, printed):
        for title in results.titles.values():
            assert title in text
        measured = results.closed("fastapi-plain", 20)
        assert f"| {measured.cpu_ms:,.2f} | {measured.rps:,.0f} |" in text
        assert "LitServe: could not be measured" in text
    assert json.loads(printed.splitlines()[-1])["rows"] == rows
    assert json.loads((tmp_path / ABOUT).read_bytes()) == results.about
    # Whose graph a ratio is of, in its row.
    assert f"| {results.titles['fastapi-plain']} | plain | 20 |" in page
    assert f"| {results.titles['floor']} | ours | 20 |" in page
    for name in ("cpu", "rates", "latencies"):
        assert f"serving/{name}.png" in page
        assert (tmp_path / "serving" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_other_scores_are_refused_before_the_clock_starts(workload, plan, tmp_path) -> None:
    """A peer that looks for the users' states elsewhere scores them as cold, and is not measured."""
    elsewhere = replace(workload, settings=workload.settings.model_copy(update={"namespace": "elsewhere"}))
    (peer,) = chosen(["fastapi"])
    questions = workload.questions(5)[:20]
    service = own_services(workload)[0]
    with service.start(plan.server_core) as server:
        exam = Exam({5: questions}, {5: ask(server.url, PLAIN, questions)})
    with pytest.raises(WrongAnswer, match="scores differ from the service's by"):
        at_own_rate(peer_contestant(peer, elsewhere, tmp_path), exam, plan)
    with peer_contestant(peer, workload, tmp_path).start(plan.server_core) as server:
        found = ask(server.url, PLAIN, questions)
        assert server.tree.root.cpu_affinity() == [plan.server_core]
    assert check_equal(found, exam.expected[5]) < TOLERANCE


@pytest.mark.parametrize("difference", [2 * TOLERANCE, float("nan")])
def test_no_score_may_differ(difference) -> None:
    """One score of many that is more than rounding away, or no number, is enough."""
    right = [np.full(3, 0.5), np.full(2, 0.25)]
    check_equal([score + TOLERANCE / 2 for score in right], right)
    with pytest.raises(WrongAnswer):
        check_equal([right[0], right[1] + np.array([0.0, difference])], right)


def test_cheaper_answers_of_ours_are_noticed(tiny, workload, serving, service_settings) -> None:
    """One answer from the prior among many is seen in the metrics, even where it was not looked at."""
    settings = service_settings(tiny.bundles.parent, workload.subject.redis_url)
    settings = settings.model_copy(update={"namespace": workload.settings.namespace})
    with serving(settings) as client:
        url = str(client.base_url)
        asked = {"user_id": tiny.user_ids[0], "item_ids": tiny.item_ids[:3]}
        for _ in range(3):
            assert client.post("/score", json=asked).json()["tier"] == "full"
        check_in_full(url)
        late = client.post("/score", json=asked | {"deadline_ms": 0.0001})
        assert late.json()["tier"] == "prior"
        with pytest.raises(WrongAnswer, match="prior"):
            check_in_full(url)
        with pytest.raises(WrongAnswer, match="tier prior"):
            PLAIN.scores(200, late.content, 3)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"scores": [0.5, 0.5]}'),
        (200, b'{"scores": [0.5]}'),
        (200, b'{"error": "none"}'),
        (200, b"not JSON"),
        (200, b'{"scores": [0.5, 0.5], "tier": "prior", "degraded": []}'),
        (200, b'{"scores": [0.5, 0.5], "tier": "full", "degraded": ["state_corrupt"]}'),
    ],
)
def test_an_answer_is_whole_or_refused(status, body) -> None:
    """Fewer scores than candidates, another status, a degraded answer and what is no answer at all are refused."""
    with pytest.raises(WrongAnswer):
        PLAIN.scores(status, body, 2)


def test_v2_requests_are_as_the_protocol_has_them() -> None:
    """JSON and binary tensors carry the same strings, and answers in either form give the same scores."""
    inputs = orjson.loads(V2_JSON.call(QUESTION).body)["inputs"]
    assert [(one["name"], one["shape"], one["data"]) for one in inputs] == [
        ("user_id", [1], ["ü"]),
        ("item_ids", [2], ["a", "bc"]),
    ]
    call = V2_BINARY.call(QUESTION)
    head = int(call.headers["inference-header-content-length"])
    tensors, at = [], head
    for one in orjson.loads(call.body[:head])["inputs"]:
        end, texts = at + one["parameters"]["binary_data_size"], []
        while at < end:
            (size,) = struct.unpack_from("<I", call.body, at)
            texts.append(call.body[at + 4 : at + 4 + size].decode())
            at += 4 + size
        tensors.append(texts)
    assert tensors == [["ü"], ["a", "bc"]]
    assert at == len(call.body)

    output = {"name": "scores", "datatype": "FP32", "shape": [2]}
    answer = orjson.dumps({"outputs": [output | {"data": [0.25, 0.5]}]})
    assert V2_JSON.scores(200, answer, 2).tolist() == [0.25, 0.5]
    binary = orjson.dumps({"outputs": [output | {"parameters": {"binary_data_size": 8}}]})
    assert V2_BINARY.scores(200, binary + struct.pack("<ff", 0.25, 0.5), 2).tolist() == [0.25, 0.5]
    with pytest.raises(WrongAnswer, match="announced"):
        V2_BINARY.scores(200, binary + struct.pack("<f", 0.25), 2)


def test_requests_on_the_wire_are_http() -> None:
    """A call becomes one request with its headers and a right length."""
    wire = V2_BINARY.call(QUESTION).to("http://127.0.0.1:81").wire
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/models/score/infer HTTP/1.1"
    headers = dict(line.split(": ") for line in lines[1:])
    assert headers["host"] == "127.0.0.1:81"
    assert headers["content-type"] == "application/octet-stream"
    assert int(headers["content-length"]) == len(body)


def test_ratios_are_ours_over_theirs_with_their_aims() -> None:
    """A peer at a third of our rate is met at 2.5 and not at 4; who was not measured has no ratio."""
    rows = [
        Row("srp4ctr", 100, cpu_ms=1.0, rps=900.0, rate_rps=450.0),
        Row("srp4ctr-near", 100, cpu_ms=0.5, rps=1200.0, rate_rps=600.0),
        Row("fastapi-plain", 100, cpu_ms=2.0, rps=300.0, rate_rps=150.0),
        Row("litserve", 100, cpu_ms=3.0, rps=300.0, rate_rps=150.0),
        Row("bentoml", None, error="could not be measured: it ended"),
    ]
    assert common_rates(rows) == {100: 150.0}
    titles = {row.server: row.server for row in rows}
    found = {one.peer: one for one in ratios(Results(rows, titles, {100: 150.0}, {}))}
    assert set(found) == {"fastapi-plain", "litserve"}
    assert (found["litserve"].redis, found["litserve"].near, found["litserve"].cpu) == (3.0, 4.0, 3.0)
    assert found["litserve"].met is False
    assert found["fastapi-plain"].met is True


def test_processes_are_counted_and_ended_with_their_children(plan, tmp_path) -> None:
    """CPU is that of the whole tree on its one core, and nothing of it is left."""
    spin = "import time\nwhile time.process_time() < 0.3: pass\nopen(r'{done}', 'w').close()\ntime.sleep(600)"
    done = tmp_path / "done"
    child = spin.format(done=done)
    parent = (
        f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", parent]
    with running(command, {}, plan.server_core, tmp_path / "log", done.exists) as tree:
        processes = tree.processes()
        assert len(processes) == 2
        assert tree.cpu_seconds() >= 0.3
    assert not any(process.is_running() for process in processes)


def test_who_does_not_start_says_why(plan, tmp_path, capsys) -> None:
    """A process that ends before it is ready is an error that names its log, and its last words are shown."""
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with (
        pytest.raises(ServiceNotReady, match=r"ended with 3 before it answered; its log is .*/log$"),
        running(command, {}, plan.server_core, tmp_path / "log", lambda: False),
    ):
        pass
    assert "no such model" in capsys.readouterr().err


def test_environments_are_pinned() -> None:
    """Each peer's environment has a file of exact versions, and one made of another file is not used."""
    for environment in ENVIRONMENTS:
        lines = (REQUIREMENTS / f"{environment}.txt").read_text().splitlines()
        pinned = [line for line in lines if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in pinned)
        names = {line.partition("==")[0] for line in pinned}
        assert {"numpy", "onnxruntime", "redis[hiredis]", "pydantic"} <= names
        assert not {"torch", "tensorflow"} & names
    assert version_of("litserve").startswith("litserve 0.")


def test_an_outdated_environment_is_not_used(tmp_path) -> None:
    """An environment of other requirements than today's has to be installed anew."""
    installed = tmp_path / "litserve" / "installed.txt"
    installed.parent.mkdir()
    installed.write_text((REQUIREMENTS / "litserve.txt").read_text())
    assert python_of("litserve", tmp_path) == tmp_path / "litserve" / "bin" / "python"
    installed.write_text("litserve==0.1\n")
    with pytest.raises(ServiceNotReady, match="peers install litserve"):
        python_of("litserve", tmp_path)


def test_peers_are_chosen_by_name_or_environment() -> None:
    """Triton's variants share an environment; an unknown name is an error that lists the known ones."""
    assert [peer.name for peer in chosen(["triton", "fastapi"])] == [
        "fastapi",
        "triton-json",
        "triton-binary",
        "triton-plain",
    ]
    assert chosen([]) == list(PEERS)
    with pytest.raises(ConfigError, match=r"tritn.*triton-json"):
        chosen(["tritn"])


def test_made_up_users_are_asked_about_by_nobody_else(workload) -> None:
    """Users who are in Redis for one comparison's length are not among those whom the next one asks about."""
    with connect(workload.settings, workload.subject.redis_url) as client:
        keys = Keys(workload.settings.namespace)
        version = workload.subject.version
        users = [f"peers-before-{number}" for number in range(300)]
        state = client.get(keys.state(version, workload.subject.users[0]))
        workload.put_for_a_while(dict.fromkeys(users, state), 60)
        asked = Workload.active().subject.users
        client.delete(*(keys.state(version, user) for user in users))
    assert asked
    assert not set(asked) & set(users)


def test_flame_graph_is_of_the_service_at_work(workload, tmp_path):
    """What a profile shows are the functions that answer requests, without the folder that it was made in."""
    path = tmp_path / "service.svg"
    try:
        asked = record(own_services(workload)[0], workload, 20, 2, path)
    except Srp4ctrError as error:
        if "ermission" in str(error):
            pytest.skip("this machine does not let a process look into another")
        raise
    assert asked > 0
    text = path.read_text()
    assert "Scoring" in text
    assert str(Path.cwd()) not in text
