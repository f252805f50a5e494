"""The torch model that a bundle was exported from, scoring from a user state: the reference for what is served."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.manifest import Manifest
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.nn.model import Srp4Ctr, State
from srp4ctr_offline.checkpoint import fingerprint, load_model
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import config_of_run


class Reference:
    """Computes everything of every candidate from codes; nothing is folded, and no vector was computed before."""

    def __init__(self, model: Srp4Ctr) -> None:
        self._model = model

    @classmethod
    def of(cls, manifest: Manifest, run: Path) -> Self:
        """The fine-tuned model of a run; raises ConfigError or DataError where the bundle was not made of it."""
        config, prepared = config_of_run(run), Prepared.load(run / "prepared")
        model = load_model(run / "finetune", "finetune", config, prepared)
        found = fingerprint(model, prepared.transforms)
        if found != manifest.fingerprint:
            raise DataError(
                f"{run} holds the model {found[:12]}, and {manifest.version} was made of {manifest.fingerprint[:12]}; "
                "name its run with --run"
            )
        return cls(model)

    @torch.no_grad()
    def __call__(self, state: UserState, item_codes: Codes, context_codes: Codes) -> NDArray[np.float32]:
        """Click probabilities [C] of item codes [C, Wi] under contexts [1 or C, Wc]."""
        codes, contexts = (
            torch.from_numpy(np.array(one, np.int32))[None] for one in (item_codes, context_codes)
        )
        logit_1C = self._model.score(self._state(state), codes, contexts)
        probability: NDArray[np.float32] = self._model.calibrate(logit_1C)[0].numpy()
        return probability

    def _state(self, state: UserState) -> State:
        """The state's arrays, each [1, ...]; those of features that the model does not have are empty."""
        arrays: State = {"user_codes": torch.zeros(1, 0, dtype=torch.int32)}
        for spec in self._model.state_layout.arrays:
            arrays[spec.name] = _tensor(state.arrays[spec.name], "int32" if spec.holds_codes else "float32")
        if "recent_ids" in arrays and "recent_behaviours" not in arrays:
            arrays["recent_behaviours"] = arrays["recent_ids"][..., None][..., :0]
        return arrays


def _tensor(array: NDArray[np.generic], dtype: str) -> Tensor:
    # A copy: a state's arrays are views of its bytes, which cannot be written.
    return torch.from_numpy(np.array(array, dtype))[None]
