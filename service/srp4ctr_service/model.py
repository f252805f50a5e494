"""One model version, loaded for serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.sessions import OnnxScorer


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle and its scorer. A request takes one of these and no other part of a model, so versions never mix."""

    bundle: Bundle
    scorer: OnnxScorer

    @classmethod
    def load(cls, folder: Path, threads: int) -> Self:
        """Open and verify the bundle in `folder`, and score once, so that no request pays for the first run.

        Raises BundleError.
        """
        bundle = Bundle.open(folder)
        model = cls(bundle, OnnxScorer(bundle, threads))
        model.score(bundle.cold_state, np.zeros(1, np.int32), model.context_codes({}))
        return model

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.bundle.manifest.version

    @property
    def prior(self) -> NDArray[np.float32]:
        """The items' own click rates by row."""
        return self.bundle.items.prior

    def context_codes(self, context: Mapping[str, Any]) -> Codes:
        """Codes [Wc] of a request's context; raises InvalidRequest."""
        return self.bundle.transforms.encode_values(CONTEXT, context, "context")

    def rows(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """Rows [C] of the item table; 0 where the catalogue lacks an item."""
        return self.bundle.items.rows(item_ids)

    def score(self, state: UserState, rows: NDArray[np.int32], context_codes: Codes) -> NDArray[np.float32]:
        """Click probabilities [C] of the items in `rows` [C]."""
        return self.scorer(state, self.bundle.items.vectors.take(rows, axis=0), context_codes)
