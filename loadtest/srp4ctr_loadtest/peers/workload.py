"""What everyone is asked: the active version's published users, and random items of its catalogue."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from srp4ctr.contract.errors import StoreError
from srp4ctr.contract.keys import Keys
from srp4ctr.runtime.plain_scorer import written_plain
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_loadtest.peers.protocols import Question
from srp4ctr_loadtest.peers.servers.scoring import Given
from srp4ctr_loadtest.subject import DEADLINE_MS, Subject

MADE_UP = "peers-before-"
"""How the ids of users begin who are in Redis for the length of one comparison."""


@dataclass(frozen=True)
class Workload:
    """A version that is active, with the settings under which its states are in Redis."""

    subject: Subject
    settings: StoreSettings

    @classmethod
    def active(cls) -> Self:
        """What the settings name; raises StoreError where no version is active, or it has no users."""
        subject = Subject.active()
        users = [user for user in subject.users if not user.startswith(MADE_UP)]
        if not users:
            raise StoreError(
                f"{subject.version} has no users in Redis; run: srp4ctr publish {subject.version}"
            )
        return cls(replace(subject, users=users), read_settings(StoreSettings))

    def questions(self, candidates: int) -> list[Question]:
        """A question of so many random items for each user; the same at each call."""
        generator = np.random.default_rng(candidates)
        return [Question(user, self.subject.items(generator, candidates)) for user in self.subject.users]

    def given(self, port: int, folder: Path, *, plain_graph: bool = False) -> Given:
        """What a peer is told to serve it; raises BundleError where it needs a plain graph and none has been written."""
        bundle, plain = self.subject.bundle, None
        if plain_graph:
            plain = str(written_plain(self.settings.var_dir, bundle.manifest).absolute())
        where = str(bundle.folder.absolute())
        return Given(where, self.subject.redis_url, self.settings.namespace, port, str(folder), plain)

    def service_variables(self, near_cache_users: int | None) -> Mapping[str, str]:
        """Settings for our own service to serve it in full, however long that takes; None is its default."""
        variables = {
            # Named, so that no service thinks it its own to stop.
            "SRP4CTR_REDIS_URL": self.subject.redis_url,
            "SRP4CTR_DEADLINE_MS": str(DEADLINE_MS),
            "SRP4CTR_REDIS_SCORE_TIMEOUT_MS": str(DEADLINE_MS),
        }
        if near_cache_users is not None:
            variables["SRP4CTR_NEAR_CACHE_USERS"] = str(near_cache_users)
        return variables

    def redis_pid(self) -> int:
        """The process id that Redis says it has."""
        with connect(self.settings, self.subject.redis_url) as client:
            return int(client.info("server")["process_id"])

    def put_for_a_while(self, states: Mapping[str, bytes], seconds: int) -> None:
        """Keep further users' states beside the published ones for so long."""
        keys = Keys(self.settings.namespace)
        with connect(self.settings, self.subject.redis_url) as client:
            for user, state in states.items():
                client.set(keys.state(self.subject.version, user), state, ex=seconds)
