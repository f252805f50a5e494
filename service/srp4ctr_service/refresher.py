"""Near-line refresh: users who acted are encoded anew, for every version that services may score with."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from srp4ctr.contract.errors import Srp4ctrError, StoreError, StoreUnavailable
from srp4ctr.runtime.acted import ActedStreams, Entry
from srp4ctr.runtime.bundle import find_bundle, open_revision
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_service.settings import RefreshSettings

log = structlog.get_logger()

BLOCK_MS = 500
"""Longest wait for an entry, and so until a request to stop is seen."""
ENTRIES_TAKEN = 1024
"""About as many as a worker takes before it has finished them: a second's work. What it has taken nobody else has."""
ENTRIES_AT_ONCE = 256
"""That are encoded, written and finished before the next."""
MAX_ATTEMPTS = 5
SUSPECT_AFTER = 2
"""Workers that have been given an entry and not finished it: what was encoded with it may be why, or it itself."""
MAX_ENDED = 2
"""Workers that may have ended while they encoded an entry alone."""
Wanted = tuple[str, str | None]
"""A version, and the revision of its item table."""
RETRY_S = 1.0
ENDED_AFTER_MS = 3_600_000
"""A worker that has not asked for so long has ended."""
RETRY_BUNDLE_S = 30.0


class RefreshMetrics:
    """Prometheus metrics of one worker."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.entries = Counter(
            "srp4ctr_refresh_entries", "Entries of users who acted, finished", registry=registry
        )
        self.states = Counter(
            "srp4ctr_refresh_states", "User states written, of all versions", registry=registry
        )
        self.claimed = Counter(
            "srp4ctr_refresh_claimed", "Entries taken over, that a worker had not finished", registry=registry
        )
        self.given_up = Counter(
            "srp4ctr_refresh_dead_letters", "Entries that could not be processed", registry=registry
        )
        self.seconds = Histogram(
            "srp4ctr_refresh_seconds",
            "From when an event was acknowledged, by Redis's clock, until the user's states have it",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0),
            registry=registry,
        )


@dataclass
class _Encoders:
    """Of the versions to refresh; one whose bundle cannot be opened is tried again after a while."""

    settings: RefreshSettings
    loaded: dict[Wanted, HistoryEncoder] = field(default_factory=dict)
    refused: dict[Wanted, float] = field(default_factory=dict)

    def of(self, wanted: Wanted) -> HistoryEncoder | None:
        """The encoder of a version with a revision of its items; without the revision where that cannot be opened."""
        version, revision = wanted
        if wanted in self.loaded:
            return self.loaded[wanted]
        if time.monotonic() >= self.refused.get(wanted, 0.0):
            try:
                bundle = find_bundle(version, self.settings.bundles_dir)
                if revision is not None:
                    bundle = open_revision(bundle, revision)
            except Srp4ctrError as error:
                log.warning("version_not_refreshed", version=version, items=revision, reason=str(error))
                self.refused[wanted] = time.monotonic() + RETRY_BUNDLE_S
            else:
                self.loaded[wanted] = HistoryEncoder(bundle, self.settings.onnx_threads)
                log.info("version_refreshed", version=version, items_revision=revision)
                return self.loaded[wanted]
        return None if revision is None else self.of((version, None))

    def keep(self, wanted: Sequence[Wanted]) -> None:
        versions = {version for version, _ in wanted}
        # A version's own table may stand in for its revision.
        for one in [one for one in self.loaded if one not in wanted and (one[1] or one[0] not in versions)]:
            del self.loaded[one]


class Refresher:
    """One worker. Several share the work, and take over what one of them leaves unfinished."""

    def __init__(
        self, settings: RefreshSettings, streams: ActedStreams, events: EventStore, states: StateStore
    ) -> None:
        self._settings = settings
        self._streams = streams
        self._events = events
        self._states = states
        self._encoders = _Encoders(settings)
        self._survived: list[Entry] = []
        """Entries that were encoded alone by this worker, which did not end, and of which Redis does not know that yet."""
        self._claim_at = 0.0
        self._has_claimed = False
        self._idle = True
        self.metrics = RefreshMetrics()

    def run(self, stopping: Callable[[], bool]) -> None:
        """Work until `stopping`; while Redis is away, or what it says of versions cannot be read, try again and again."""
        lost = prepared = False
        while not stopping():
            try:
                if not prepared:
                    self._streams.prepare()
                    self._streams.remove_ended(ENDED_AFTER_MS)
                    prepared = True
                self.step(BLOCK_MS)
                if lost:
                    log.info("redis_back")
                lost = False
            except StoreError as error:
                if not lost:
                    log.warning("redis_lost", reason=str(error))
                lost = True
                time.sleep(RETRY_S)

    def step(self, block_ms: int) -> int:
        """Refresh who acted, waiting for the first of them for so long; gives how many entries were finished."""
        if self._idle and self._versions() is None:
            # Entries that nothing can be made of are better left for whoever can.
            time.sleep(block_ms / 1000)
            return 0
        entries = self._next(block_ms)
        if not entries:
            return 0
        # Only now: who is announced after an entry was read is caught up by who announced it.
        encoders = self._versions()
        self._idle = encoders is None
        if encoders is None:
            return 0
        self._tell_survived()
        aside = self._streams.aside()
        for entry in entries:
            if entry.user_id in aside:
                self._give_up(entry, "refresh workers ended while they encoded this user before")
        entries = [entry for entry in entries if entry.user_id not in aside]
        suspects = [entry for entry in entries if entry.attempts > SUSPECT_AFTER]
        others = [entry for entry in entries if entry.attempts <= SUSPECT_AFTER]
        # Some at a time, so that the first are fresh soon.
        some = (others[at : at + ENTRIES_AT_ONCE] for at in range(0, len(others), ENTRIES_AT_ONCE))
        finished = sum(self._refresh(one, encoders) for one in some)
        return finished + sum(self._alone(entry, encoders) for entry in suspects)

    def _next(self, block_ms: int) -> list[Entry]:
        """Entries in turns: what a dead worker has left does not keep what is new waiting."""
        entries = self._read(None) if self._has_claimed else []
        self._has_claimed = False
        if entries:
            return entries
        entries = self._claimed()
        self._has_claimed = bool(entries)
        return entries or self._read(block_ms)

    def _read(self, block_ms: int | None) -> list[Entry]:
        # One of each stream, which are as many as are taken: of a backlog others shall have their part.
        entries = self._streams.read(1, block_ms)
        # A user acts several times in a row, and users that are encoded together cost less.
        if entries and self._settings.refresh_gather_ms and len(entries) < ENTRIES_TAKEN // 2:
            time.sleep(self._settings.refresh_gather_ms / 1000)
            entries += self._streams.read(ENTRIES_TAKEN // len(entries), None)
        return entries

    def _claimed(self) -> list[Entry]:
        if time.monotonic() < self._claim_at:
            return []
        entries = self._streams.claim(round(1000 * self._settings.refresh_claim_after_s), 1)
        self.metrics.claimed.inc(len(entries))
        if not entries:
            self._claim_at = time.monotonic() + self._settings.refresh_claim_every_s
        return entries

    def _versions(self) -> list[HistoryEncoder] | None:
        """Encoders of the versions to refresh; None where there is no version yet, or the active one's bundle is missing."""
        # In this order: what is announced and switched to between the two is then seen as the active one.
        upcoming, active = self._states.upcoming(), self._states.active()
        needed, wanted = [], []
        if active is not None:
            needed.append(active.version)
            age_s = time.time() - active.activated_at_ms / 1000
            if active.previous is not None and age_s < self._settings.refresh_previous_s:
                wanted.append(active.previous)
        if upcoming is not None and self._states.published(upcoming) is not None:
            wanted.append(upcoming)
        names = list(dict.fromkeys(needed + wanted))
        revisions = {name: (name, self._states.items_revision(name)) for name in names}
        encoders = {name: self._encoders.of(wanted) for name, wanted in revisions.items()}
        self._encoders.keep(list(revisions.values()))
        if not names or any(encoders[name] is None for name in needed):
            return None
        return [encoder for encoder in encoders.values() if encoder is not None]

    def _refresh(self, entries: Sequence[Entry], encoders: Sequence[HistoryEncoder]) -> int:
        try:
            self._encode(entries, encoders)
        except StoreUnavailable:
            raise
        except Exception:  # noqa: BLE001 -- one user's data must not stop the others'
            return sum(self._try(entry, encoders) for entry in entries)
        self._finish(entries)
        return len(entries)

    def _alone(self, entry: Entry, encoders: Sequence[HistoryEncoder]) -> bool:
        """Finish an entry that workers may have died of; give it up where that has happened again."""
        begun = self._streams.begin_alone(entry)
        try:
            if begun > MAX_ENDED:
                self._streams.put_aside(entry.user_id)
                self._give_up(entry, f"{begun - 1} refresh workers ended while they encoded this user")
                return False
            return self._try(entry, encoders)
        finally:
            # Also where Redis is gone by now: that is nothing that a worker ends of.
            self._survived.append(entry)
            self._tell_survived()

    def _tell_survived(self) -> None:
        try:
            while self._survived:
                self._streams.end_alone(self._survived[-1])
                self._survived.pop()
        except StoreUnavailable as error:
            log.warning("told_later", reason=str(error))

    def _give_up(self, entry: Entry, reason: str) -> None:
        log.error("entry_given_up", attempts=entry.attempts, reason=reason)
        self._streams.give_up([entry], reason)
        self.metrics.given_up.inc()

    def _try(self, entry: Entry, encoders: Sequence[HistoryEncoder]) -> bool:
        """Finish one entry, or give it up where it has failed too often, or always will."""
        try:
            self._encode([entry], encoders)
        except StoreUnavailable:
            raise
        except Exception as error:
            if isinstance(error, StoreError) or entry.attempts >= MAX_ATTEMPTS:
                log.warning("entry_failed", exc_info=True)
                self._give_up(entry, f"{type(error).__name__}: {error}")
            return False
        self._finish([entry])
        return True

    def _encode(self, entries: Sequence[Entry], encoders: Sequence[HistoryEncoder]) -> None:
        user_ids = list(dict.fromkeys(entry.user_id for entry in entries))
        if "" in user_ids:
            raise StoreError("the entry names no user")
        histories = self._events.histories(user_ids, [encoder.version for encoder in encoders])
        for encoder in encoders:
            self.metrics.states.inc(write_states(encoder, histories, self._states, self._events))

    def _finish(self, entries: Sequence[Entry]) -> None:
        self._streams.finish(entries)
        self.metrics.entries.inc(len(entries))
        now = time.time()
        for entry in entries:
            self.metrics.seconds.observe(max(0.0, now - entry.added_ms / 1000))
