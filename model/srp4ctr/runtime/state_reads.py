"""User states out of Redis while scoring: all requests' reads share one connection, and Redis says what has changed.

redis-py connects, with all its kinds of addresses and credentials; from then on the connection is read and written
here, because redis-py's asyncio client spends four times the CPU on a GET (docs/decisions/0008).
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
import redis
import redis.asyncio
import structlog

from srp4ctr.contract.errors import StateCorrupt, StoreUnavailable
from srp4ctr.runtime.near_cache import Kept, NearCache

log = structlog.get_logger()

TICKS = 25
"""In about so many steps the limit of a read passes, or in more where they would be long for a request's own time."""
LEAST_TICK_MS, MOST_TICK_MS = 1, 2
"""uvloop's clock counts whole milliseconds: half of one is no time at all, and one and a half are two."""
TIMEOUTS_UNTIL_LOST = 3


@dataclass(frozen=True)
class Limits:
    """Seconds: for Redis to answer a read, to take a connection, between two tries while it is lost, and how long a connection
    may be silent until what is kept is trusted no more without a look whether it is alive.
    """

    read_s: float
    connect_s: float
    probe_every_s: float
    silent_s: float = 5.0


@dataclass(eq=False)
class _Read:
    key: str
    beside: str
    value: asyncio.Future[Kept]
    until: float = math.inf
    """When whoever waits for it has no more time, by the monotonic clock."""
    first: Any = None
    answered: int = 0
    changed: bool = False
    sent_before: bool = False

    def end(self, outcome: Kept | Exception) -> None:
        # Whoever left at a deadline of their own has cancelled it.
        if self.value.done():
            return
        if isinstance(outcome, Exception):
            self.value.set_exception(outcome)
        else:
            self.value.set_result(outcome)


class _Link(asyncio.Protocol):
    """One open connection: answers come in the order of the reads, and notices of changes between them."""

    def __init__(self, reads: "StateReads", connection: redis.asyncio.Connection) -> None:
        self._reads = reads
        self._parser = hiredis.Reader()
        self.waiting: deque[_Read] = deque()
        self.heard_at = time.monotonic()
        # What redis-py does not offer: its open stream, which it then has no more to do with.
        opened: Any = connection
        self._stream = opened._writer  # noqa: SLF001
        opened._reader = opened._writer = None  # noqa: SLF001
        self._transport: asyncio.Transport = self._stream.transport
        self._transport.set_protocol(self)

    def send(self, read: _Read) -> None:
        self.waiting.append(read)
        # Not one MGET, which passes over what is no string.
        commands: Any = (("GET", read.key), ("GET", read.beside))
        self._transport.write(b"".join(map(hiredis.pack_command, commands)))

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        self._parser.feed(data)
        # An error may be answered by leaving: of what is behind it in the same piece nobody would tell when it changes.
        while not self._transport.is_closing() and (reply := self._parser.gets()) is not False:
            if isinstance(reply, hiredis.PushNotification):
                if self.waiting:
                    # If it is of the key that is answered already, nobody will say so again.
                    self.waiting[0].changed |= self.waiting[0].answered > 0
                self._reads.changed(reply)
            else:
                read = self.waiting[0]
                read.answered += 1
                if read.answered == 1:
                    read.first = reply
                else:
                    self.waiting.popleft()
                    self._reads.replied(read, read.first, reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._reads.disconnected(self, exc)


class StateReads:
    """Reads values by key; knows when Redis is lost, and then lets one read now and then try it.

    Redis is lost after an error, or after a few reads in a row without an answer. The limit of a read is for Redis and not
    for this process: however long a busy event loop lets a tick last, it counts as one only, and the loop takes in what
    has arrived before it counts the next.
    """

    def __init__(
        self,
        pool: redis.asyncio.ConnectionPool,
        limits: Limits,
        cache: NearCache,
        forgets: str,
        count: Callable[[bool], None],
    ) -> None:
        """Connections come from `pool`, which must speak RESP 3; values are kept in `cache`.

        The key `forgets` changes with each user who is forgotten: what Redis no longer tells of is then not even the last known.
        `count` is told of each read whether the cache answered it.
        """
        self._pool = pool
        self._limits = limits
        self._cache = cache
        self._forgets_key = forgets
        self._forgets: Any = None
        self._count = count
        self._link: _Link | None = None
        self._opening: asyncio.Task[None] | None = None
        self._unsent: list[_Read] = []
        self._watching = False
        self._oldest: _Read | None = None
        self._ticks = 0
        limit_ms = max(LEAST_TICK_MS, round(1000 * limits.read_s))
        tick_ms = min(MOST_TICK_MS, -(-limit_ms // TICKS))
        self._tick_s = tick_ms / 1000
        self._most_ticks = -(-limit_ms // tick_ms)
        self._timeouts = 0
        self._lost = False
        self._probe_at = 0.0
        self._told = False
        """Whether Redis tells what changes: only then may be kept what was read."""

    async def get(self, key: str, beside: str, until: float = math.inf) -> Kept:
        """The values of two keys, None where there is none; raises StoreUnavailable and StateCorrupt.

        And TimeoutError when it is `until`, by the monotonic clock, which says nothing about Redis.
        """
        kept = self._cache.get(key)
        self._count(kept is not None)
        if kept is not None:
            self._look_whether_alive(key, beside)
            return kept
        if self._lost:
            now = time.monotonic()
            if now < self._probe_at:
                raise StoreUnavailable("Redis is lost, and one request now and then tries it")
            self._probe_at = now + self._limits.probe_every_s
        return await self._ask(key, beside, until)

    def _ask(self, key: str, beside: str, until: float = math.inf) -> asyncio.Future[Kept]:
        loop = asyncio.get_running_loop()
        read = _Read(key, beside, loop.create_future(), until)
        self._send(read)
        if not self._watching:
            self._watching = True
            loop.call_later(self._tick_s, self._tick)
        return read.value

    def _look_whether_alive(self, key: str, beside: str) -> None:
        """Read once more, over a connection that has been silent: it may have nobody at its other end, who would say what changes.

        Without an answer what is kept is doubted, as after any read that has none; nobody waits for it.
        """
        link = self._link
        if link is None or link.waiting or time.monotonic() - link.heard_at < self._limits.silent_s:
            return
        self._ask(key, beside).add_done_callback(lambda answer: answer.cancelled() or answer.exception())

    def last_known(self, key: str) -> Kept | None:
        """What was read before Redis was lost or this process changed it; others may have changed it since, too."""
        return self._cache.last_known(key)

    def outdate(self, keys: Sequence[str]) -> None:
        """This process has changed the keys: what was read of them before is read anew, and only the last known until then.

        Redis tells of a change, too, but only after it has answered whoever made it. With that, the last known goes as well.
        """
        for key in keys:
            self._cache.doubt(key)
        self._keep_none(keys)

    def forget(self, keys: Sequence[str]) -> None:
        """This process has removed the keys: what was read of them before is not even the last known."""
        for key in keys:
            self._cache.drop(key)
        self._keep_none(keys)

    def _keep_none(self, keys: Iterable[str]) -> None:
        """Keep no answers to reads of the keys that are under way; what is not sent yet will be answered as it is now."""
        changed = set(keys)
        for read in () if self._link is None else self._link.waiting:
            read.changed |= not changed.isdisjoint((read.key, read.beside))

    async def close(self) -> None:
        """Close the connection."""
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        link, self._link = self._link, None
        if link is not None:
            link.abort()

    def _send(self, read: _Read) -> None:
        if self._link is not None:
            self._link.send(read)
            return
        self._unsent.append(read)
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="connect-state-reads")

    async def _open(self) -> None:
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(self._limits.connect_s):
                await connection.connect()
                self._told = await self._track(connection)
                readable = await self._read_forgets(connection)
        except (TimeoutError, redis.TimeoutError):
            self._opening = None
            await connection.disconnect(nowait=True)
            self._time_out(f"no connection within {1000 * self._limits.connect_s:g} ms")
        except (redis.RedisError, OSError) as error:
            self._opening = None
            await connection.disconnect(nowait=True)
            self._lose(str(error) or type(error).__name__)
        except asyncio.CancelledError:
            await connection.disconnect(nowait=True)
            raise
        else:
            self._opening = None
            self._link = _Link(self, connection)
            unsent, self._unsent = self._unsent, []
            if self._told and readable:
                # What Redis has told of it since, redis-py has got and shown nobody.
                self._ask_forgets()
            for read in unsent:
                self._link.send(read)

    async def _track(self, connection: redis.asyncio.Connection) -> bool:
        try:
            await connection.send_command("CLIENT", "TRACKING", "ON")
            await connection.read_response()
        except redis.ResponseError as error:
            # Redis before 6, or a proxy before Redis.
            log.warning("redis_tracks_nothing", reason=str(error))
            return False
        return True

    async def _read_forgets(self, connection: redis.asyncio.Connection) -> bool:
        """Look whether somebody was forgotten while there was no connection; False where that may not be read."""
        try:
            await connection.send_command("GET", self._forgets_key)
            self._take_forgets(await connection.read_response())
        except redis.ResponseError:
            # It holds something else, or is not for this service: that is as good as a change.
            self._take_forgets(object())
            return False
        return True

    def _ask_forgets(self) -> None:
        self._ask(self._forgets_key, self._forgets_key).add_done_callback(self._forgets_read)

    def _take_forgets(self, forgets: Any) -> None:
        if forgets != self._forgets:
            # Somebody was forgotten, and of those whose states are in doubt nobody was told who.
            self._cache.drop_doubted()
        self._forgets = forgets

    def _forgets_read(self, answer: asyncio.Future[Kept]) -> None:
        if not answer.cancelled() and answer.exception() is None:
            self._take_forgets(answer.result().value)

    def changed(self, notice: Any) -> None:
        """Redis has sent a notice: `[b"invalidate", keys]`, where no keys stand for all."""
        kind, keys = notice[0], notice[1]
        if kind == b"invalidate":
            for key in [None] if keys is None else keys:
                name = None if key is None else key.decode()
                self._cache.drop(name)
                if name in (None, self._forgets_key):
                    self._cache.drop_doubted()
                    # Of a key that is not read again Redis tells once only.
                    self._ask_forgets()

    def replied(self, read: _Read, value: Any, beside: Any) -> None:
        """Redis has answered a read, for each of its keys."""
        self._timeouts = 0
        errors = [str(reply) for reply in (value, beside) if isinstance(reply, hiredis.ReplyError)]
        if errors:
            # All other errors of GET concern the server and not the key.
            others = [error for error in errors if not error.startswith("WRONGTYPE")]
            if others:
                read.end(StoreUnavailable(f"Redis: {others[0]}"))
                self._lose(others[0])
                return
            read.end(StateCorrupt("the user's key holds something else than a state"))
        else:
            # Here, and not by who waits for it: a notice that it has changed may be next in what Redis sent.
            kept = self._cache.read(value, beside)
            if self._told and not read.changed:
                self._cache.put(read.key, read.beside, kept)
            read.end(kept)
        if self._lost:
            self._lost = False
            log.info("redis_back")

    def disconnected(self, link: _Link, error: Exception | None) -> None:
        """A connection has ended; its reads are tried once more, since Redis may merely have closed it."""
        if link is not self._link:
            return
        self._link = None
        self._cache.doubt_all()
        for read in link.waiting:
            if read.sent_before:
                read.end(StoreUnavailable(f"Redis: {error or 'the connection was closed'}"))
            else:
                read.sent_before = True
                read.answered, read.changed = 0, False
                self._send(read)

    def _tick(self) -> None:
        waiting = self._link.waiting if self._link is not None else self._unsent
        oldest = waiting[0] if waiting else None
        if oldest is None:
            self._watching, self._oldest = False, None
            return
        now = time.monotonic()
        for read in waiting:
            if now > read.until:
                read.end(TimeoutError())
        self._ticks = self._ticks + 1 if oldest is self._oldest else 1
        self._oldest = oldest
        if self._ticks > self._most_ticks:
            self._ticks = 0
            self._time_out(f"no answer within {1000 * self._limits.read_s:g} ms")
        asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _time_out(self, reason: str) -> None:
        self._timeouts += 1
        # One late answer is no outage.
        if self._timeouts >= TIMEOUTS_UNTIL_LOST:
            self._lose(reason)
        else:
            self._drop(reason)

    def _lose(self, reason: str) -> None:
        self._probe_at = time.monotonic() + self._limits.probe_every_s
        if not self._lost:
            self._lost = True
            log.warning("redis_lost", reason=reason)
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        self._drop(reason)

    def _drop(self, reason: str) -> None:
        """Fail all reads, and leave the connection, so that nobody gets a late answer of another."""
        link, self._link = self._link, None
        failed, self._unsent = self._unsent, []
        if link is not None:
            failed += link.waiting
            link.abort()
            self._cache.doubt_all()
        for read in failed:
            read.end(StoreUnavailable(f"Redis: {reason}"))
