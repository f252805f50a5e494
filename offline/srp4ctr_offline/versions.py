"""`srp4ctr versions`: which versions there are, and what may go."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from srp4ctr.contract.errors import StoreError, StoreUnavailable
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import drop_revisions
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore


@dataclass(frozen=True)
class Version:
    """One version: what it is to the services, its states in Redis, and whether its bundle is here."""

    name: str
    role: str
    users: int | None
    published_at_ms: int | None
    bundle: bool


def versions(store: StateStore, bundles: Path) -> list[Version]:
    """All versions with states in Redis or with a bundle below `bundles`; those that services use first, then the newest."""
    active = store.active()
    roles = {} if active is None else {active.previous: "previous", active.version: "active"}
    here = (
        {path.name for path in bundles.iterdir() if (path / "manifest.json").exists()}
        if bundles.exists()
        else set()
    )
    found = []
    known = store.versions()
    for name in {*known, *here}:
        published, progress = store.published(name), store.progress(name)
        role = roles.get(name) or (
            "published" if published else "half published" if progress or name in known else "bundle only"
        )
        users = published.users if published else progress.users if progress else None
        found.append(
            Version(name, role, users, published.completed_at_ms if published else None, name in here)
        )
    order = ["active", "previous"]
    return sorted(
        found,
        key=lambda one: (
            order.index(one.role) if one.role in order else len(order),
            -(one.published_at_ms or 0),
            one.name,
        ),
    )


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr versions",
        description="Reads what Redis and var/bundles have, and lists the versions. Writes nothing; with --prune it removes "
        "states from Redis and revisions of item tables, and never a bundle.",
    )
    parser.add_argument(
        "--prune",
        action="store_true",
        help="remove from Redis the states of versions that are neither active nor the one to roll back to, and from the disk "
        "the revisions of their item tables",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="with --prune: but keep the N newest published of them",
    )
    arguments = parser.parse_args(argv)
    if arguments.keep < 0:
        parser.error("--keep is a number of versions, 0 or more")
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    listed = versions(store, settings.bundles_dir)
    if arguments.prune:
        spare = [one for one in listed if one.role == "published"][arguments.keep :]
        for one in [*spare, *(one for one in listed if one.role == "half published")]:
            try:
                states = store.drop(one.name)
            except StoreUnavailable:
                raise
            except StoreError as error:
                print(f"not removed: {error}")
                continue
            print(f"removed {states:,} states of {one.name}")
            if dropped := drop_revisions(settings.bundles_dir, one.name):
                print(f"removed {dropped:,} revisions of the item table of {one.name}")
            store.strike(one.name)
        listed = versions(store, settings.bundles_dir)
    if not listed:
        print("there are no versions; make one with: srp4ctr export")
        return 0
    width = max(len(one.name) for one in listed)
    print(f"{'version':<{width}}  {'is':<14}  {'users':>12}  {'published':<20}  bundle")
    for one in listed:
        users = "-" if one.users is None else f"{one.users:,}"
        at = (
            "-"
            if one.published_at_ms is None
            else f"{datetime.fromtimestamp(one.published_at_ms / 1000, UTC):%Y-%m-%d %H:%M:%SZ}"
        )
        print(
            f"{one.name:<{width}}  {one.role:<14}  {users:>12}  {at:<20}  {'here' if one.bundle else 'missing'}"
        )
    return 0
