"""`srp4ctr rollback`: switch the services back to the version that was active before."""

import argparse
from collections.abc import Sequence

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr rollback",
        description="Reads which version was active before. Writes the one pointer that services follow, so that they score by the version before the active one "
        "again; that takes nothing but the pointer. A second rollback goes forward again.",
    )
    parser.parse_args(argv)
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    active = store.active()
    if active is not None and active.previous is not None:
        # Services refuse a bundle that is not there or damaged, and would go on with the one that is to be left.
        find_bundle(active.previous, settings.bundles_dir)
    now = store.roll_back()
    print(f"active: {now.version} (before it: {now.previous})")
    return 0
