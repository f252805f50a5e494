"""Next-item ranking, leave one out: the pre-trained encoder and its item head, as sequential recommenders are measured.

A user's last event is the test target and the last but one the validation target; what precedes it is the history.
The target is ranked against 99 items that are drawn uniformly from those the user never had (the protocol of Kang
and McAuley, 2018, as S3-Rec reports it), and against all items but those of the history.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from srp4ctr.contract.vocabulary import FIRST_VALUE
from srp4ctr.nn.embedding import mask_codes
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.nn.objectives import PretrainObjective
from srp4ctr_offline.prepared import Ints, Prepared

NEGATIVES = 99
TOP = 10
BATCH = 128


class Ranks(NamedTuple):
    """Places [U] of the targets, 0 being first, among the sampled items and among all."""

    sampled: NDArray[np.float64]
    all: NDArray[np.float64]


def hit_rate(ranks: NDArray[np.float64]) -> float:
    """HR@10: share of the targets that are among the first ten."""
    return float((ranks < TOP).mean())


def ndcg(ranks: NDArray[np.float64]) -> float:
    """NDCG@10 of one relevant item (Jarvelin and Kekalainen, 2002)."""
    return float(np.where(ranks < TOP, 1 / np.log2(ranks + 2), 0.0).mean())


def rank_next(
    model: Srp4Ctr, objective: PretrainObjective, prepared: Prepared, *, back: int, seed: int = 0
) -> Ranks:
    """Ranks of each user's event that `back` others follow: 0 for the test targets, 1 for those of validation.

    Users whose target has no id of its own, or no history, are left out.
    """
    events = prepared.events
    counts = prepared.event_counts()
    users = np.flatnonzero(counts >= back + 2)
    target_at = events.start[users] + counts[users] - 1 - back
    ids = prepared.items.codes[events.item, 0]
    known = ids[target_at] >= FIRST_VALUE
    users, target_at = users[known], target_at[known]
    ends = target_at - events.start[users]
    target = ids[target_at].astype(np.int64) - FIRST_VALUE
    generator = np.random.default_rng(seed)
    values = objective.item_head.values
    sampled, full = np.empty(len(users)), np.empty(len(users))
    order = np.argsort(ends, kind="stable")
    for at in range(0, len(users), BATCH):
        place = order[at : at + BATCH]
        logits = _logits(model, objective, prepared, users[place], ends[place])
        for row, one in zip(logits, place, strict=True):
            mine = ids[events.start[users[one]] : events.start[users[one] + 1]]
            mine = mine[mine >= FIRST_VALUE] - FIRST_VALUE
            own = row[target[one]]
            allowed = np.ones(values, bool)
            allowed[mine] = False
            unseen = np.flatnonzero(allowed)
            others = generator.choice(unseen, min(NEGATIVES, len(unseen)), replace=False)
            sampled[one] = _place(own, row[others])
            allowed[:] = True
            earlier = ids[events.start[users[one]] : target_at[one]]
            allowed[earlier[earlier >= FIRST_VALUE] - FIRST_VALUE] = False
            allowed[target[one]] = False
            full[one] = _place(own, row[allowed])
    return Ranks(sampled, full)


def _place(own: float, others: NDArray[np.float32]) -> float:
    """How many others are ahead; an equal one is so half."""
    return float((others > own).sum() + (others == own).sum() / 2)


@torch.no_grad()
def _logits(
    model: Srp4Ctr, objective: PretrainObjective, prepared: Prepared, users: Ints, ends: Ints
) -> NDArray[np.float32]:
    """Logits [U, V] of what follows the users' first `ends` events: a hidden event is put behind them."""
    items, behaviours, _ = prepared.histories(users, ends)
    shown = slice(-(prepared.max_events - 1), None)
    with_hidden = [
        torch.cat([codes[:, shown], mask_codes(fields, codes).expand(len(users), 1, -1)], dim=1)
        for fields, codes in (
            (model.fields.item, torch.from_numpy(items)),
            (model.fields.behaviour, torch.from_numpy(behaviours)),
        )
    ]
    h_ULD = model.encode_history(*with_hidden).output_USD[:, :-1]
    hidden_UL = torch.zeros(h_ULD.shape[:2], dtype=torch.bool)
    hidden_UL[:, -1] = True
    logits: NDArray[np.float32] = objective.item_logits(model, h_ULD, with_hidden[0], hidden_UL).numpy()
    return logits
