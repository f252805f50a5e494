"""Whether the exported graphs compute what the torch model computes: asked before a bundle is accepted.

The scorer is compared with `Srp4Ctr.score`, which computes everything for every candidate, so that what the graphs have
computed before, or once for all candidates, is compared, too.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srp4ctr.contract.errors import ExportMismatch
from srp4ctr.contract.manifest import ENCODER, ITEM, SCORER, GraphSpec, Parity
from srp4ctr.nn.export import EncoderGraph, ItemGraph, ScorerGraph
from srp4ctr.nn.folded import ItemVectors
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.runtime.sessions import open_session
from srp4ctr_offline.prepared import Prepared

TOLERANCE = 2e-5
"""Largest absolute difference that is rounding: the longest sums here have 256 to 320 terms of about 1, and taking
those in another order in float32 moves them by up to 320 * 2^-24 = 1.9e-5. Seen: about 1e-6."""

USERS = (1, 2, 5)
LENGTHS = (0, 1, 2, 17)
CANDIDATES = (1, 2, 100, 2000)

Arrays = dict[str, NDArray[np.generic]]


class Comparison:
    """Graphs of one folder in ONNX Runtime against what torch gives for the same arrays."""

    def __init__(self, folder: Path, specs: Mapping[str, GraphSpec]) -> None:
        self._specs = specs
        self._sessions = {name: open_session(folder / name, threads=1) for name in specs}
        self.worst = dict.fromkeys(specs, 0.0)
        self.shapes = 0

    def check(self, name: str, feed: Arrays, wanted: Mapping[str, Tensor]) -> Arrays:
        """What the graph gives; raises ExportMismatch where that is not what is wanted."""
        spec = self._specs[name]
        taken = {one.name: feed[one.name] for one in spec.inputs}
        names = [one.name for one in spec.outputs]
        got = dict(zip(names, self._sessions[name].run(names, taken), strict=True))
        for output in names:
            difference = float(np.abs(got[output] - wanted[output].numpy()).max())
            self.worst[name] = max(self.worst[name], difference)
            if not difference <= TOLERANCE:
                sizes = {key: value.shape for key, value in taken.items()}
                raise ExportMismatch(
                    f"{output} differs from torch by {difference:.2e}, more than {TOLERANCE:.0e}, at {sizes}"
                )
        self.shapes += 1
        return got


@torch.no_grad()
def compare(prepared: Prepared, model: Srp4Ctr, folder: Path) -> Parity:
    """Run the graphs of `folder` in ONNX Runtime, and the model in torch, on real users and items at many shapes."""
    specs = {ENCODER: EncoderGraph(model).spec, ITEM: ItemGraph(model).spec, SCORER: ScorerGraph(model).spec}
    comparison = Comparison(folder, specs)
    vectors_of = ItemVectors(model)
    generator = np.random.default_rng(0)
    counts = prepared.event_counts()
    shapes = 0
    for users in USERS:
        for length in (*LENGTHS, prepared.max_events):
            user = generator.integers(len(counts), size=users)
            ends = np.minimum(counts[user], length)
            items, behaviours, _ = prepared.histories(user, ends)
            user_codes = prepared.users.codes[user]
            history = (items, behaviours, user_codes)
            states = model.encode_user(*map(_tensor, history))
            names = ("event_items", "event_behaviours", "user_codes")
            comparison.check(ENCODER, dict(zip(names, history, strict=True)), states)
            for candidates in CANDIDATES:
                place = int(generator.integers(users))
                rows = generator.integers(len(prepared.items.codes), size=candidates)
                codes = np.ascontiguousarray(prepared.items.codes[rows], np.int32)
                # One context for all candidates, or one for each.
                contexts = candidates if shapes % 2 else 1
                shapes += 1
                context = prepared.rows.contexts[generator.integers(len(prepared.rows.label), size=contexts)]
                vectors = comparison.check(
                    ITEM, {"item_codes": codes}, {"item_vectors": vectors_of(_tensor(codes))}
                )
                arrays = {name: array.numpy() for name, array in states.items()}
                state = model.state_layout.of_user(arrays, place, int(prepared.lengths(ends)[place])).arrays
                one_user = {name: array[place : place + 1] for name, array in states.items()}
                logit = model.score(one_user, _tensor(codes)[None], _tensor(context)[None])
                feed = {**state, **vectors, "context_codes": context}
                comparison.check(SCORER, feed, {"probability": model.calibrate(logit)[0]})
    return Parity(
        encoder_max_abs=comparison.worst[ENCODER],
        item_max_abs=comparison.worst[ITEM],
        scorer_max_abs=comparison.worst[SCORER],
        tolerance=TOLERANCE,
        shapes_compared=comparison.shapes,
    )


def _tensor(array: NDArray[np.generic]) -> Tensor:
    # A copy: what is memory-mapped cannot be written, which torch has no tensors for.
    return torch.from_numpy(np.array(array))
