"""`srp4ctr publish`: encode every user with a bundle's own encoder and write the states to Redis, and raw histories with them.

It may be cut off at any moment and run again: it goes on where it was, since how far it came is noted in Redis behind the
states themselves. The version is declared published only when every user has a state and a sample, encoded once more,
is what Redis gives back. It yields to whoever else needs Redis: when that becomes slow, it pauses.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srp4ctr.contract.errors import ConfigError, Srp4ctrError, StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import Manifest
from srp4ctr.contract.schema import Feature
from srp4ctr.contract.state import DType, UserState
from srp4ctr.contract.transforms import BEHAVIOUR
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.cpus import usable_cpus
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.history_encoder import HistoryEncoder
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr.runtime.version_records import Progress
from srp4ctr_offline.encode import Batch, UserEncoder, Users
from srp4ctr_offline.histories import RawHistories
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import config_of_run, write_json
from srp4ctr_offline.snapshot_writer import Seeding, SnapshotWriter

SAMPLE = 1000
CHUNK = 10_000
KEY_BYTES = 100
"""What Redis takes for a key beside its value: the key itself, and its place in the table."""
EVENT_BYTES = 3
"""What it takes for an element of a list beside its text."""
ROUNDING = 1.1
"""What its allocator rounds values up by, on average."""
SPARE = 0.05
"""Of Redis's memory, which is to stay free."""
TOLERANCE = 2e-3
"""Between two encodings of a user in different company, after float16."""
INT8_ROUNDING = 0.51 / 127
"""Half a step of a row whose largest number is 1, and what the step's own float16 adds."""
MAX_LATENCY_MS = 20.0
LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True)
class Published:
    """What was written: by this run, and by the one before it that was cut off."""

    version: str
    users: int
    resumed_at: int
    written: int
    verified: int
    state_bytes: float
    paused_s: float


class Throttle:
    """Pauses between writes while Redis is slow for others: twice as long each time, half as long when it is quick again."""

    def __init__(self, probe: Callable[[], float], max_latency_s: float) -> None:
        """`probe` gives the seconds that Redis needs for next to nothing."""
        self._probe = probe
        self._max_latency_s = max_latency_s
        self._pause_s = 0.0
        self.paused_s = 0.0

    def wait(self) -> None:
        """Look how Redis is, and pause if need be."""
        if self._probe() > self._max_latency_s:
            self._pause_s = min(LONGEST_PAUSE_S, max(2 * self._pause_s, self._max_latency_s))
        else:
            self._pause_s = self._pause_s / 2 if self._pause_s > self._max_latency_s / 4 else 0.0
        if self._pause_s:
            time.sleep(self._pause_s)
            self.paused_s += self._pause_s


def publish(
    bundle: Bundle,
    prepared: Prepared,
    store: StateStore,
    seeding: Seeding | None = None,
    threads: int = 1,
    max_latency_s: float = MAX_LATENCY_MS / 1000,
) -> Published:
    """Write all users' states of the bundle's version, verify them, and declare the version published.

    With `seeding`, the users' raw histories are written, too; what was acknowledged after them stays behind them.
    """
    manifest = bundle.manifest
    encoder = UserEncoder(bundle, prepared, threads)
    order = encoder.order()
    # With other histories those that were written before would have to be written again.
    histories = f"{seeding.histories.keep}-events" if seeding else "no-histories"
    data = f"{prepared.report['data_fingerprint']}-{histories}"
    begin = store.progress(manifest.version)
    resumed_at = (
        begin.users if begin and (begin.fingerprint, begin.data) == (manifest.fingerprint, data) else 0
    )
    state_bytes = prepared.mean_state_bytes(manifest.state)
    _check_room(store, manifest.version, prepared, order[resumed_at:], state_bytes, seeding)
    throttle = Throttle(store.latency_s, max_latency_s)
    writer = SnapshotWriter(store, bundle, len(order), seeding)

    def write(batch: Batch) -> None:
        writer.write(batch)
        throttle.wait()

    done = resumed_at
    # Before the first state, so that whoever forgets a user or removes a version knows of it.
    store.note_progress(manifest.version, Progress(manifest.fingerprint, data, done))
    with tqdm(total=len(order), initial=done, desc="publishing", unit="user") as bar:

        def write_and_note(batch: Batch) -> None:
            nonlocal done
            writer.write(batch)
            done += len(batch.users)
            store.note_progress(manifest.version, Progress(manifest.fingerprint, data, done))
            bar.update(len(batch.users))
            throttle.wait()

        _overlap(encoder.batches(order[resumed_at:]), write_and_note)
    # What a Redis that was killed had not kept, or somebody deleted meanwhile.
    lost = _missing(store, manifest.version, prepared, order, seeding)
    _overlap(encoder.batches(lost), write)
    still = _missing(store, manifest.version, prepared, lost, seeding)
    if len(still):
        raise StoreError(
            f"Redis does not keep {len(still)} of {len(order)} states, the first that of "
            f"{prepared.users.ids[still[0]].decode()!r}; is it full, or evicting keys? Then run publish again"
        )
    verified = _verify(encoder, order, store, manifest, writer)
    store.mark_published(manifest.version, manifest.fingerprint, len(order), after_progress=True)
    written = len(order) - resumed_at + len(lost)
    return Published(
        manifest.version, len(order), resumed_at, written, verified, state_bytes, throttle.paused_s
    )


def needed_bytes(users: int, state_bytes: float) -> float:
    """Memory that Redis will take for so many users' states of so many bytes each."""
    return users * (ROUNDING * state_bytes + KEY_BYTES)


def _check_room(
    store: StateStore,
    version: str,
    prepared: Prepared,
    users: Users,
    state_bytes: float,
    seeding: Seeding | None,
) -> None:
    """Raise StoreError where what Redis does not have yet, by a sample of the users, takes more than it has left."""
    if not len(users):
        return
    room = store.room_bytes()
    some = _sample(users)
    ids = [prepared.users.ids[user].decode() for user in some]
    needed = needed_bytes(len(users), state_bytes) * _absent(store.exist(version, ids))
    if seeding is not None:
        history_bytes = _history_bytes(seeding.histories, some)
        needed += needed_bytes(len(users), history_bytes) * _absent(seeding.events.exist(ids))
    if needed > (1 - SPARE) * room:
        raise StoreError(
            f"{len(users):,} states{' and histories' if seeding else ''} need about {needed / 1e6:,.1f} MB more, and Redis has {room / 1e6:,.1f} MB left; give it more, "
            "or remove versions that are no longer used: srp4ctr versions --prune"
        )


def _sample(users: Users) -> Users:
    return users[:: max(1, len(users) // SAMPLE)]


def _absent(there: Sequence[bool]) -> float:
    return 1 - sum(there) / len(there)


def _history_bytes(histories: RawHistories, users: Users) -> float:
    """Bytes of a raw history, the mean of these users'."""
    lines = [events.splitlines() for events in histories.packed(users)]
    return sum(len(event) + EVENT_BYTES for events in lines for event in events) / max(1, len(lines))


def _overlap(batches: Iterable[Batch], write: Callable[[Batch], None]) -> None:
    """Write each batch while the next is encoded."""
    writing: Future[None] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="write-states") as pool:
        for batch in batches:
            if writing is not None:
                writing.result()
            writing = pool.submit(write, batch)
        if writing is not None:
            writing.result()


def _missing(
    store: StateStore, version: str, prepared: Prepared, users: Users, seeding: Seeding | None
) -> Users:
    without = prepared.event_counts() == 0
    there = np.zeros(len(users), bool)
    for at in range(0, len(users), CHUNK):
        some = users[at : at + CHUNK]
        ids = [prepared.users.ids[user].decode() for user in some]
        there[at : at + CHUNK] = store.exist(version, ids)
        if seeding is not None:
            # An empty list is no key.
            there[at : at + CHUNK] &= np.array(seeding.events.exist(ids), bool) | without[some]
    absent: Users = users[~there]
    forgotten = np.zeros(len(absent), bool)
    for at in range(0, len(absent), CHUNK):
        ids = [prepared.users.ids[user].decode() for user in absent[at : at + CHUNK]]
        forgotten[at : at + CHUNK] = store.forgotten(ids)
    lost: Users = absent[~forgotten]
    return lost


def _verify(
    encoder: UserEncoder, order: Users, store: StateStore, manifest: Manifest, writer: SnapshotWriter
) -> int:
    """Encode some users once more and compare with what Redis has; gives how many were equal.

    Where what is there counts more events than the snapshot, since the user has acted, it is compared with what the encoder gives of
    the history that is there.
    """
    sample = np.sort(np.random.default_rng().choice(order, min(SAMPLE, len(order)), replace=False))
    wrong, newer = [], []
    for batch in encoder.batches(sample):
        found = store.get_many(manifest.version, [one.user_id for one in batch.encoded])
        expected = writer.sequences[batch.users].tolist()
        for one, data, sequence in zip(batch.encoded, found, expected, strict=True):
            if data is not None and manifest.decode_state(data).sequence > sequence:
                newer.append(one.user_id)
            elif not _equal(manifest, one.state, data):
                wrong.append(one.user_id)
    equal = len(sample) - len(wrong) - len(newer)
    if newer and writer.seeding is not None:
        odd, same = _verify_newer(newer, store, manifest, writer.seeding.events, writer.of_histories())
        wrong += odd
        equal += same
    # Asked last: whoever was forgotten meanwhile is marked before the state goes.
    wrong = [one for one, forgotten in zip(wrong, store.forgotten(wrong), strict=True) if not forgotten]
    if wrong:
        raise StoreError(
            f"{len(wrong)} of {len(sample)} states read back are not what the encoder gives, the first that of "
            f"{wrong[0]!r}; does something else write below this namespace? Then run publish again"
        )
    return equal


def _verify_newer(
    users: Sequence[str], store: StateStore, manifest: Manifest, events: EventStore, encoder: HistoryEncoder
) -> tuple[list[str], int]:
    """Users whose states are not what the encoder gives of their histories, and how many are; whoever acts just then is neither."""
    before = store.get_many(manifest.version, users)
    encoded = {one.user_id: one.state for one in encoder.encode(events.histories(users, [manifest.version]))}
    after = store.get_many(manifest.version, users)
    wrong, equal = [], 0
    for user_id, data, later in zip(users, before, after, strict=True):
        state = encoded.get(user_id)
        if state is None or data is None or data != later:
            continue
        if manifest.decode_state(data).sequence != state.sequence:
            continue
        if _equal(manifest, state, data):
            equal += 1
        else:
            wrong.append(user_id)
    return wrong, equal


def _equal(manifest: Manifest, encoded: UserState, data: bytes | None) -> bool:
    if data is None:
        return False
    found = manifest.decode_state(data)
    counted = (encoded.events, encoded.length, encoded.last_event_at_ms)
    return counted == (found.events, found.length, found.last_event_at_ms) and all(
        _near(encoded.arrays[spec.name], found.arrays[spec.name], spec.dtype)
        for spec in manifest.state.arrays
    )


def _near(encoded: NDArray[np.generic], found: NDArray[np.generic], dtype: DType) -> bool:
    """Whether one is the other after storage. What lies between two int8 steps may have come to either."""
    exact, kept = encoded.astype(np.float64), found.astype(np.float64)
    allowed = TOLERANCE * (1 + np.abs(kept))
    if dtype == "int8":
        allowed += INT8_ROUNDING * np.abs(exact).max(axis=-1, keepdims=True, initial=0.0)
    return bool((np.abs(exact - kept) <= allowed).all())


def _check_bound(prepared: Prepared, settings: StoreSettings) -> None:
    if prepared.max_events > settings.history_events:
        raise ConfigError(
            f"SRP4CTR_HISTORY_EVENTS is {settings.history_events}, and the model reads {prepared.max_events} events; "
            "give it at least as many, here and to the service, or publish with --no-histories"
        )


def _features_of_others(store: StateStore, version: str, settings: StoreSettings) -> list[Feature]:
    """Behaviour features of the models that are served, and may be again; of those whose bundles are here."""
    active = store.active()
    features: list[Feature] = []
    for other in () if active is None else (active.version, active.previous):
        if other in (None, version):
            continue
        try:
            features += find_bundle(other, settings.bundles_dir).transforms.features(BEHAVIOUR)
        except Srp4ctrError as error:
            print(f"without the features that only {other} reads: {error}", file=sys.stderr)
    return features


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr publish",
        description="Reads a bundle, its run's prepared/ and the tables that it was prepared of. Writes every user's state "
        "and raw history to Redis (SRP4CTR_REDIS_URL, else a local one below var/), and publish/metrics.json into the run. "
        "Cut off, it goes on where it was when it is run again.",
    )
    parser.add_argument("version", help="a version below var/bundles")
    parser.add_argument("--run", type=Path, help="the run's folder (default: var/runs/<name in the bundle>)")
    parser.add_argument(
        "--threads", type=int, default=usable_cpus(), help="of the encoder (default: all, %(default)s)"
    )
    parser.add_argument(
        "--no-histories",
        action="store_true",
        help="write states alone, where nothing is ever sent to POST /events: then a state is refreshed by the next "
        "publish only, and Redis needs less memory",
    )
    parser.add_argument(
        "--max-latency-ms",
        type=float,
        default=MAX_LATENCY_MS,
        help="pause while Redis needs longer than this for a PING (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    bundle = find_bundle(arguments.version, settings.bundles_dir)
    folder = arguments.run or settings.runs_dir / bundle.manifest.name
    prepared = Prepared.load(folder / "prepared")
    began = time.monotonic()
    client, keys = connect(settings, local_redis.ensure(settings)), Keys(settings.namespace)
    seeding = None
    if not arguments.no_histories:
        _check_bound(prepared, settings)
        others = _features_of_others(StateStore(client, keys), arguments.version, settings)
        histories = RawHistories.read(config_of_run(folder), prepared, settings.history_events, others)
        if not (prepared.events.time_ms > 0).any():
            print(
                "the snapshot has no timestamps ([schema] timestamp): events that are sent to POST /events come after all of "
                "it, whatever their time, and one that a later snapshot has, too, counts twice",
                file=sys.stderr,
            )
        seeding = Seeding(histories, EventStore(client, keys, settings.retention))
    store = StateStore(client, keys, settings.state_ttl_s)
    done = publish(bundle, prepared, store, seeding, arguments.threads, arguments.max_latency_ms / 1000)
    seconds = time.monotonic() - began
    rate = done.written / seconds
    write_json(
        folder / "publish" / "config.json",
        {"version": arguments.version, "namespace": settings.namespace, "threads": arguments.threads},
    )
    write_json(
        folder / "publish" / "metrics.json",
        {
            "version": done.version,
            "users": done.users,
            "resumed_at": done.resumed_at,
            "written": done.written,
            "state_bytes_per_user": round(done.state_bytes),
            "verified": done.verified,
            "paused_s": round(done.paused_s, 2),
            "seconds": round(seconds, 2),
            "users_per_s": round(rate),
        },
    )
    resumed = f" (went on after {done.resumed_at:,})" if done.resumed_at else ""
    print(
        f"published {done.users:,} users{resumed} of {done.version}: {done.state_bytes:,.0f} bytes each, "
        f"{rate:,.0f} users/s, {done.verified:,} encoded once more and equal"
    )
    return 0
