"""Predictions of labelled rows as a service gives them: by a bundle's own graphs and item table, from stored states."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srp4ctr.contract.id_index import Rows
from srp4ctr.contract.state import UserState
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.history_encoder import BATCH
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_offline.encode import UserEncoder
from srp4ctr_offline.prepared import Ints, Prepared

CANDIDATES = 2000
"""At most so many at a time, as in a request."""


class Question(NamedTuple):
    """Rows that share a history, at these `places` among those asked for: its state, their items' rows and contexts."""

    places: Ints
    state: UserState
    item_rows: Rows
    contexts: Codes


def questions(
    bundle: Bundle, prepared: Prepared, rows: Ints, threads: int = 1, *, progress: bool = False
) -> Iterator[Question]:
    """Rows [R] as questions to a scorer, each under its own history as it is stored, contexts at their reference.

    An item is what the bundle's item table has under its id, and an unknown one where it has none. Raises DataError where
    the prepared data are not in the bundle's codes.
    """
    encoder = UserEncoder(bundle, prepared, threads)
    manifest, table = bundle.manifest, prepared.rows
    users, cuts = table.user[rows].astype(np.int64), table.cut[rows]
    contexts = np.ascontiguousarray(prepared.transforms.at_reference(table.contexts[rows]), np.int32)
    known = np.append(0, bundle.items.rows([item.decode() for item in prepared.items.ids.tolist()]))
    item_rows = known[table.item[rows]]

    _, first, history, sizes = np.unique(
        users * (int(cuts.max(initial=0)) + 1) + cuts,
        return_index=True,
        return_inverse=True,
        return_counts=True,
    )
    members = np.split(np.argsort(history, kind="stable"), np.cumsum(sizes)[:-1])
    by_length = np.argsort(prepared.lengths(cuts[first]), kind="stable")
    steps = range(0, len(by_length), BATCH)
    for at in tqdm(steps, desc=bundle.manifest.version, unit=f" x {BATCH} histories", disable=not progress):
        some = by_length[at : at + BATCH]
        states = encoder.encode(users[first[some]], cuts[first[some]])
        for place, encoded in zip(some.tolist(), states, strict=True):
            state = manifest.decode_state(manifest.encode_state(encoded.state))
            own = members[place]
            for part in np.split(own, range(CANDIDATES, len(own), CANDIDATES)):
                yield Question(part, state, item_rows[part], contexts[part])


def predict_served(
    bundle: Bundle, prepared: Prepared, rows: Ints, threads: int = 1, *, progress: bool = False
) -> NDArray[np.float64]:
    """Click probabilities [R] of rows [R], as `questions` has them, by the bundle's scorer."""
    score, vectors = OnnxScorer(bundle), bundle.items.vectors
    probability = np.empty(len(rows))
    for one in questions(bundle, prepared, rows, threads, progress=progress):
        probability[one.places] = score(one.state, vectors[one.item_rows], one.contexts)
    return probability
