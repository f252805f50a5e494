"""`srp4ctr serve` as a process: with a Redis of its own, from start to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.local_redis import LocalRedis
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
    return kept | {"SRP4CTR_VAR_DIR": str(var), "SRP4CTR_PORT": "0", "SRP4CTR_VERSION_POLL_MS": "50"}


@contextmanager
def served(environment):
    """A running `srp4ctr serve`: its process and a client; the log lines so far are in process.lines."""
    command = [sys.executable, "-m", "srp4ctr.cli", "serve"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            lines = []
            while not lines or lines[-1]["event"] != "serving":
                line = process.stdout.readline()
                assert line, lines
                lines.append(json.loads(line))
            with httpx.Client(base_url=lines[-1]["address"], timeout=LIMIT_S) as client:
                give_up_at = time.monotonic() + LIMIT_S
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
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    assert not local.alive()
    lines = [json.loads(line) for line in output.splitlines()]
    requests = [line for line in lines if line["event"] == "request" and line["route"] == "/score"]
    assert len(requests) == 1 + len(seen)
    assert {line["state"] for line in requests} == {"fresh", "stale"}
    assert all(line["request_id"] and line["candidates"] == 3 for line in requests)
    assert any("restarted" in line["event"] for line in lines)
    assert b"secret" not in output


def test_interrupt_ends_in_order(environment):
    """Ctrl-C stops the service and its Redis, with exit code 0."""
    with served(environment) as (process, client):
        assert client.post("/score", json=GOOD).status_code == 503
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    local = LocalRedis(StoreSettings(var_dir=environment["SRP4CTR_VAR_DIR"]))
    assert not local.alive()


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
