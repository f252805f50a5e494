"""Predictions of labelled rows as a service gives them: by a bundle's own graphs and item table, from stored states."""

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.history_encoder import BATCH
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_offline.encode import UserEncoder
from srp4ctr_offline.prepared import Ints, Prepared

CANDIDATES = 2000
"""At most so many at a time, as in a request."""


def predict_served(
    bundle: Bundle, prepared: Prepared, rows: Ints, threads: int = 1, *, progress: bool = False
) -> NDArray[np.float64]:
    """Click probabilities [R] of rows [R], each under its own history, contexts at their reference.

    Rows that share a history share its state. An item is what the bundle's item table has under its id, and an unknown one
    where it has none. Raises DataError where the prepared data are not in the bundle's codes.
    """
    encoder, score = UserEncoder(bundle, prepared, threads), OnnxScorer(bundle)
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
    probability = np.empty(len(rows))
    steps = range(0, len(by_length), BATCH)
    for at in tqdm(steps, desc=bundle.manifest.version, unit=f" x {BATCH} histories", disable=not progress):
        some = by_length[at : at + BATCH]
        states = encoder.encode(users[first[some]], cuts[first[some]])
        for place, encoded in zip(some.tolist(), states, strict=True):
            state = manifest.decode_state(manifest.encode_state(encoded.state))
            own = members[place]
            for part in np.split(own, range(CANDIDATES, len(own), CANDIDATES)):
                probability[part] = score(state, bundle.items.vectors[item_rows[part]], contexts[part])
    return probability
