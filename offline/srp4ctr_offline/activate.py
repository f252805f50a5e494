"""`srp4ctr activate`: switch the services to a published version."""

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
        prog="srp4ctr activate",
        description="Reads a bundle, verifying its files, and what publish declared in Redis. Writes the one pointer "
        "that services follow; a version that is not published to the end is refused.",
    )
    parser.add_argument("version", help="a version below var/bundles, where services will look for it")
    bundle = find_bundle(parser.parse_args(argv).version, settings.bundles_dir)
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    active = store.activate(bundle.manifest.version, bundle.manifest.fingerprint)
    before = f" (before it: {active.previous})" if active.previous else ""
    print(f"active: {active.version}{before}")
    return 0
