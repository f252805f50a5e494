"""Fixtures for all tests: real servers, which a test may kill."""

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

# As `srp4ctr` does it, and like there before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import pytest
import redis
import structlog
import uvicorn
from hypothesis import settings as hypothesis_settings

from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.local_redis import find_server
from srp4ctr_offline.config import RunConfig, load_config
from srp4ctr_offline.data.synthetic import write_synthetic
from srp4ctr_offline.data.synthetic_config import SyntheticConfig
from srp4ctr_offline.evaluate import run as evaluate_run
from srp4ctr_offline.export import export
from srp4ctr_offline.finetune import main as finetune_main
from srp4ctr_offline.prepare import main as prepare_main
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.pretrain import main as pretrain_main
from srp4ctr_service.app import create_app
from srp4ctr_service.serve import listen
from srp4ctr_service.server import server_config
from srp4ctr_service.settings import Settings

START_LIMIT_S = 20.0

# How long an example takes says how busy the machine is.
hypothesis_settings.register_profile("srp4ctr", deadline=None)
hypothesis_settings.load_profile("srp4ctr")


class RedisServer:
    """A redis-server of one test, on a Unix socket in a folder of its own; its data survives a kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = ["--port", "0", "--unixsocket", f"{self.folder}/redis.sock", "--dir", str(self.folder)]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        self._process = subprocess.Popen([find_server(), *options], stdout=subprocess.DEVNULL)
        with self.client() as client:
            give_up_at = time.monotonic() + START_LIMIT_S
            while True:
                try:
                    client.ping()
                except redis.RedisError:
                    assert time.monotonic() < give_up_at, "redis-server did not start"
                    time.sleep(0.01)
                else:
                    return

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server as its operator would."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let the server hang: it accepts connections and does not answer."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a server that hangs go on."""
        os.kill(self.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        """A plain client, to look at and to spoil what is stored."""
        return redis.Redis.from_url(self.url, socket_timeout=5.0)

    def _end(self, sig: signal.Signals) -> None:
        if self._process is not None:
            if sig != signal.SIGKILL:
                # A server that hangs goes on first; one that is killed must not answer once more.
                self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(sig)
            self._process.wait(START_LIMIT_S)
            self._process = None


@contextmanager
def make_short_folder() -> Iterator[Path]:
    """A folder with a path short enough for Unix sockets, which pytest's own are not everywhere."""
    folder = Path(tempfile.mkdtemp(prefix="srp4ctr-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def run_redis() -> Iterator[RedisServer]:
    """A running redis-server."""
    with make_short_folder() as folder:
        server = RedisServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for var and for sockets."""
    with make_short_folder() as folder:
        yield folder


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A running redis-server, this test's alone."""
    with run_redis() as server:
        yield server


@pytest.fixture(scope="session")
def shared_redis_server() -> Iterator[RedisServer]:
    """A running redis-server for tests that only read, or write under names of their own."""
    with run_redis() as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """Services in threads of this process would write their request lines among pytest's own."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="session")
def service_settings() -> Callable[[Path, str], Settings]:
    """Settings by var folder and Redis: short times for what happens in the end, long limits for the rest."""

    def make(var_dir: Path, redis_url: str) -> Settings:
        return Settings(
            var_dir=var_dir,
            redis_url=redis_url,
            namespace="test",
            port=0,
            redis_score_timeout_ms=1000,
            redis_probe_every_ms=20,
            version_poll_ms=20,
            deadline_ms=20_000,
        )

    return make


@pytest.fixture(scope="session")
def serving() -> Callable[[Settings], AbstractContextManager[httpx.Client]]:
    """Run a service in a thread of this process, on a real socket; entering gives a client of it."""

    @contextmanager
    def run(settings: Settings) -> Iterator[httpx.Client]:
        assert settings.redis_url is not None
        with listen(settings) as listener:
            server = uvicorn.Server(server_config(create_app(settings, settings.redis_url), settings))
            thread = threading.Thread(target=lambda: server.run([listener]))
            thread.start()
            try:
                give_up_at = time.monotonic() + START_LIMIT_S
                while not server.started:
                    assert thread.is_alive(), "the service did not start"
                    assert time.monotonic() < give_up_at, "the service did not start in time"
                    time.sleep(0.01)
                host, port = listener.getsockname()
                with httpx.Client(base_url=f"http://{host}:{port}", timeout=START_LIMIT_S) as client:
                    yield client
            finally:
                server.should_exit = True
                thread.join(START_LIMIT_S)

    return run


@pytest.fixture
def wait_until() -> Callable[..., None]:
    """Wait until a condition holds; fail after a limit that is far beyond what it should take."""

    def wait(condition: Callable[[], object], limit_s: float = 30.0) -> None:
        give_up_at = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < give_up_at, "it did not happen in time"
            time.sleep(0.02)

    return wait


TINY = """
name = "tiny"
seed = 3
threads = 1
tables = {{ folder = "{folder}" }}
model = {{ width = 16, heads = 2, layers = 1, query_tokens = 4, cross_layers = 1, tower = [16] }}
pretrain = {{ epochs = 3, batch_size = 16, learning_rate = 5e-3 }}
finetune = {{ epochs = 4, batch_size = 16, learning_rate = 5e-3 }}

[schema]
timestamp = "timestamp"
item_title = "title"
max_events = 12
item_attributes = [
    {{ name = "category", type = "categorical" }},
    {{ name = "brand", type = "categorical" }},
    {{ name = "tags", type = "multi_valued", max_values = 3 }},
    {{ name = "price", type = "numeric", buckets = 6 }},
]
behaviour_features = [
    {{ name = "event_type", type = "categorical" }},
    {{ name = "dwell_seconds", type = "numeric", buckets = 5 }},
]
user_features = [
    {{ name = "age_group", type = "categorical" }},
    {{ name = "region", type = "categorical" }},
]
context_features = [
    {{ name = "hour", type = "categorical" }},
    {{ name = "device", type = "categorical" }},
    {{ name = "position", type = "categorical", reference = 1 }},
]

[split]
rule = "column"
"""


@dataclass(frozen=True)
class Tiny:
    """A small synthetic run, trained and exported: every part real, only small."""

    config_path: Path
    config: RunConfig
    run: Path
    bundles: Path
    prepared: Prepared
    bundle: Bundle

    @property
    def user_ids(self) -> list[str]:
        """All users, by sorted id."""
        return [user.decode() for user in self.prepared.users.ids]

    @property
    def item_ids(self) -> list[str]:
        """The catalogue, by sorted id."""
        return [item.decode() for item in self.prepared.items.ids]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The small run, made once for all tests, which must not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    write_synthetic(
        folder / "data", SyntheticConfig(users=400, items=120, rows_per_user=25, seed=5, ctr=0.25)
    )
    config_path, run, bundles = folder / "tiny.toml", folder / "run", folder / "bundles"
    config_path.write_text(TINY.format(folder=folder / "data"))
    for job in (prepare_main, pretrain_main, finetune_main):
        assert job([str(config_path), "--run", str(run)]) == 0
    config = load_config(config_path)
    evaluate_run(config, run, "test")
    bundle = export(config, run, bundles)
    return Tiny(config_path, config, run, bundles, Prepared.load(run / "prepared"), bundle)


SEQUENCE = {
    "layers = 1, query_tokens = 4, cross_layers = 1": 'state = "sequence", state_dtype = "int8", layers = 2, cross_layers = 2',
    "pretrain = {{ epochs = 3,": "pretrain = {{ epochs = 1, masking = {{ held_out_rate = 0.2 }},",
    "finetune = {{ epochs = 4,": "finetune = {{ epochs = 1,",
    'name = "tiny"': 'name = "tiny-sequence"',
}
"""What makes the small run's configuration one of the `sequence` state, in as few epochs as will do."""


@pytest.fixture(scope="session")
def tiny_sequence(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A run on the same data whose states keep what every layer reads, in int8."""
    folder = tmp_path_factory.mktemp("tiny-sequence")
    config_path, run, bundles = folder / "tiny.toml", folder / "run", folder / "bundles"
    text = TINY
    for old, new in SEQUENCE.items():
        assert old in text
        text = text.replace(old, new)
    config_path.write_text(text.format(folder=tiny.config.tables.folder))
    run.mkdir()
    (run / "prepared").symlink_to(tiny.run / "prepared")
    for job in (pretrain_main, finetune_main):
        assert job([str(config_path), "--run", str(run)]) == 0
    config = load_config(config_path)
    bundle = export(config, run, bundles)
    return Tiny(config_path, config, run, bundles, Prepared.load(run / "prepared"), bundle)
