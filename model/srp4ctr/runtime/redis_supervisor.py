"""Restarts the local Redis when it dies, for as long as a service runs."""

import fcntl
import logging
import threading

from srp4ctr.contract.errors import DependencyMissing, StoreUnavailable
from srp4ctr.runtime.local_redis import SPAWN_LIMIT_S, LocalRedis

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.25
MAX_BACKOFF_S = 5.0
JOIN_LIMIT_S = SPAWN_LIMIT_S + 1


class Supervisor:
    """Keeps the local Redis alive from a thread of its own, while entered; the last of several that leaves stops it."""

    def __init__(self, local: LocalRedis) -> None:
        self._local = local
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="local-redis-supervisor", daemon=True)

    def __enter__(self) -> str:
        """The server's address, once it answers."""
        url = self._local.ensure()
        self._users = (self._local.folder / "supervisors.lock").open("a")
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self._thread.start()
        return url

    def __exit__(self, *_: object) -> None:
        self._leave.set()
        self._thread.join(JOIN_LIMIT_S)
        with self._users:
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._local.stop()
            except BlockingIOError:
                log.info("local Redis left to the other service that uses it")
            except StoreUnavailable as error:
                log.warning("local Redis left running: %s", error)

    def _watch(self) -> None:
        # A server that dies at once each time must not be restarted in a tight loop.
        wait_s = CHECK_EVERY_S
        while not self._leave.wait(wait_s):
            started = True
            try:
                started = self._local.start_if_dead()
            except (StoreUnavailable, DependencyMissing, OSError) as error:
                log.error("local Redis could not be restarted: %s", error)  # noqa: TRY400 -- the text says all
            else:
                if started:
                    log.warning("local Redis had died and was restarted")
            wait_s = min(2 * wait_s, MAX_BACKOFF_S) if started else CHECK_EVERY_S
