"""`srp4ctr rollback`: switch the services back to the version that was active before, and catch up on who acted meanwhile.

The pointer comes first, since that is what a rollback is wanted for. Users who acted after workers had stopped to refresh that
version are told to be behind until they are caught up.
"""

import argparse
from collections.abc import Sequence

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.cpus import usable_cpus
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.catch_up import catch_up, with_items_in_use


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr rollback",
        description="Reads which version was active before. Writes the one pointer that services follow, so that they score by "
        "the version before the active one again, and then the states of users who acted since workers stopped to refresh that "
        "version (SRP4CTR_REFRESH_PREVIOUS_S). Cut off after the switch, it is completed by srp4ctr activate VERSION: a second "
        "rollback goes forward again.",
    )
    parser.add_argument(
        "--threads", type=int, default=usable_cpus(), help="of the encoder (default: all, %(default)s)"
    )
    parser.add_argument(
        "--no-catch-up",
        action="store_true",
        help="switch the pointer and do no more: users who are behind stay so until they act, or until srp4ctr activate VERSION",
    )
    arguments = parser.parse_args(argv)
    client, keys = connect(settings, local_redis.ensure(settings)), Keys(settings.namespace)
    store = StateStore(client, keys, settings.state_ttl_s)
    active = store.active()
    if active is not None and active.previous is not None:
        # Services refuse a bundle that is not there or damaged, and would go on with the one that is to be left.
        find_bundle(active.previous, settings.bundles_dir)
    now = store.roll_back()
    print(f"active: {now.version} (before it: {now.previous})", flush=True)
    if arguments.no_catch_up:
        return 0
    print(f"catching up on who acted meanwhile; cut off, srp4ctr activate {now.version} does it", flush=True)
    # By the pointer's name, since somebody else may have switched it after it was looked at.
    bundle = with_items_in_use(find_bundle(now.version, settings.bundles_dir), store)
    events = EventStore(client, keys, settings.retention)
    print(f"caught up {catch_up(bundle, events, store, arguments.threads).behind:,} users")
    return 0
