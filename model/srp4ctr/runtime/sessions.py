"""The bundle's graphs in ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from srp4ctr.contract.manifest import GraphSpec
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import Vectors

SLOWER = ["SkipLayerNormFusion"]
"""Optimisers that cost: a sum and a LayerNormalization apart take a fifth of what the fused operator does, and encoding a tenth less."""


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Those of all our sessions: exactly `threads` threads, which sleep when there is nothing to do."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool would burn whole cores between requests and starve its neighbours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A memory plan is kept for each shape that was ever run, and requests have thousands; without it what a run needs comes
    # from the arena all the same, at the same speed, and memory stays what the largest request took.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return options


def open_session(
    path: Path, threads: int, options: onnxruntime.SessionOptions | None = None
) -> onnxruntime.InferenceSession:
    """A CPU session of a graph, by other options where they are given."""
    options = options or session_options(threads)
    return onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOWER
    )


class OnnxEncoder:
    """Histories to user state arrays."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._session = open_session(bundle.encoder_path, threads)
        self._spec = bundle.manifest.encoder
        self._arrays = [spec.name for spec in bundle.manifest.state.arrays]

    def __call__(
        self, event_items: Codes, event_behaviours: Codes, user_codes: Codes
    ) -> dict[str, NDArray[np.generic]]:
        """State arrays, each [U, ...], of event codes [U, L, Wi] and [U, L, Wb] and user codes [U, Wu].

        Histories are padded on the left with 0; L is at least 1 and at most the schema's `max_events`.
        """
        offered: dict[str, NDArray[np.generic]] = {
            "event_items": event_items,
            "event_behaviours": event_behaviours,
            "user_codes": user_codes,
        }
        computed = _run(self._session, self._spec, offered)
        # A state array that is an input of the encoder is stored as it was given.
        return {name: computed[name] if name in computed else offered[name] for name in self._arrays}


class OnnxItems:
    """Item codes to the vectors that the scorer takes."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._session = open_session(bundle.item_path, threads)
        self._spec = bundle.manifest.item

    def __call__(self, item_codes: Codes) -> Vectors:
        """Vectors [C, V] of item codes [C, Wi]."""
        vectors: Vectors = _run(self._session, self._spec, {"item_codes": item_codes})["item_vectors"]  # type: ignore[assignment]
        return vectors


class OnnxScorer:
    """One user's state and C candidates to probabilities; keeps nothing between calls."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._session = open_session(bundle.scorer_path, threads)
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in bundle.manifest.scorer.inputs}
        self._names = [spec.name for spec in bundle.manifest.scorer.outputs]
        self._states = [spec.name for spec in bundle.manifest.state.arrays if spec.name in self._dtypes]
        self._context = "context_codes" in self._dtypes

    def __call__(self, state: UserState, item_vectors: Vectors, context_codes: Codes) -> NDArray[np.float32]:
        """Click probabilities [C] of item vectors [C, V] under one context or one each: codes [1 or C, Wc]."""
        dtypes = self._dtypes
        feed = {name: state.arrays[name].astype(dtypes[name], copy=False) for name in self._states}
        feed["item_vectors"] = item_vectors.astype(np.float32, copy=False)
        if self._context:
            feed["context_codes"] = context_codes
        probability: NDArray[np.float32] = self._session.run(self._names, feed)[0]
        return probability


def _run(
    session: onnxruntime.InferenceSession, spec: GraphSpec, offered: Mapping[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    # A feature group without features has no input in the graph.
    feed = {tensor.name: offered[tensor.name] for tensor in spec.inputs}
    names = [tensor.name for tensor in spec.outputs]
    return dict(zip(names, session.run(names, feed), strict=True))
