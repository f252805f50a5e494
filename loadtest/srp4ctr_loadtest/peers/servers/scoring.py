"""What every peer does for a request and none of them differs in: key, state, rows, ONNX Runtime; the server is around it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.id_index import RecentRows
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.transforms import CONTEXT
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.plain_scorer import PlainScorer
from srp4ctr.runtime.sessions import OnnxScorer

VARIABLE = "SRP4CTR_PEER"
"""The environment variable that tells a peer what to serve: of all ways, the one that every framework passes on."""


@dataclass(frozen=True)
class Given:
    """What a peer is told: the bundle, where the states are, where to listen, and a folder for files of its own.

    `plain`: the scorer's graph that folds nothing, which takes item codes; None: the bundle's own, which takes item vectors.
    """

    bundle: str
    redis_url: str
    namespace: str
    port: int
    folder: str
    plain: str | None = None

    @classmethod
    def read(cls) -> Self:
        """What this process was given."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def variables(self) -> Mapping[str, str]:
        """The environment variable for `read`."""
        return {VARIABLE: json.dumps(asdict(self))}


class Model:
    """The bundle in ONNX Runtime, one thread."""

    def __init__(self, given: Given) -> None:
        self._bundle = Bundle.open(Path(given.bundle))
        self._keys = Keys(given.namespace)
        self._rows = RecentRows(self._bundle.items.index)
        self._folded = OnnxScorer(self._bundle, threads=1) if given.plain is None else None
        self._plain = None
        if given.plain is not None:
            self._plain = PlainScorer(Path(given.plain), self._bundle.manifest, threads=1)
        self._context = self._bundle.transforms.encode_values(CONTEXT, {}, CONTEXT)[None]

    def key(self, user_id: str) -> str:
        """Where Redis has the user's state."""
        return self._keys.state(self._bundle.manifest.version, user_id)

    def scores(self, state: bytes | str | None, item_ids: Sequence[str]) -> NDArray[np.float32]:
        """Click probabilities [C] of the items, for the user whose state Redis gave."""
        # A client may be told to decode answers; these are not.
        assert not isinstance(state, str)
        bundle = self._bundle
        decoded = bundle.cold_state if state is None else bundle.manifest.decode_state(state)
        rows = self._rows.rows(item_ids)
        if self._plain is not None:
            return self._plain(decoded, bundle.items.codes.take(rows, axis=0), self._context)
        assert self._folded is not None
        return self._folded(decoded, bundle.items.vectors.take(rows, axis=0), self._context)
