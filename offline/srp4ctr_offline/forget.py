"""`srp4ctr forget`: remove all that Redis has of users."""

import argparse
from collections.abc import Sequence

from srp4ctr.contract.http_types import MAX_ID_LENGTH
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr forget",
        description="Reads which versions Redis has. Writes nothing but what it removes: the users' states of all versions, "
        "raw histories, counts, and entries that wait to be refreshed. Services that keep a state are told by Redis. The "
        "tables that the next version is made of, and recorded requests, are not touched: remove the users there, too.",
    )
    parser.add_argument("users", nargs="+", metavar="USER", help="ids of the users")
    users: list[str] = parser.parse_args(argv).users
    for user_id in users:
        if not 0 < len(user_id) <= MAX_ID_LENGTH:
            parser.error(f"a user id has 1 to {MAX_ID_LENGTH} characters")
    client, keys = connect(settings, local_redis.ensure(settings)), Keys(settings.namespace)
    versions = StateStore(client, keys).versions()
    events = EventStore(client, keys, settings.retention)
    for user_id in users:
        print(f"forgot {user_id}: {events.forget(user_id, versions)} keys and waiting entries removed")
    return 0
