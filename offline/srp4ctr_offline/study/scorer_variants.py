"""Ways to run the scorer: the bundle's graph as it is served, and what else ONNX Runtime and the export allow.

All take a user's state, C rows of the item table and context codes [1 or C, Wc], and give C probabilities.
"""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from srp4ctr.contract.id_index import Rows
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import Vectors
from srp4ctr.runtime.plain_scorer import PlainScorer
from srp4ctr.runtime.sessions import OnnxItems, OnnxScorer, open_session, session_options
from srp4ctr_offline.served import Question

Score = Callable[[UserState, Rows, Codes], NDArray[np.float32]]
Feed = dict[str, NDArray[np.generic]]

DEFAULT = "default"
BUCKETS = (64, 128, 256, 512, 1024, 2048)
"""Numbers of candidates that requests are padded to."""


@dataclass(frozen=True)
class Variant:
    """A way by its name, what it is, how it is run, and milliseconds of CPU for its sessions to load."""

    name: str
    what: str
    score: Score
    load_ms: float


class Folded:
    """The scorer's graph, or one with the same inputs, in a session of its own."""

    def __init__(self, bundle: Bundle, session: onnxruntime.InferenceSession) -> None:
        self._vectors = bundle.items.vectors
        self._session = session
        self._inputs = {one.name for one in session.get_inputs()}
        specs = [one for one in bundle.manifest.scorer.inputs if one.name in self._inputs]
        self._dtypes = {one.name: np.dtype(one.dtype) for one in specs}
        self._states = [one.name for one in bundle.manifest.state.arrays if one.name in self._dtypes]

    def __call__(self, state: UserState, rows: Rows, contexts: Codes) -> NDArray[np.float32]:
        """Run it."""
        return self.run(self.feed(state, self._vectors.take(rows, axis=0), contexts))

    def feed(self, state: UserState, vectors: Vectors, contexts: Codes) -> Feed:
        """The graph's inputs."""
        feed: Feed = {
            name: state.arrays[name].astype(self._dtypes[name], copy=False) for name in self._states
        }
        feed["item_vectors"] = vectors.astype(np.float32, copy=False)
        if "context_codes" in self._inputs:
            feed["context_codes"] = contexts
        return feed

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """The graph's output."""
        probability: NDArray[np.float32] = self._session.run(None, feed)[0]
        return probability


class Bound(Folded):
    """The same by an IO binding, with an output that this process has allocated."""

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """The graph's output."""
        probability = np.empty(len(feed["item_vectors"]), np.float32)
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(
            "probability", "cpu", 0, np.float32, list(probability.shape), probability.ctypes.data
        )
        self._session.run_with_iobinding(binding)
        return probability


class Padded:
    """Candidates padded to the next bucket, each bucket by its own way of running it."""

    def __init__(self, bundle: Bundle, by_bucket: Sequence[tuple[int, Folded]]) -> None:
        self._vectors = bundle.items.vectors
        self._by_bucket = by_bucket

    def __call__(self, state: UserState, rows: Rows, contexts: Codes) -> NDArray[np.float32]:
        """Run it, and leave out what was padded."""
        count = len(rows)
        size, folded = next(one for one in self._by_bucket if one[0] >= count)
        vectors = np.zeros((size, self._vectors.shape[1]), np.float32)
        np.take(self._vectors, rows, axis=0, out=vectors[:count], mode="clip")
        if len(contexts) > 1:
            contexts = np.concatenate([contexts, np.zeros((size - count, contexts.shape[1]), np.int32)])
        return folded.run(folded.feed(state, vectors, contexts))[:count]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # it comes without types
    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def variants(bundle: Bundle, plain: Path, calibration: Sequence[Question], folder: Path) -> Iterator[Variant]:
    """All of them, the default first; graphs are written into `folder`, int8 is calibrated by the questions."""
    scorer = bundle.scorer_path

    def folded(path: Path = scorer, options: onnxruntime.SessionOptions | None = None) -> Folded:
        return Folded(bundle, open_session(path, 1, options))

    yield _made(DEFAULT, "the bundle's graph as it is served", lambda: _served(bundle))
    yield _made(
        "plain", "nothing folded: item codes in, all of it for each candidate", lambda: _plain(bundle, plain)
    )
    yield _made("items anew", "item vectors by item.onnx at each request", lambda: _items_anew(bundle))
    saved, ort = folder / "optimised.onnx", folder / "optimised.ort"
    _optimise(scorer, saved)
    _optimise(scorer, ort, ("session.save_model_format", "ORT"))
    yield _made(
        "saved", "the optimised graph saved, and not optimised at load", lambda: folded(saved, _as_it_is())
    )
    yield _made("ORT format", "the same in ONNX Runtime's own format", lambda: folded(ort, _as_it_is()))
    yield _made("IO binding", "inputs and output bound", lambda: Bound(bundle, open_session(scorer, 1)))
    yield _made("buckets", f"candidates padded to {', '.join(map(str, BUCKETS))}", lambda: _buckets(bundle))
    yield _made(
        "fixed buckets",
        "the same, a session with fixed shapes and memory plan for each",
        lambda: _fixed(bundle),
    )
    int8 = folder / "int8.onnx"
    _quantise(bundle, calibration, folder / "prepared.onnx", int8)
    yield _made(
        "static int8", "products with weights in int8 (QDQ, a scale per channel)", lambda: folded(int8)
    )


def _made(name: str, what: str, make: Callable[[], Score]) -> Variant:
    began = time.process_time()
    score = make()
    return Variant(name, what, score, 1000 * (time.process_time() - began))


def _served(bundle: Bundle) -> Score:
    score, vectors = OnnxScorer(bundle), bundle.items.vectors
    return lambda state, rows, contexts: score(state, vectors.take(rows, axis=0), contexts)


def _plain(bundle: Bundle, path: Path) -> Score:
    score, codes = PlainScorer(path, bundle.manifest), bundle.items.codes

    def run(state: UserState, rows: Rows, contexts: Codes) -> NDArray[np.float32]:
        if len(contexts) == 1:
            return score(state, codes.take(rows, axis=0), contexts)
        # The graph takes one context for all candidates.
        each = [score(state, codes[rows[at : at + 1]], contexts[at : at + 1]) for at in range(len(rows))]
        return np.concatenate(each)

    return run


def _items_anew(bundle: Bundle) -> Score:
    score, items, codes = OnnxScorer(bundle), OnnxItems(bundle), bundle.items.codes
    return lambda state, rows, contexts: score(state, items(codes.take(rows, axis=0)), contexts)


def _buckets(bundle: Bundle) -> Score:
    one = Folded(bundle, open_session(bundle.scorer_path, 1))
    return Padded(bundle, [(size, one) for size in BUCKETS])


def _fixed(bundle: Bundle) -> Score:
    by_bucket = []
    for size in BUCKETS:
        options = session_options(1)
        options.add_free_dimension_override_by_name("C", size)
        # There is one shape, so that one plan is all.
        options.enable_mem_pattern = True
        by_bucket.append((size, Folded(bundle, open_session(bundle.scorer_path, 1, options))))
    return Padded(bundle, by_bucket)


def _as_it_is() -> onnxruntime.SessionOptions:
    options = session_options(1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _optimise(path: Path, to: Path, *entries: tuple[str, str]) -> None:
    options = session_options(1)
    options.optimized_model_filepath = str(to)
    for entry in entries:
        options.add_session_config_entry(*entry)
    open_session(path, 1, options)


def _quantise(bundle: Bundle, calibration: Sequence[Question], prepared: Path, to: Path) -> None:
    folded = Folded(bundle, open_session(bundle.scorer_path, 1))
    vectors = bundle.items.vectors
    feeds = (folded.feed(one.state, vectors[one.item_rows], one.contexts) for one in calibration)
    level = logging.root.level
    # It says at each call that a graph should be prepared, as this one is.
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(bundle.scorer_path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(to),
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                # Without VNNI, sums of products of 8 by 8 bits saturate.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
    finally:
        logging.root.setLevel(level)
