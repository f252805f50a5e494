"""The scorer as one has it who folds nothing, for comparisons: candidates' codes and the user's state to probabilities."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import BundleError
from srp4ctr.contract.manifest import Manifest
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.sessions import open_session


def plain_path(var_dir: Path, manifest: Manifest) -> Path:
    """Where the graph of that model is, once `python -m srp4ctr_offline.study.plain_graph` has written it."""
    return var_dir / "plain" / f"{manifest.fingerprint[:16]}.onnx"


def written_plain(var_dir: Path, manifest: Manifest) -> Path:
    """The same of a graph that is there; raises BundleError where it is not."""
    path = plain_path(var_dir, manifest)
    if not path.exists():
        raise BundleError(
            f"{path} is not there; write it: python -m srp4ctr_offline.study.plain_graph CONFIG"
        )
    return path


class PlainScorer:
    """One user's state and C candidates to probabilities; keeps nothing between calls."""

    def __init__(self, path: Path, manifest: Manifest, threads: int = 1) -> None:
        self._session = open_session(path, threads)
        self._inputs = {one.name for one in self._session.get_inputs()}
        self._dtypes = {
            spec.name: np.dtype(np.int32 if spec.holds_codes else np.float32)
            for spec in manifest.state.arrays
            if spec.name in self._inputs
        }

    def __call__(self, state: UserState, item_codes: Codes, context_codes: Codes) -> NDArray[np.float32]:
        """Click probabilities [C] of item codes [C, Wi] under one context, codes [1, Wc]."""
        feed = {
            name: state.arrays[name].astype(dtype, copy=False)[None] for name, dtype in self._dtypes.items()
        }
        feed["item_codes"] = item_codes[None]
        if "context_codes" in self._inputs:
            feed["context_codes"] = context_codes
        probability: NDArray[np.float32] = self._session.run(None, feed)[0][0]
        return probability
