"""One model version, loaded for serving."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT
from srp4ctr.contract.vocabulary import Codes, to_texts
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.sessions import OnnxScorer


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle and its scorer. A request takes one of these and no other part of a model, so versions never mix."""

    bundle: Bundle
    scorer: OnnxScorer
    item_codes: Codes
    prior: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path, threads: int) -> Self:
        """Open and verify the bundle in `folder`, and score once, so that no request pays for the first run.

        Raises BundleError.
        """
        bundle = Bundle.open(folder)
        # Plain views of the memory-mapped arrays: numpy's memmap class makes every look-up slower.
        items = bundle.items
        model = cls(bundle, OnnxScorer(bundle, threads), np.asarray(items.codes), np.asarray(items.prior))
        model.score(bundle.cold_state, np.zeros(1, np.int32), model.context_codes({}))
        return model

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.bundle.manifest.version

    def context_codes(self, context: Mapping[str, Any]) -> Codes:
        """Codes [Wc] of a request's context; raises InvalidRequest."""
        return self.bundle.transforms.encode_values(CONTEXT, context, "context")

    def rows(self, item_ids: list[str]) -> NDArray[np.int32]:
        """Rows [C] of the item table; 0 where the catalogue lacks an item."""
        return self.bundle.items.rows(to_texts(item_ids))

    def score(self, state: UserState, rows: NDArray[np.int32], context_codes: Codes) -> NDArray[np.float32]:
        """Click probabilities [C] of the items in `rows` [C]."""
        return self.scorer(state, self.item_codes[rows], context_codes)


@dataclass(frozen=True)
class Run:
    """What one run of the model gave, and its times in seconds, by stage."""

    scores: NDArray[np.float32]
    rows: NDArray[np.int32]
    seconds: dict[str, float]


def run(
    model: ServedModel, state: UserState, item_ids: list[str], context_codes: Codes, handed_over: float
) -> Run:
    """Look up and score; made to be called in another thread, `handed_over` being when the loop let go."""
    begun = time.perf_counter()
    rows = model.rows(item_ids)
    found = time.perf_counter()
    scores = model.score(state, rows, context_codes)
    done = time.perf_counter()
    return Run(scores, rows, {"queue": begun - handed_over, "rows": found - begun, "model": done - found})
