"""`srp4ctr serve` as a process: with a Redis of its own, from start to stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from srp4ctr.client import Client
from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.local_redis import LocalRedis
from srp4ctr.runtime.serving import free_port
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr_service.serve import main
from srp4ctr_service.settings import Settings

LIMIT_S = 60.0
GOOD = {"user_id": "secretuser", "item_ids": ["1", "2", "secretitem"]}


@pytest.fixture
def environment(short_folder, first):
    """Variables of a service whose var folder is this test's own, with the bundles of the session."""
    var = short_folder / "var"
    var.mkdir()
    (var / "bundles").symlink_to(first.bundle.folder.parent)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SRP4CTR_")}
    yield kept | {"SRP4CTR_VAR_DIR": str(var), "SRP4CTR_PORT": "0", "SRP4CTR_VERSION_POLL_MS": "50"}
    # A service that was killed has left its Redis behind.
    LocalRedis(StoreSettings(var_dir=var)).stop()


@contextmanager
def served(environment):
    """A running `srp4ctr serve`: its process and a client; its log lines are in the var folder's `log`."""
    command = [sys.executable, "-m", "srp4ctr.cli", "serve"]
    with (
        _log(environment).open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log) as process,
    ):
        try:
            give_up_at = time.monotonic() + LIMIT_S
            while not (
                address := [line["address"] for line in lines(environment) if line["event"] == "serving"]
            ):
                assert process.poll() is None
                assert time.monotonic() < give_up_at
                time.sleep(0.02)
            with httpx.Client(base_url=address[0], timeout=LIMIT_S) as client:
                while time.monotonic() < give_up_at:
                    try:
                        client.get("/livez")
                        break
                    except httpx.TransportError:
                        time.sleep(0.02)
                yield process, client
        finally:
            if process.poll() is None:
                process.kill()


def _log(environment):
    return Path(environment["SRP4CTR_VAR_DIR"]) / "log"


def lines(environment):
    """The log lines that are complete by now."""
    return [
        json.loads(line)
        for line in _log(environment).read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def activate(environment, known):
    """Publish and activate in the local Redis, as another command would."""
    code = (
        "import sys\n"
        "from srp4ctr.contract.keys import Keys\n"
        "from srp4ctr.runtime.local_redis import ensure\n"
        "from srp4ctr.runtime.redis_client import connect\n"
        "from srp4ctr.runtime.settings import StoreSettings\n"
        "from srp4ctr.runtime.state_store import StateStore\n"
        "settings = StoreSettings()\n"
        "store = StateStore(connect(settings, ensure(settings)), Keys())\n"
        "store.put_many(sys.argv[1], [('secretuser', bytes.fromhex(sys.argv[3]))])\n"
        "store.mark_published(sys.argv[1], sys.argv[2], 1)\n"
        "store.activate(sys.argv[1], sys.argv[2])\n"
    )
    arguments = [known.version, known.bundle.manifest.fingerprint, known.state().hex()]
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, timeout=LIMIT_S)


def test_killed_local_redis_comes_back(environment, first, wait_until):
    """With a Redis of its own, kill -9 of that Redis degrades answers, never fails one, and heals by itself."""
    local = LocalRedis(StoreSettings(var_dir=environment["SRP4CTR_VAR_DIR"]))
    activate(environment, first)
    published_to = int(local.pidfile.read_text())
    with served(environment) as (process, client):
        assert int(local.pidfile.read_text()) == published_to
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/score", json=GOOD).json()["user_state"]["status"] == "fresh"
        # The append-only file reaches the disk each second; what a kill of the machine could lose is not the point.
        os.kill(published_to, signal.SIGKILL)
        seen = []

        def recovered():
            response = client.post("/score", json=GOOD)
            assert response.status_code == 200
            seen.append(response.json())
            return seen[-1]["user_state"]["status"] == "fresh"

        # That it is gone is known when its connection ends, which may be after the next request.
        wait_until(lambda: not recovered())
        assert seen[-1]["degraded"] == ["redis_unavailable"]
        wait_until(recovered)
        assert seen[-1]["degraded"] == []
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    assert process.returncode == 0
    assert not local.alive()
    logged = lines(environment)
    requests = [line for line in logged if line["event"] == "request" and line["route"] == "/score"]
    assert len(requests) == 1 + len(seen)
    assert {line["state"] for line in requests} == {"fresh", "stale"}
    assert all(line["request_id"] and line["candidates"] == 3 for line in requests)
    assert any("restarted" in line["event"] for line in logged)
    assert "secret" not in _log(environment).read_text()


def test_a_service_without_redis_takes_no_connections(environment, redis_server, first, wait_until):
    """It says what it waits for, ends at once when told to, and listens when Redis is there: a balancer asks others until then."""
    environment = environment | {"SRP4CTR_REDIS_URL": redis_server.url, "SRP4CTR_PORT": str(free_port())}
    activate(environment, first)
    redis_server.kill()
    command = [sys.executable, "-m", "srp4ctr.cli", "serve"]

    def waits():
        return any(line["event"] == "waiting_for_redis" for line in lines(environment))

    def connects():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", int(environment["SRP4CTR_PORT"]))) == 0

    for told_to_stop in (True, False):
        with (
            _log(environment).open("wb") as log,
            subprocess.Popen(command, env=environment, stdout=log) as process,
        ):
            try:
                wait_until(waits)
                assert not connects()
                if told_to_stop:
                    process.terminate()
                    process.wait(LIMIT_S)
                else:
                    redis_server.start()
                    wait_until(connects)
                    address = f"http://127.0.0.1:{environment['SRP4CTR_PORT']}"
                    assert httpx.post(f"{address}/score", json=GOOD).status_code == 200
            finally:
                process.kill()


def test_interrupt_ends_in_order(environment):
    """Ctrl-C stops the service and its Redis, with exit code 0."""
    with served(environment) as (process, client):
        assert client.post("/score", json=GOOD).status_code == 503
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
    assert process.returncode == 0
    local = LocalRedis(StoreSettings(var_dir=environment["SRP4CTR_VAR_DIR"]))
    assert not local.alive()


def pids(process):
    """The worker processes of a `srp4ctr serve --workers N`."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = set()
    for pid in children:
        # One that is replaced may end before it is looked at.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(int(pid))
    return found


def ready(client):
    """Whether a worker that has a model answers; none may be there for a moment."""
    try:
        return client.get("/readyz", headers={"connection": "close"}).status_code == 200
    except httpx.TransportError:
        return False


def counted(client, metric):
    """A metric's value, as any one of the workers shows it."""
    lines = client.get("/metrics", headers={"connection": "close"}).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return float(values.get(metric, 0))


def test_workers_share_the_port_and_the_metrics(environment, first, wait_until):
    """Every worker scores, each shows what all have counted, and what a killed one served is shown no more."""
    environment = environment | {"SRP4CTR_WORKERS": "2"}
    activate(environment, first)
    serving = f'srp4ctr_model_info{{version="{first.version}"}}'
    requests = 'srp4ctr_requests_total{route="/score",status="200"}'
    with served(environment) as (process, client):
        wait_until(lambda: ready(client) and counted(client, serving) == 2)
        before = pids(process)
        assert len(before) == 2
        answering = set()
        for sent in range(1, 200):
            # A connection of its own each, so that both workers get some.
            answer = client.post("/score", json=GOOD, headers={"connection": "close"})
            assert answer.json()["user_state"]["status"] == "fresh"
            answering.add(answer.json()["request_id"][:8])
            if len(answering) == 2 and sent >= 20:
                break
        assert len(answering) == 2
        wait_until(lambda: {counted(client, requests) for _ in range(10)} == {sent})
        assert counted(client, "process_cpu_seconds_total") > 1
        assert 1e8 < counted(client, "process_resident_memory_bytes") < 1e9
        assert abs(time.time() - counted(client, "process_start_time_seconds")) < 2 * LIMIT_S
        cpu_s = counted(client, "process_cpu_seconds_total")
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(pids(process) - before) == 1)
        wait_until(lambda: ready(client) and counted(client, serving) == 2)
        assert counted(client, requests) == sent
        assert counted(client, "process_cpu_seconds_total") > cpu_s
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    assert process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in before)


def test_workers_are_replaced_under_load(environment, first, wait_until):
    """SIGHUP puts a new process in each worker's place, and a client notices nothing of it."""
    environment = environment | {"SRP4CTR_WORKERS": "2"}
    activate(environment, first)
    with served(environment) as (process, client):
        wait_until(lambda: ready(client))
        before = pids(process)
        stop = threading.Event()

        def ask():
            asked = 0
            with Client(str(client.base_url)) as scoring:
                while not stop.is_set():
                    assert len(scoring.score(**GOOD).scores) == 3
                    asked += 1
            return asked

        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask) for _ in range(2)]
            try:
                process.send_signal(signal.SIGHUP)
                wait_until(lambda: len(pids(process)) == 2 and not pids(process) & before)
            finally:
                stop.set()
            assert all(task.result() for task in asking)
        process.send_signal(signal.SIGTERM)
        process.wait(LIMIT_S)
    assert process.returncode == 0


def test_workers_end_with_their_supervisor(environment, wait_until):
    """No worker outlives a supervisor that was killed: it would hold the port, and nobody would restart it."""
    with served(environment | {"SRP4CTR_WORKERS": "2"}) as (process, _):
        wait_until(lambda: len(pids(process)) == 2)
        workers = pids(process)
        process.kill()
        process.wait(LIMIT_S)
        wait_until(lambda: not any(_alive(pid) for pid in workers))


def _alive(pid):
    try:
        # A zombie has ended; nobody here is its parent.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stop_finishes_what_was_accepted(environment, first, wait_until):
    """A request whose body is still on its way when the service is told to stop is answered."""
    activate(environment, first)
    with served(environment) as (process, client):
        wait_until(lambda: ready(client))
        body = json.dumps(GOOD).encode()
        address = (client.base_url.host, client.base_url.port)
        with socket.create_connection(address, timeout=LIMIT_S) as slow:
            head = f"POST /score HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n"
            slow.sendall(head.encode() + body[:10])
            wait_until(lambda: b"srp4ctr" in client.get("/metrics").content)
            process.send_signal(signal.SIGTERM)
            # When nobody is listening any more, it is stopping.
            wait_until(lambda: not _listens(address))
            slow.sendall(body[10:])
            answer = slow.makefile("rb").read()
        process.wait(LIMIT_S)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"scores":[' in answer
    assert process.returncode == 0


def _listens(address):
    try:
        socket.create_connection(address, timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True


def test_taken_port_is_a_clear_error(monkeypatch, short_folder):
    """A port that is taken ends in an error that names the setting, before anything else is started."""
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(short_folder))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="SRP4CTR_PORT"):
        main(["--port", str(taken.getsockname()[1])])
    assert not (short_folder / "redis").exists()


def test_help_describes_every_setting(capsys):
    """`--help` names each setting's variable, its default and what it is."""
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else field.default
        assert f"  SRP4CTR_{name.upper()} ({default})\n      {field.description}\n" in told


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "http"), ("--port", "70000"), ("--log-level", "loud")]
)
def test_wrong_option_is_a_clear_error(option, value):
    """A value that an option cannot have ends in an error that names the setting."""
    with pytest.raises(ConfigError, match=f"SRP4CTR_{option[2:].replace('-', '_').upper()}"):
        main([option, value])
