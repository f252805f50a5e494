"""Events in Redis: recorded by services, read by whoever re-encodes states, forgotten when a user asks for it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import redis
import redis.asyncio

from srp4ctr.contract.errors import StoreError
from srp4ctr.contract.events import RawEvent, Retention, pack_event, unpack_history
from srp4ctr.contract.keys import Keys, partition
from srp4ctr.contract.state import SEQUENCE_AT
from srp4ctr.runtime.async_state_store import within
from srp4ctr.runtime.event_scripts import FORGET, RECORD, SEED
from srp4ctr.runtime.redis_client import exist, scan_pages, store_errors

FORGOTTEN_S = 7 * 86_400
"""How long it is known that a user was forgotten: longer than any publish takes, since what runs meanwhile must not bring the
user back."""
Outcome = Literal["stored", "duplicate", "too_old"]
_OUTCOMES: dict[int, Outcome] = {1: "stored", 0: "duplicate", -1: "too_old"}


class Counted(NamedTuple):
    """Where the count of a user's acknowledged events began, and where it is; how often snapshots have changed the history."""

    first: int
    last: int
    seedings: int = 0

    @classmethod
    def read(cls, stored: bytes) -> "Counted":
        """What the sequence's key holds; raises ValueError where that is something else."""
        numbers = stored.split()
        if not 2 <= len(numbers) <= 3:
            raise ValueError(f"a count has two or three numbers, and this one {len(numbers)}")
        return cls(*map(int, numbers))

    def behind(self, sequence: int) -> int:
        """Acknowledged events that a state of that sequence lacks."""
        return max(0, self.last - max(sequence, self.first))


class History(NamedTuple):
    """A user's raw history, oldest first, its count when it was read, and the bytes of the user's states by version."""

    user_id: str
    sequence: int
    seedings: int
    events: list[RawEvent]
    states: Mapping[str, bytes]


class Seeded(NamedTuple):
    """The sequence of a state of the snapshot alone, FORGOTTEN for a user of whom it was not stored, and the history's seedings."""

    sequence: int
    seedings: int


class EventStore:
    """What publish, the refresher and `srp4ctr forget` do with events and the states made of them."""

    def __init__(self, client: redis.Redis, keys: Keys, retention: Retention) -> None:
        self._client = client
        self._keys = keys
        self._retention = retention
        self._seed = client.register_script(SEED)
        self._forget = client.register_script(FORGET)

    def seed(self, histories: Iterable[tuple[str, bytes]]) -> list[Seeded]:
        """Store the packed events of a snapshot, by user, one a line; acknowledged events that it lacks keep their places by time.

        Of a user who was forgotten within FORGOTTEN_S nothing is stored.
        """
        keep, ttl = self._retention.events, self._retention.ttl_s
        pipeline = self._client.pipeline(transaction=False)
        for user_id, events in histories:
            keys = [
                self._keys.history(user_id),
                self._keys.sequence(user_id),
                self._keys.forgotten(user_id),
            ]
            self._seed(keys=keys, args=[keep, ttl, events], client=pipeline)
        with store_errors():
            return [Seeded(*map(int, answer.split())) for answer in pipeline.execute()]

    def exist(self, user_ids: Sequence[str]) -> list[bool]:
        """Whether each user has a history."""
        return exist(self._client, [self._keys.history(user_id) for user_id in user_ids])

    def histories(self, user_ids: Sequence[str], versions: Sequence[str]) -> list[History]:
        """What is stored of those users who have acknowledged events; StoreError where one of them cannot be read."""
        pipeline = self._client.pipeline(transaction=False)
        for user_id in user_ids:
            # The count first: an event that comes between the two is in the history, and merely not counted yet.
            pipeline.get(self._keys.sequence(user_id))
            pipeline.lrange(self._keys.history(user_id), 0, -1)
            for version in versions:
                pipeline.get(self._keys.state(version, user_id))
        with store_errors():
            answers = pipeline.execute()
        each = 2 + len(versions)
        found = []
        for place, user_id in enumerate(user_ids):
            counted, stored, *states = answers[each * place : each * (place + 1)]
            if counted is None or not stored:
                continue
            try:
                events, count = unpack_history(stored), Counted.read(counted)
            except ValueError as error:
                raise StoreError(f"a history cannot be read: {error}") from error
            held = {version: state for version, state in zip(versions, states, strict=True) if state}
            found.append(History(user_id, count.last, count.seedings, events, held))
        return found

    def users_behind(self, version: str) -> Iterator[list[str]]:
        """Users whose states of the version lack acknowledged events, some or none at a time; looks through all of Redis."""
        pages = scan_pages(self._client, self._keys.sequences())
        while True:
            with store_errors():
                some = next(pages, None)
            if some is None:
                return
            users = [self._keys.user_of(key) for key in some]
            pipeline = self._client.pipeline(transaction=False)
            for key, user_id in zip(some, users, strict=True):
                pipeline.get(key)
                pipeline.getrange(self._keys.state(version, user_id), SEQUENCE_AT, SEQUENCE_AT + 7)
            with store_errors():
                answers = pipeline.execute()
            yield [
                user_id
                for user_id, counted, held in zip(users, answers[::2], answers[1::2], strict=True)
                if counted is not None and _behind(counted, held)
            ]

    def forget(self, user_id: str, versions: Iterable[str]) -> int:
        """Remove all that is stored of the user; gives how many keys and waiting entries that were.

        For FORGOTTEN_S no snapshot is written of the user; what the user does from now on is taken in as ever.
        """
        keys, arguments = _forget_arguments(self._keys, user_id, versions)
        letters = self._keys.dead_letters()
        with store_errors():
            removed = int(cast("int", self._forget(keys=keys, args=arguments)))
            self._client.incr(self._keys.forgets())
            removed += self._client.srem(self._keys.quarantine(), user_id)
            found: Any = self._client.xrange(letters)
            own = _of_user(found, user_id)
            return removed + (self._client.xdel(letters, *own) if own else 0)


class AsyncEventStore:
    """What the service does with events; each call has the caller's limit, in seconds."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, retention: Retention) -> None:
        self._client = client
        self._keys = keys
        self._retention = retention
        self._record = client.register_script(RECORD)
        self._forget = client.register_script(FORGET)

    async def record(self, by_user: Mapping[str, Sequence[RawEvent]], limit_s: float) -> list[list[Outcome]]:
        """Store the events of each user in one step of Redis; what became of each of them.

        Raises StoreUnavailable where Redis did not take them all; some users' may be stored then, and storing them once
        more does no harm.
        """
        keep, ttl = self._retention.events, self._retention.ttl_s
        calls = []
        for user_id, events in by_user.items():
            keys = [
                self._keys.history(user_id),
                self._keys.sequence(user_id),
                self._keys.stream(partition(user_id)),
            ]
            arguments: list[Any] = [keep, ttl, user_id]
            for event in events:
                arguments += (event.time_ms, event.event_id, pack_event(event))
            calls.append((keys, arguments))
        with store_errors():
            answers = await within(limit_s, self._record_each(calls))
        return [[_OUTCOMES[outcome] for outcome in outcomes] for outcomes in answers]

    async def _record_each(self, calls: Sequence[tuple[list[str], list[Any]]]) -> list[list[int]]:
        """The script's answers, in one round trip: a pipeline of redis-py's scripts asks each time whether Redis has them."""
        if len(calls) == 1:
            ((keys, arguments),) = calls
            return [await self._record(keys, arguments)]
        async with self._client.pipeline(transaction=False) as pipeline:
            for keys, arguments in calls:
                pipeline.evalsha(self._record.sha, len(keys), *keys, *arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for place, (answer, (keys, arguments)) in enumerate(zip(answers, calls, strict=True)):
            # A Redis that began anew has no scripts, which whoever calls one alone gives it.
            if isinstance(answer, redis.exceptions.NoScriptError):
                answers[place] = await self._record(keys, arguments)
            elif isinstance(answer, Exception):
                raise answer
        return answers

    async def forget(self, user_id: str, limit_s: float) -> int:
        """Remove all that is stored of the user; gives how many keys and waiting entries that were.

        For FORGOTTEN_S no snapshot is written of the user; what the user does from now on is taken in as ever.
        """
        with store_errors():
            versions: set[bytes] = await within(limit_s, self._client.smembers(self._keys.versions()))  # type: ignore[arg-type]
            keys, arguments = _forget_arguments(self._keys, user_id, [one.decode() for one in versions])
            removed = int(await within(limit_s, self._forget(keys=keys, args=arguments)))
            await within(limit_s, self._client.incr(self._keys.forgets()))
            aside: Any = self._client.srem(self._keys.quarantine(), user_id)
            removed += int(await within(limit_s, aside))
            letters = self._keys.dead_letters()
            found: Any = await within(limit_s, self._client.xrange(letters))
            own = _of_user(found, user_id)
            return removed + (int(await within(limit_s, self._client.xdel(letters, *own))) if own else 0)


def _of_user(letters: Sequence[tuple[bytes, Mapping[bytes, bytes]]], user_id: str) -> list[bytes]:
    """Ids of the dead letters about the user."""
    return [entry_id for entry_id, fields in letters if fields.get(b"user") == user_id.encode()]


def _behind(counted: bytes, held: bytes) -> bool:
    try:
        return Counted.read(counted).last > int.from_bytes(held, "little")
    except ValueError:
        # It cannot be read, which whoever takes up the user will say.
        return True


def _forget_arguments(keys: Keys, user_id: str, versions: Iterable[str]) -> tuple[list[str], list[str]]:
    number = partition(user_id)
    kept = [keys.stream(number), keys.answered(number), keys.shown(number), keys.answers(number)]
    own = [keys.history(user_id), keys.sequence(user_id), keys.forgotten(user_id), *kept]
    return [*own, *(keys.state(version, user_id) for version in versions)], [user_id, str(FORGOTTEN_S)]
