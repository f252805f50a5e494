"""Exact predictions of labelled rows: each row under its own history."""

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from srp4ctr.nn.model import Srp4Ctr
from srp4ctr_offline.prepared import Ints, Prepared

BATCH = 512


@torch.no_grad()
def predict_logits(
    model: Srp4Ctr, prepared: Prepared, rows: Ints, *, progress: bool = False
) -> NDArray[np.float32]:
    """Uncalibrated logits [R] of rows [R], in evaluation mode; histories of similar length share a batch."""
    was_training = model.training
    model.eval()
    logits = np.empty(len(rows), np.float32)
    table = prepared.rows
    order = np.argsort(prepared.lengths(table.cut[rows]), kind="stable")
    steps = range(0, len(rows), BATCH)
    for at in tqdm(steps, desc="predicting", unit=f" x {BATCH} rows", disable=not progress):
        places = order[at : at + BATCH]
        row = rows[places]
        users = table.user[row]
        items, behaviours, _ = prepared.histories(users, table.cut[row])
        logit_UC = model(
            torch.from_numpy(items),
            torch.from_numpy(behaviours),
            torch.from_numpy(prepared.users.codes[users]),
            torch.from_numpy(prepared.items.codes[table.item[row]][:, None]),
            torch.from_numpy(table.contexts[row][:, None]),
        )
        logits[places] = logit_UC[:, 0].numpy()
    model.train(was_training)
    return logits


@torch.no_grad()
def predict(model: Srp4Ctr, prepared: Prepared, rows: Ints, *, progress: bool = False) -> NDArray[np.float64]:
    """Calibrated click probabilities [R] of rows [R]."""
    logits = torch.from_numpy(predict_logits(model, prepared, rows, progress=progress))
    return model.calibrate(logits).numpy().astype(np.float64)
