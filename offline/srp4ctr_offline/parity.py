"""Whether the exported graphs compute what the torch model computes: asked before a bundle is accepted."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from srp4ctr.contract.errors import ExportMismatch
from srp4ctr.contract.manifest import ENCODER, SCORER, Parity
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.nn.export import EncoderGraph, ScorerGraph
from srp4ctr.runtime.sessions import open_session
from srp4ctr_offline.prepared import Prepared

TOLERANCE = 2e-5
"""Largest absolute difference that is rounding: the longest sums here have 256 to 320 terms of about 1, and taking
those in another order in float32 moves them by up to 320 * 2^-24 = 1.9e-5. Seen: about 1e-6."""

USERS = (1, 2, 5)
LENGTHS = (0, 1, 2, 17)
CANDIDATES = (1, 2, 100, 2000)

Feed = dict[str, NDArray[np.generic]]


def compare(prepared: Prepared, encoder: EncoderGraph, scorer: ScorerGraph, folder: Path) -> Parity:
    """Run both graphs in ONNX Runtime and in torch on real users and items, at many shapes."""
    generator = np.random.default_rng(0)
    sessions = {
        graph: open_session(folder / name, threads=1)
        for graph, name in ((encoder, ENCODER), (scorer, SCORER))
    }
    worst = {encoder: 0.0, scorer: 0.0}
    shapes = 0

    def differ(graph: EncoderGraph | ScorerGraph, feed: Feed) -> Feed:
        nonlocal shapes
        feed = {one.name: feed[one.name] for one in graph.spec.inputs}
        names = [one.name for one in graph.spec.outputs]
        got = dict(zip(names, sessions[graph].run(names, feed), strict=True))
        with torch.no_grad():
            wanted = graph(*(torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()))
        for name, want in zip(names, wanted, strict=True):
            difference = float(np.abs(got[name] - want.numpy()).max())
            worst[graph] = max(worst[graph], difference)
            if not difference <= TOLERANCE:
                sizes = {key: value.shape for key, value in feed.items()}
                raise ExportMismatch(
                    f"{name} differs from torch by {difference:.2e}, more than {TOLERANCE:.0e}, at {sizes}"
                )
        shapes += 1
        return got

    counts = prepared.event_counts()
    for users in USERS:
        for length in (*LENGTHS, prepared.max_events):
            user = generator.integers(len(counts), size=users)
            items, behaviours, _ = prepared.histories(user, np.minimum(counts[user], length))
            user_codes = prepared.users.codes[user]
            states = differ(
                encoder, {"event_items": items, "event_behaviours": behaviours, "user_codes": user_codes}
            )
            for candidates in CANDIDATES:
                rows = generator.integers(len(prepared.items.codes), size=(users, candidates))
                context = prepared.rows.contexts[generator.integers(len(prepared.rows.label), size=users)]
                differ(
                    scorer,
                    states
                    | {
                        "user_codes": user_codes,
                        "item_codes": _int32(prepared.items.codes[rows]),
                        "context_codes": context,
                    },
                )
    return Parity(
        encoder_max_abs=worst[encoder],
        scorer_max_abs=worst[scorer],
        tolerance=TOLERANCE,
        shapes_compared=shapes,
    )


def _int32(codes: Codes) -> Codes:
    return np.ascontiguousarray(codes, np.int32)
