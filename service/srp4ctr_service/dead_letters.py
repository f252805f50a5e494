"""`srp4ctr dead-letters`: users whom no refresh worker could refresh, and giving them to the workers once more."""

import argparse
import time
from collections.abc import Sequence

from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.acted import ActedStreams
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings

SHOWN = 20


def main(argv: Sequence[str]) -> int:
    """Print them, and do what was asked."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr dead-letters",
        description="Reads from Redis the entries that refresh workers gave up, and prints how many there are and the newest, with user "
        "and reason. With --requeue it writes them to the workers' streams again; with --remove it forgets them.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--requeue", action="store_true", help="give all to the workers again, when the reasons are mended"
    )
    what.add_argument(
        "--remove",
        action="store_true",
        help="remove all; these users stay behind until they act again, and those whom workers ended of until --requeue",
    )
    arguments = parser.parse_args(argv)
    client, keys = connect(settings, local_redis.ensure(settings)), Keys(settings.namespace)
    streams = ActedStreams(client, keys, "dead-letters")
    number, letters = streams.dead_letters(SHOWN)
    print(f"{number:,} dead letters" + (f", the newest {len(letters)}:" if letters else ""))
    for letter in letters:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at_ms / 1000))
        print(f"  {at}  {letter.user_id}  {letter.reason}")
    aside = streams.aside()
    if aside:
        print(
            f"{len(aside):,} users are not encoded any more, since workers ended of them; --requeue tries them again"
        )
    if arguments.requeue:
        print(f"{streams.requeue():,} users are to be refreshed again")
    if arguments.remove:
        print(f"{streams.remove_dead_letters():,} removed")
    return 0
