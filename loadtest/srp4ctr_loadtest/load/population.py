"""Whom and what one may ask about: users, items, and values of the features that a request and an event may have."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from srp4ctr.contract.errors import DataError, StoreError
from srp4ctr.contract.http_types import Scalar
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.transforms import BEHAVIOUR, CONTEXT
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore

USERS = 20_000
ITEMS = 100_000
VALUES = 100
"""At most: of a population, and of a feature."""


@dataclass(frozen=True)
class Population:
    """Ids that a model knows, and the values of its features by their names."""

    version: str
    users: Sequence[str]
    items: Sequence[str]
    context: Mapping[str, Sequence[Scalar]]
    behaviours: Mapping[str, Sequence[Scalar]]

    @classmethod
    def active(cls, settings: StoreSettings) -> Self:
        """That of the active version, by the Redis and the bundles that the settings name. Raises StoreError without one."""
        with connect(settings, local_redis.ensure(settings)) as client:
            store = StateStore(client, Keys(settings.namespace))
            active = store.active()
            if active is None:
                raise StoreError("no version is active; run: make demo-once")
            users = sorted(itertools.islice(store.users(active.version), USERS))
        if not users:
            raise StoreError(f"{active.version} has no users in Redis; run: srp4ctr publish {active.version}")
        bundle = find_bundle(active.version, settings.bundles_dir)
        ids = bundle.items.index.ids[1:]
        if len(ids) > ITEMS:
            ids = np.random.default_rng(0).choice(ids, ITEMS, replace=False)
        return cls(
            active.version,
            users,
            [item.decode() for item in ids.tolist()],
            _values(bundle, CONTEXT),
            _values(bundle, BEHAVIOUR),
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote; raises DataError where it is something else."""
        try:
            found = cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{path} holds no population: {error}; make one with --write-population"
            ) from error
        if not found.users or not found.items:
            raise DataError(f"{path} has no users or no items")
        return found

    def write(self, path: Path) -> None:
        """As JSON: it holds ids of users."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)) + "\n")


def _values(bundle: Bundle, group: str) -> dict[str, list[Scalar]]:
    """Some values of each feature of the group that a request may give."""
    found: dict[str, list[Scalar]] = {}
    for feature in bundle.transforms.features(group):
        key = f"{group}.{feature.name}"
        if feature.reference is not None or feature.type == "multi_valued":
            continue
        if feature.type == "numeric":
            found[feature.name] = [float(one) for one in bundle.transforms.boundaries[key][:VALUES]]
        else:
            values = bundle.transforms.vocabularies[key].values[:VALUES].tolist()
            found[feature.name] = [value.decode() for value in values]
    return {name: values for name, values in found.items() if values}
