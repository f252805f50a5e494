"""The partitions' streams: users who acted, each to be refreshed by one of several workers."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from srp4ctr.contract.errors import StoreUnavailable
from srp4ctr.contract.keys import PARTITIONS, Keys, partition
from srp4ctr.runtime.event_scripts import FINISH, REMOVE_ENDED
from srp4ctr.runtime.redis_client import store_errors

GROUP = "refresh"
MAX_DEAD_LETTERS = 10_000
AT_ONCE = 1000
SUSPECTS_KEPT_S = 86_400


class Entry(NamedTuple):
    """One user who acted; `attempts` counts the workers that have been given it."""

    stream: bytes
    entry_id: bytes
    user_id: str
    attempts: int

    @property
    def added_ms(self) -> int:
        """When it was added, by Redis's clock, Unix milliseconds."""
        return int(self.entry_id.split(b"-")[0])


class DeadLetter(NamedTuple):
    """An entry that was given up, and why."""

    at_ms: int
    user_id: str
    reason: str


class ActedStreams:
    """Reads all partitions' streams as one consumer of the group."""

    def __init__(self, client: redis.Redis, keys: Keys, consumer: str) -> None:
        self._client = client
        self._keys = keys
        self._consumer = consumer
        self._streams = [keys.stream(number) for number in range(PARTITIONS)]
        self._finish = client.register_script(FINISH)
        self._remove_ended = client.register_script(REMOVE_ENDED)

    def prepare(self) -> None:
        """Make the group where a stream has none; what is there already is to be read, too."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in self._streams:
            pipeline.xgroup_create(stream, GROUP, id="0", mkstream=True)
        with store_errors():
            for answer in pipeline.execute(raise_on_error=False):
                if isinstance(answer, redis.ResponseError) and not str(answer).startswith("BUSYGROUP"):
                    raise answer

    def remove_ended(self, idle_ms: int) -> int:
        """Forget workers that have not asked for so long and hold no entry, of which Redis would keep one a stream for ever.

        Gives how many of these there were. A worker that lives asks every second, and entries that one has left are another's first.
        """
        pipeline = self._client.pipeline(transaction=False)
        for stream in self._streams:
            self._remove_ended(keys=[stream], args=[GROUP, idle_ms], client=pipeline)
        with store_errors():
            return sum(pipeline.execute())

    def read(self, count: int, block_ms: int | None) -> list[Entry]:
        """Up to so many new entries of each stream that has any, waiting for the first for so long; None does not wait."""
        wanted: dict[Any, Any] = dict.fromkeys(self._streams, ">")
        with store_errors():
            try:
                found: Any = self._client.xreadgroup(
                    GROUP, self._consumer, wanted, count=count, block=block_ms
                )
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                # Redis has been emptied.
                self.prepare()
                return []
        return [
            Entry(stream, entry_id, _user(fields), 1)
            for stream, entries in found or ()
            for entry_id, fields in entries
            if fields
        ]

    def claim(self, idle_ms: int, count: int) -> list[Entry]:
        """Take over up to so many entries of each stream that another worker has not finished for so long."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in self._streams:
            pipeline.xautoclaim(stream, GROUP, self._consumer, idle_ms, count=count)
        with store_errors():
            answers = pipeline.execute(raise_on_error=False)
        claimed = []
        for stream, answer in zip(self._streams, answers, strict=True):
            if isinstance(answer, redis.ResponseError):
                if str(answer).startswith("NOGROUP"):
                    self.prepare()
                    return []
                raise StoreUnavailable(f"Redis: {answer}")
            # In Redis 6, entries that have been removed come without fields.
            claimed += [(stream, entry_id, fields) for entry_id, fields in answer[1] if entry_id and fields]
        if not claimed:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for stream, entry_id, _ in claimed:
            pipeline.xpending_range(stream, GROUP, entry_id, entry_id, 1)
        with store_errors():
            pending = pipeline.execute()
        return [
            Entry(stream.encode(), entry_id, _user(fields), info[0]["times_delivered"] if info else 1)
            for (stream, entry_id, fields), info in zip(claimed, pending, strict=True)
        ]

    def finish(self, entries: Iterable[Entry]) -> None:
        """Acknowledge and remove the entries: their users' states are written."""
        by_stream: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for entry in entries:
            by_stream[entry.stream].append(entry.entry_id)
        pipeline = self._client.pipeline(transaction=False)
        for stream, ids in by_stream.items():
            for at in range(0, len(ids), AT_ONCE):
                self._finish(keys=[stream], args=[GROUP, *ids[at : at + AT_ONCE]], client=pipeline)
        with store_errors():
            pipeline.execute()

    def begin_alone(self, entry: Entry) -> int:
        """Note that this worker is about to encode this entry and no other; gives how many have begun it so and not ended."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hincrby(self._keys.suspects(), _name(entry), 1)
        pipeline.expire(self._keys.suspects(), SUSPECTS_KEPT_S)
        with store_errors():
            return int(pipeline.execute()[0])

    def end_alone(self, entry: Entry) -> None:
        """Note that the entry has not ended this worker."""
        with store_errors():
            self._client.hdel(self._keys.suspects(), _name(entry))

    def put_aside(self, user_id: str) -> None:
        """Let no worker encode the user until the dead letters are requeued."""
        with store_errors():
            self._client.sadd(self._keys.quarantine(), user_id)

    def aside(self) -> frozenset[str]:
        """Users whom no worker is to encode."""
        with store_errors():
            found: Any = self._client.smembers(self._keys.quarantine())
        return frozenset(user_id.decode(errors="replace") for user_id in found)

    def give_up(self, entries: Sequence[Entry], reason: str) -> None:
        """Move the entries to the dead letters."""
        # First there and then gone from here: an entry may stand there twice, but none is lost.
        pipeline = self._client.pipeline(transaction=False)
        for entry in entries:
            fields: Any = {"user": entry.user_id, "reason": reason}
            pipeline.xadd(self._keys.dead_letters(), fields, maxlen=MAX_DEAD_LETTERS)
        with store_errors():
            pipeline.execute()
        self.finish(entries)

    def waiting(self) -> int:
        """Entries that no worker has finished."""
        pipeline = self._client.pipeline(transaction=False)
        for stream in self._streams:
            pipeline.xlen(stream)
        with store_errors():
            return sum(pipeline.execute())

    def dead_letters(self, newest: int) -> tuple[int, list[DeadLetter]]:
        """How many entries have been given up, and the newest of them."""
        with store_errors():
            number = int(self._client.xlen(self._keys.dead_letters()))
            found: Any = self._client.xrevrange(self._keys.dead_letters(), count=newest)
        letters = [
            DeadLetter(int(entry_id.split(b"-")[0]), fields[b"user"].decode(), fields[b"reason"].decode())
            for entry_id, fields in found
        ]
        return number, letters

    def requeue(self) -> int:
        """Put the users of all dead letters into their streams again, those who were put aside, too; gives how many there were."""
        users: set[str] = set()
        with store_errors():
            self._client.delete(self._keys.quarantine(), self._keys.suspects())
        while True:
            with store_errors():
                found: Any = self._client.xrange(self._keys.dead_letters(), count=AT_ONCE)
                if not found:
                    return len(users)
                pipeline = self._client.pipeline(transaction=False)
                # First there and then gone from here: a user may be refreshed twice.
                for _, fields in found:
                    user_id = _user(fields)
                    # An entry that named no user will never name one.
                    if user_id and user_id not in users:
                        pipeline.xadd(self._keys.stream(partition(user_id)), {"user": user_id})
                        users.add(user_id)
                pipeline.execute()
                self._client.xdel(self._keys.dead_letters(), *(entry_id for entry_id, _ in found))

    def remove_dead_letters(self) -> int:
        """Forget all dead letters; gives how many there were."""
        with store_errors():
            return int(self._client.xtrim(self._keys.dead_letters(), maxlen=0, approximate=False))


def _name(entry: Entry) -> bytes:
    return entry.stream + b"/" + entry.entry_id


def _user(fields: dict[bytes, bytes]) -> str:
    return fields.get(b"user", b"").decode(errors="replace")
