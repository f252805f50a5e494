"""User states and the active version in Redis, as the jobs and the refresher need them.

Raises StoreUnavailable when Redis does not answer within its limits, and StoreError when the pointer to the
active version is no such thing. State bytes pass through as they are; what they mean is the state codec's business.
"""

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import redis

from srp4ctr.contract.errors import StoreError, StoreUnavailable, VersionIncomplete
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import SEQUENCE_AT
from srp4ctr.runtime.event_scripts import WRITE_STATE
from srp4ctr.runtime.redis_client import exist, scan_pages, store_errors
from srp4ctr.runtime.version_records import (
    Active,
    Progress,
    Published,
    active_of,
    fields_of,
    name_of,
    texts_of,
)
from srp4ctr.runtime.version_scripts import (
    ACTIVATE,
    FOLLOW_ITEMS,
    MARK_PUBLISHED,
    NOTE_PROGRESS,
    ROLL_BACK,
    TAKE_BACK,
)

WRITTEN, NEWER, FORGOTTEN, CHANGED = 1, 0, -1, -2
"""What became of a state: written, not written since there is a newer one, since its user was forgotten, or since a snapshot has
changed the history that it is made of."""
ANNOUNCED_S = 600
"""How long a version stays announced unless that is renewed, so that a command that was killed does not keep it so for ever."""

REMOVING_S = 60
"""How long a version cannot be published after whoever removes it has last said so: a command that was killed says nothing more."""


class StateStore:
    """What publish, activate and the refresher do in Redis."""

    def __init__(self, client: redis.Redis, keys: Keys, state_ttl_s: int = 0) -> None:
        """States live so many seconds, 0 for ever."""
        self._client = client
        self._keys = keys
        self._state_ttl_s = state_ttl_s
        self._write = client.register_script(WRITE_STATE)

    def put_many(self, version: str, states: Iterable[tuple[str, bytes]]) -> int:
        """Write the states of (user id, bytes) pairs in one pipeline; gives how many were written."""
        return self.put_each(version, states).count(WRITTEN)

    def put_each(
        self, version: str, states: Iterable[tuple[str, bytes]], seedings: Iterable[int] | None = None
    ) -> list[int]:
        """Write the states of (user id, bytes) pairs in one pipeline; gives WRITTEN, NEWER, FORGOTTEN or CHANGED of each.

        `seedings` are those of the histories that the states are made of; None where histories are not kept.

        A state stays where it is of the same model and counts more of the user's events. None is written of a user who has
        been forgotten since it was made: it counts more than is known of, or nothing while the user is marked as forgotten.
        """
        # No transaction: users live in many partitions, and a rerun completes what was cut off.
        pipeline = self._client.pipeline(transaction=False)
        read: Iterable[int | str] = itertools.repeat("") if seedings is None else seedings
        for (user_id, data), changes in zip(states, read, strict=seedings is not None):
            keys = [
                self._keys.state(version, user_id),
                self._keys.sequence(user_id),
                self._keys.forgotten(user_id),
            ]
            self._write(keys=keys, args=[data, self._state_ttl_s, SEQUENCE_AT, changes], client=pipeline)
        with store_errors():
            outcomes: list[int] = pipeline.execute()
        return outcomes

    def get_many(self, version: str, user_ids: Sequence[str]) -> list[bytes | None]:
        """The users' state bytes in one pipeline; None where there is none."""
        pipeline = self._client.pipeline(transaction=False)
        for user_id in user_ids:
            pipeline.get(self._keys.state(version, user_id))
        with store_errors():
            values: list[bytes | None] = pipeline.execute()
        return values

    def exist(self, version: str, user_ids: Sequence[str]) -> list[bool]:
        """Whether each user has a state."""
        return exist(self._client, [self._keys.state(version, user_id) for user_id in user_ids])

    def forgotten(self, user_ids: Sequence[str]) -> list[bool]:
        """Whether each user was forgotten a short while ago."""
        return exist(self._client, [self._keys.forgotten(user_id) for user_id in user_ids])

    def latency_s(self) -> float:
        """Seconds that Redis needs for a PING."""
        began = time.perf_counter()
        with store_errors():
            self._client.ping()
        return time.perf_counter() - began

    def room_bytes(self) -> int:
        """Memory that Redis may still take: up to its `maxmemory`, or else up to its machine's."""
        with store_errors():
            found: dict[str, Any] = self._client.info("memory")
        # A Redis that says neither, as some services' do, is believed to have enough.
        limit = int(found.get("maxmemory", 0)) or int(found.get("total_system_memory", sys.maxsize))
        return max(0, limit - int(found["used_memory"]))

    def note_progress(self, version: str, progress: Progress) -> None:
        """Note how far the version's states are written, after they are; StoreError where they are being removed."""
        keys = self._keys.removing(version), self._keys.versions(), self._keys.publishing(version)
        with store_errors():
            noted = self._client.eval(NOTE_PROGRESS, 3, *keys, version, *fields_of(asdict(progress)))
        if not noted:
            raise _removing(version)

    def progress(self, version: str) -> Progress | None:
        """What `note_progress` noted; None where nothing was begun, or all is done."""
        with store_errors():
            found = texts_of(self._client.hgetall(self._keys.publishing(version)))
        return Progress(found["fingerprint"], found["data"], int(found["users"])) if found else None

    def mark_published(
        self, version: str, fingerprint: str, users: int, *, after_progress: bool = False
    ) -> None:
        """Declare that all states of the version are there; only then can it be activated.

        Raises StoreError where they are being removed, or, with `after_progress`, have been since the progress was noted last.
        """
        fields = {"fingerprint": fingerprint, "users": users, "completed_at_ms": _now_ms()}
        beside = self._keys.removing(version), self._keys.versions()
        keys = *beside, self._keys.published(version), self._keys.publishing(version)
        with store_errors():
            marked = self._client.eval(
                MARK_PUBLISHED, 4, *keys, version, int(after_progress), *fields_of(fields)
            )
        if not marked:
            raise _removing(version)

    def published(self, version: str) -> Published | None:
        """What `mark_published` declared of the version."""
        with store_errors():
            found = texts_of(self._client.hgetall(self._keys.published(version)))
        if not found:
            return None
        return Published(found["fingerprint"], int(found["users"]), int(found["completed_at_ms"]))

    def require_published(self, version: str, fingerprint: str) -> None:
        """Raise VersionIncomplete unless all states of that very model have been published."""
        published = self.published(version)
        if published is None:
            raise VersionIncomplete(f"{version} has not been published to the end; run: srp4ctr publish")
        if published.fingerprint != fingerprint:
            raise VersionIncomplete(
                f"{version} was published from the model {published.fingerprint[:12]}, and its bundle now holds "
                f"{fingerprint[:12]}; run: srp4ctr publish"
            )

    def activate(self, version: str, fingerprint: str) -> Active:
        """Switch services to the version, atomically; the one that was active becomes `previous`.

        Raises VersionIncomplete unless all states of that very model have been published.
        """
        self.require_published(version, fingerprint)
        with store_errors():
            keys = self._keys.active(), self._keys.published(version)
            switched = self._client.eval(ACTIVATE, 2, *keys, version, fingerprint, str(_now_ms()))
        if not switched:
            raise VersionIncomplete(f"{version} is being removed; run: srp4ctr publish")
        active = self.active()
        if active is None:
            raise StoreUnavailable(
                "Redis lost the active version that was just written; is it evicting keys?"
            )
        return active

    def set_items_revision(self, version: str, revision: str | None) -> None:
        """Have services take that revision of the version's item table; None: the bundle's own."""
        with store_errors():
            if revision is None:
                self._client.delete(self._keys.items(version))
            else:
                self._client.set(self._keys.items(version), revision)

    def items_revision(self, version: str) -> str | None:
        """The revision of the version's item table that services take; None for the bundle's own."""
        with store_errors():
            found: Any = self._client.get(self._keys.items(version))
        return name_of(found)

    def follow_items_revision(self, version: str, before: str | None, revision: str) -> None:
        """Have services take that revision if they take `before` until now, None for the bundle's own; else raises StoreError."""
        with store_errors():
            followed = self._client.eval(FOLLOW_ITEMS, 1, self._keys.items(version), before or "", revision)
        if not followed:
            raise StoreError(
                f"somebody else published items of {version} meanwhile; look at --list, and publish yours again"
            )

    def announce(self, version: str | None) -> None:
        """Have the version refreshed like the active one, because it is about to be active; None: none is any more.

        That ends by itself after ANNOUNCED_S; whoever takes longer says it again.
        """
        with store_errors():
            if version is None:
                self._client.delete(self._keys.upcoming())
            else:
                self._client.set(self._keys.upcoming(), version, ex=ANNOUNCED_S)

    def upcoming(self) -> str | None:
        """The version that is about to be active."""
        with store_errors():
            found: Any = self._client.get(self._keys.upcoming())
        return None if found is None else found.decode()

    def roll_back(self) -> Active:
        """Switch services back to the version before the active one, which then is the previous one itself.

        Raises VersionIncomplete where there is none whose states are still there.
        """
        active = self.active()
        if active is None or active.previous is None:
            raise VersionIncomplete(
                "there is no version to roll back to; srp4ctr versions shows what there is"
            )
        published = self.published(active.previous)
        if published is None:
            raise VersionIncomplete(
                f"the states of {active.previous}, which was active before, are gone; publish and activate it again"
            )
        arguments = (active.version, active.previous, published.fingerprint, str(_now_ms()))
        try:
            with store_errors():
                switched = self._client.eval(ROLL_BACK, 1, self._keys.active(), *arguments)
        except StoreUnavailable as error:
            raise StoreUnavailable(
                f"{error}; the version may have been switched: look at srp4ctr versions before a second rollback, which "
                "would go forward again"
            ) from error
        if not switched:
            raise StoreError(
                "somebody else switched the version at this moment; look at srp4ctr versions, and try again"
            )
        return Active(active.previous, published.fingerprint, active.version, int(arguments[-1]))

    def active(self) -> Active | None:
        """The active version; None before the first activation."""
        with store_errors():
            return active_of(self._client.hgetall(self._keys.active()))

    def versions(self) -> list[str]:
        """All versions of which something has been published, or begun to be, by name."""
        with store_errors():
            found: Any = self._client.smembers(self._keys.versions())
        return sorted(version.decode() for version in found)

    def users(self, version: str) -> Iterator[str]:
        """Users who have a state of the version, in no order; looks through all of Redis."""
        with store_errors():
            for keys in scan_pages(self._client, self._keys.states(version)):
                yield from map(self._keys.user_of, keys)

    def drop(self, version: str) -> int:
        """Remove all states of a version that is neither active nor the one before; gives their number.

        That it is published is taken back first, and whoever is publishing it is refused from then on, so that what is half gone
        can never be activated. That there was such a version is known until `strike`, so that whoever is cut off finds it again.
        Raises StoreError for a version that services may need.
        """
        dropped = 0
        # Once more where there were any: who was publishing it may have written some before being refused.
        while removed := self._drop_all(version):
            dropped += removed
        with store_errors():
            self._client.delete(
                self._keys.publishing(version), self._keys.items(version), self._keys.removing(version)
            )
        return dropped

    def _drop_all(self, version: str) -> int:
        """Remove all states that there are now; gives their number."""
        dropped = 0
        self._take_back(version)
        with store_errors():
            for some in scan_pages(self._client, self._keys.states(version)):
                # One by one: in a cluster they are in many slots.
                pipeline = self._client.pipeline(transaction=False)
                for key in some:
                    pipeline.unlink(key)
                dropped += sum(pipeline.execute())
                self._take_back(version)
        return dropped

    def _take_back(self, version: str) -> None:
        needed = self._keys.active(), self._keys.upcoming(), self._keys.published(version)
        with store_errors():
            removing = self._keys.removing(version)
            taken_back = self._client.eval(TAKE_BACK, 4, *needed, removing, version, REMOVING_S)
        if not taken_back:
            raise StoreError(
                f"{version} is active, about to be, or the one to roll back to, and is not removed"
            )

    def strike(self, version: str) -> None:
        """Strike a version of which there is nothing any more off the list of all."""
        with store_errors():
            self._client.srem(self._keys.versions(), version)


def _removing(version: str) -> StoreError:
    return StoreError(
        f"srp4ctr versions --prune removes the states of {version}; publish it again when that is done, or in {REMOVING_S} s "
        "where it was cut off"
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
