"""`srp4ctr activate`: switch the services to a published version that is not worse than the active one, nor behind it.

The version is announced, so that refresh workers keep it fresh from then on; who acted between its snapshot and that moment is
caught up here; then one pointer is switched.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.cpus import usable_cpus
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.catch_up import catch_up, with_items_in_use
from srp4ctr_offline.gate import pass_gate
from srp4ctr_offline.left_items import look_for_left_items


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr activate",
        description="Reads a bundle and the active one, verifying their files, what publish declared in Redis, and the run's "
        "prepared/ and tables. Writes how the two compare to activate/metrics.json in the run, the states of users who acted "
        "since the version's snapshot, and then the one pointer that services follow. A version that is "
        "not published to the end, that is worse on the test rows than [gate] in the run's configuration allows, or that lacks items "
        "which srp4ctr items added to the active one, is refused.",
    )
    parser.add_argument("version", help="a version below var/bundles, where services will look for it")
    parser.add_argument("--run", type=Path, help="the run's folder (default: var/runs/<name in the bundle>)")
    parser.add_argument(
        "--threads", type=int, default=usable_cpus(), help="of the encoders (default: all, %(default)s)"
    )
    parser.add_argument(
        "--no-gate", action="store_true", help="do not compare the version with the active one"
    )
    parser.add_argument(
        "--leave-items",
        action="store_true",
        help="go on although items that srp4ctr items added to the active version are not in this one's item table: they are "
        "scored as unknown items then",
    )
    arguments = parser.parse_args(argv)
    bundle = find_bundle(arguments.version, settings.bundles_dir)
    version, fingerprint = bundle.manifest.version, bundle.manifest.fingerprint
    client, keys = connect(settings, local_redis.ensure(settings)), Keys(settings.namespace)
    store = StateStore(client, keys, settings.state_ttl_s)
    store.require_published(version, fingerprint)
    before = store.active()
    if before is None:
        print("no version is active yet, so that there is nothing to compare this one with")
    elif arguments.no_gate:
        print(f"not compared with {before.version}, which is active")
    elif before.version != version:
        folder = arguments.run or settings.runs_dir / bundle.manifest.name
        pass_gate(bundle, before.version, settings.bundles_dir, folder, arguments.threads)
    current = with_items_in_use(bundle, store)
    if before is not None and before.version != version:
        look_for_left_items(store, before.version, current, settings.bundles_dir, leave=arguments.leave_items)
    events = EventStore(client, keys, settings.retention)

    def renew() -> None:
        store.announce(version)

    renew()
    try:
        # Once more: while the gate compared, the version may have been removed. What is announced is not.
        store.require_published(version, fingerprint)
        done = catch_up(current, events, store, arguments.threads, renew)
        if done.behind:
            print(f"caught up {done.behind:,} users who acted since the snapshot")
        active = store.activate(version, fingerprint)
        # Those whose events a worker took up that could not open this version's bundle yet.
        catch_up(current, events, store, arguments.threads)
    finally:
        store.announce(None)
    was = f" (before it: {active.previous})" if active.previous else ""
    print(f"active: {active.version}{was}")
    return 0
