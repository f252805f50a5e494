"""What the benchmarks ask for: the active version, some of its users, and requests of catalogue items."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import orjson

from srp4ctr.contract.errors import StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import UserState
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_loadtest.http_load import Request

USERS = 200
DEADLINE_MS = 10_000
"""So long that no request is answered more cheaply than in full."""


@dataclass(frozen=True)
class Subject:
    """A version that is active, and users whose states are in the Redis at that address."""

    version: str
    bundle: Bundle
    redis_url: str
    users: Sequence[str]
    states: Sequence[UserState]

    @classmethod
    def active(cls) -> Self:
        """What the settings name; starts the local Redis where they name none. Raises StoreError without a version."""
        settings = read_settings(StoreSettings)
        redis_url = local_redis.ensure(settings)
        with connect(settings, redis_url) as client:
            store = StateStore(client, Keys(settings.namespace))
            active = store.active()
            if active is None:
                raise StoreError("no version is active; run: make demo-once")
            bundle = find_bundle(active.version, settings.bundles_dir)
            users = list(itertools.islice(store.users(active.version), USERS))
            data = store.get_many(active.version, users)
        states = [bundle.manifest.decode_state(one) for one in data if one is not None]
        return cls(active.version, bundle, redis_url, users, states)

    def items(self, generator: np.random.Generator, count: int) -> list[str]:
        """The ids of so many random items of the catalogue."""
        return [item.decode() for item in generator.choice(self.bundle.items.index.ids[1:], count).tolist()]

    def requests(
        self, url: str, candidates: Sequence[int], deadline_ms: float = DEADLINE_MS
    ) -> list[Request]:
        """POST /score for user after user, each with as many random catalogue items as `candidates` says."""
        generator = np.random.default_rng(1)
        return [
            Request.post(
                f"{url}/score",
                orjson.dumps(
                    {
                        "user_id": user,
                        "item_ids": self.items(generator, count),
                        "deadline_ms": deadline_ms,
                    }
                ),
            )
            for user, count in zip(itertools.cycle(self.users), candidates, strict=False)
        ]
