"""`srp4ctr publish`: encode every user with a bundle's own encoder and write the states to Redis.

It may be run again at any time: it writes the same states over what is there, and declares the version published
only when all of them are there and a sample read back is what was written.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from srp4ctr.contract.errors import DataError, StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import UserState, encode_state
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxEncoder
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import write_json

BATCH = 256
SAMPLE = 1000


@dataclass(frozen=True)
class Published:
    """What was written."""

    version: str
    users: int
    state_bytes: int
    verified: int


def encode_users(bundle: Bundle, prepared: Prepared, threads: int) -> Iterator[list[tuple[str, bytes]]]:
    """All users' ids and state bytes, in batches of users with histories of similar length."""
    if bundle.transforms.digest() != prepared.transforms.digest():
        raise DataError(
            f"the prepared histories are not in the codes of {bundle.manifest.version}; "
            "prepare, fine-tune and export again, or name the run of this bundle with --run"
        )
    encoder = OnnxEncoder(bundle, threads)
    manifest, events = bundle.manifest, prepared.events
    counts = prepared.event_counts()
    order = np.argsort(counts, kind="stable")
    for at in range(0, len(order), BATCH):
        users = order[at : at + BATCH]
        items, behaviours, _ = prepared.histories(users, counts[users])
        arrays = encoder(items, behaviours, np.ascontiguousarray(prepared.users.codes[users]))
        now = time.time_ns() // 1_000_000
        batch = []
        for place, user in enumerate(users):
            kept = int(prepared.lengths(counts[user : user + 1])[0])
            encoding = manifest.state.of_user(arrays, place, kept)
            last = int(events.time_ms[events.start[user + 1] - 1]) if counts[user] else -1
            state = UserState(
                arrays=encoding.arrays,
                events=kept,
                length=encoding.length,
                created_at_ms=now,
                last_event_at_ms=None if last < 0 else last,
            )
            data = encode_state(state, manifest.state, manifest.fingerprint_bytes)
            batch.append((prepared.users.ids[user].decode(), data))
        yield batch


def publish(bundle: Bundle, prepared: Prepared, store: StateStore, threads: int = 1) -> Published:
    """Write all users' states of the bundle's version, verify them, and declare the version published."""
    version = bundle.manifest.version
    generator = np.random.default_rng(0)
    users = size = 0
    sample: list[tuple[str, bytes]] = []
    share = min(1.0, SAMPLE / max(1, len(prepared.users.ids)))
    with tqdm(total=len(prepared.users.ids), desc="publishing", unit="user") as progress:
        for batch in encode_users(bundle, prepared, threads):
            users += store.put_many(version, batch)
            size += sum(len(data) for _, data in batch)
            sample += [one for one in batch if generator.random() < share]
            progress.update(len(batch))
    if users != len(prepared.users.ids):
        raise StoreError(f"Redis took {users} of {len(prepared.users.ids)} states; run publish again")
    stored = store.get_many(version, [user_id for user_id, _ in sample])
    wrong = [user_id for (user_id, data), found in zip(sample, stored, strict=True) if found != data]
    if wrong:
        raise StoreError(
            f"{len(wrong)} of {len(sample)} states read back are not what was written, the first that of "
            f"{wrong[0]!r}; is Redis full or evicting keys? Then run publish again"
        )
    store.mark_published(version, bundle.manifest.fingerprint, users)
    return Published(version, users, size, len(sample))


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr publish",
        description="Reads a bundle and its run's prepared/. Writes every user's state to Redis "
        "(SRP4CTR_REDIS_URL, else a local one below var/), and publish/metrics.json into the run.",
    )
    parser.add_argument("version", help="a version below var/bundles")
    parser.add_argument("--run", type=Path, help="the run's folder (default: var/runs/<name in the bundle>)")
    parser.add_argument("--threads", type=int, default=2, help="of the encoder (default: 2)")
    arguments = parser.parse_args(argv)
    bundle = find_bundle(arguments.version, settings.bundles_dir)
    folder = arguments.run or settings.runs_dir / bundle.manifest.name
    prepared = Prepared.load(folder / "prepared")
    began = time.monotonic()
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    done = publish(bundle, prepared, store, arguments.threads)
    seconds = time.monotonic() - began
    rate = done.users / seconds
    write_json(
        folder / "publish" / "config.json",
        {"version": arguments.version, "namespace": settings.namespace, "threads": arguments.threads},
    )
    write_json(
        folder / "publish" / "metrics.json",
        {
            "version": done.version,
            "users": done.users,
            "state_bytes_per_user": done.state_bytes // max(1, done.users),
            "verified": done.verified,
            "seconds": round(seconds, 2),
            "users_per_s": round(rate),
        },
    )
    print(
        f"published {done.users:,} users of {done.version}: {done.state_bytes // max(1, done.users):,} bytes each, "
        f"{rate:,.0f} users/s, {done.verified:,} read back and equal"
    )
    return 0
