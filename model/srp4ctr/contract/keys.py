"""Names of everything in Redis.

A user's keys carry the hash tag of the user's partition, `{p17}`, so that what belongs to one partition shares one
Redis Cluster slot and may be touched by one atomic script.
"""

import hashlib
import zlib
from dataclasses import dataclass
from urllib.parse import quote, unquote

PARTITIONS = 1024
"""Fixed for ever: changing it would move every user's keys."""


def partition(user_id: str) -> int:
    """The user's partition: CRC-32 of the UTF-8 user id, modulo 1,024."""
    return zlib.crc32(user_id.encode()) % PARTITIONS


@dataclass(frozen=True)
class Keys:
    """Key names below one namespace, so that several models can share a Redis."""

    namespace: str = "srp4ctr"

    def state(self, version: str, user_id: str) -> str:
        """String: the user's state of that bundle version."""
        return self._of_user(user_id, f"s:{version}")

    def history(self, user_id: str) -> str:
        """List: what the user did, oldest first, of whatever model's version; see contract/events.py."""
        return self._of_user(user_id, "h")

    def sequence(self, user_id: str) -> str:
        """String of three decimal numbers: where the count of the user's acknowledged events began, where it is, and how often
        snapshots have changed the history.
        """
        return self._of_user(user_id, "n")

    def sequences(self) -> str:
        """A pattern of all users' counts."""
        return f"{self.namespace}:{{p*}}:n:*"

    def forgotten(self, user_id: str) -> str:
        """Empty string, for a while: the user was forgotten, and no snapshot is written of the user. Named by a hash of the id."""
        digest = hashlib.sha256(user_id.encode()).hexdigest()
        return f"{self.namespace}:{{p{partition(user_id)}}}:f:{digest[:32]}"

    def forgets(self) -> str:
        """String, a decimal number that grows with each user who is forgotten: whoever keeps states looks whether it has."""
        return f"{self.namespace}:forgets"

    def stream(self, number: int) -> str:
        """Stream: users of the partition of that number who acted and whose states are to be refreshed."""
        return f"{self.namespace}:{{p{number}}}:acted"

    def answered(self, number: int) -> str:
        """Stream: a share of the answers to the partition's users, for the monitor."""
        return f"{self.namespace}:{{p{number}}}:answered"

    def answers(self, number: int) -> str:
        """Hash: of each of these answers, by user and request, its entry and the places of the candidates that were judged."""
        return f"{self.namespace}:{{p{number}}}:answers"

    def shown(self, number: int) -> str:
        """Stream: what the partition's users were shown of those answers."""
        return f"{self.namespace}:{{p{number}}}:shown"

    def upcoming(self) -> str:
        """String: the version that is about to be active, and is kept as fresh as the active one; ends by itself."""
        return f"{self.namespace}:upcoming"

    def dead_letters(self) -> str:
        """Stream: entries of the partitions' streams that could not be processed, and why."""
        return f"{self.namespace}:dead-letters"

    def suspects(self) -> str:
        """Hash: by entry, how many workers have begun it alone and not ended; they may have died of it."""
        return f"{self.namespace}:suspects"

    def quarantine(self) -> str:
        """Set: users whom refresh workers died of, and who are not encoded until somebody tries them again."""
        return f"{self.namespace}:quarantine"

    def versions(self) -> str:
        """Set: all versions of which there may be states."""
        return f"{self.namespace}:versions"

    def states(self, version: str) -> str:
        """A pattern of all users' states of that version."""
        return f"{self.namespace}:{{p*}}:s:{version}:*"

    def active(self) -> str:
        """Hash with `version`, `fingerprint`, `previous`, `activated_at_ms`: the one pointer that is switched."""
        return f"{self.namespace}:active"

    def publishing(self, version: str) -> str:
        """Hash with `fingerprint`, `data`, `users`: how far a version's states are written, until all of them are."""
        return f"{self.namespace}:publishing:{version}"

    def items(self, version: str) -> str:
        """String: the revision of the version's item table that services take; without it, the bundle's own."""
        return f"{self.namespace}:items:{version}"

    def removing(self, version: str) -> str:
        """Empty string, for a while: the version's states are being removed, and it cannot be published; ends by itself."""
        return f"{self.namespace}:removing:{version}"

    def published(self, version: str) -> str:
        """Hash with `fingerprint`, `users`, `completed_at_ms`: written when all states of a version are."""
        return f"{self.namespace}:published:{version}"

    @staticmethod
    def user_of(key: bytes) -> str:
        """The user whose state, history or count has this key."""
        return unquote(key.decode().rpartition(":")[2])

    def _of_user(self, user_id: str, what: str) -> str:
        return f"{self.namespace}:{{p{partition(user_id)}}}:{what}:{quote(user_id, safe='')}"
