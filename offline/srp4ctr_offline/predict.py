"""Exact predictions of labelled rows: each row under its own history."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from srp4ctr.contract.state import DType, stored
from srp4ctr.contract.vocabulary import UNKNOWN
from srp4ctr.nn.ctr import CtrModel
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr_offline.prepared import Ints, Prepared
from srp4ctr_offline.training import tensors

BATCH = 64
"""Histories at a time; with more, their activations leave a core's cache, and half the speed is lost."""


@dataclass(frozen=True)
class Condition:
    """What is worse in production than in training: by default nothing."""

    missing_events: int = 0
    """The user's latest events that the state lacks."""
    state_dtype: DType | None = None
    """What the state was stored in; None: it was not."""
    new_items: bool = False
    """Whether candidates are scored by their attributes alone, as if training had not seen them."""


AS_TRAINED = Condition()


@torch.no_grad()
def predict_logits(
    model: CtrModel,
    prepared: Prepared,
    rows: Ints,
    condition: Condition = AS_TRAINED,
    *,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Uncalibrated logits [R] of rows [R] as serving gives them: in evaluation mode, contexts at their reference.

    Histories of similar length share a batch.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    logits = np.empty(len(rows), np.float32)
    table = prepared.rows
    cuts = np.maximum(table.cut[rows] - condition.missing_events, 0)
    order = np.argsort(prepared.lengths(cuts), kind="stable")
    steps = range(0, len(rows), BATCH)
    for at in tqdm(steps, desc="predicting", unit=f" x {BATCH} rows", disable=not progress):
        places = order[at : at + BATCH]
        row = rows[places]
        users = table.user[row]
        items, behaviours, _ = prepared.histories(users, cuts[places])
        item_codes = prepared.items.codes[table.item[row]][:, None]
        if condition.new_items:
            item_codes = item_codes.copy()
            item_codes[..., 0] = UNKNOWN
        history = tensors(device, items, behaviours, prepared.users.codes[users])
        contexts = prepared.transforms.at_reference(table.contexts[row])
        candidates = tensors(device, item_codes, contexts[:, None])
        if condition.state_dtype is None:
            logit_UC = model(*history, *candidates)
        else:
            assert isinstance(model, Srp4Ctr)
            state = {
                name: _through_storage(array, condition.state_dtype)
                for name, array in model.encode_user(*history).items()
            }
            logit_UC = model.score(state, *candidates)
        logits[places] = logit_UC[:, 0].cpu().numpy()
    model.train(was_training)
    return logits


def _through_storage(array: Tensor, dtype: DType) -> Tensor:
    if not array.is_floating_point():
        return array
    return torch.from_numpy(stored(array.cpu().numpy(), dtype).astype(np.float32)).to(array.device)


@torch.no_grad()
def predict(
    model: CtrModel,
    prepared: Prepared,
    rows: Ints,
    condition: Condition = AS_TRAINED,
    *,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Calibrated click probabilities [R] of rows [R]."""
    logits = torch.from_numpy(predict_logits(model, prepared, rows, condition, progress=progress))
    return model.calibrate(logits).numpy().astype(np.float64)
