"""What a model must beat to be worth its cost: floors that need no network, on the same rows and inputs."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.metrics import Floats, row_losses
from srp4ctr_offline.prepared import TRAIN, VALID, Ints, Prepared
from srp4ctr_offline.rates import smoothed

USER_PRIOR_ROWS = 5.0
"""Rows without residual that a user's mean residual is smoothed with."""

WINDOWS = (25, 50, 100, 200, 1_000_000)
"""How many of a user's latest rows the residual counts, the last one all; chosen by validation logloss."""

STRENGTHS = (0.03, 0.1, 0.3, 1.0)
"""Inverse regularisation of the logistic regression, chosen by validation logloss."""


def item_popularity(prepared: Prepared, rows: Ints) -> Floats:
    """The item's own click rate in training, smoothed; the same that serves as the prior tier."""
    return prepared.items.prior[prepared.rows.item[rows]].astype(np.float64)


def item_mean_user_residual(prepared: Prepared, rows: Ints) -> Floats:
    """Logistic regression on the item's click rate and on how far the user's latest labels lay from their items'.

    The user's residual counts rows that precede a row, earlier test rows included, as a history does. A training
    row's own label is taken out of its item's rate.
    """
    table = prepared.rows
    train, valid = table.of(TRAIN), table.of(VALID)
    mean = float(table.label[train].mean())
    shown = np.bincount(table.item[train], minlength=len(prepared.items.prior)).astype(float)
    clicked = np.bincount(table.item[train], table.label[train], len(prepared.items.prior))
    in_training = (table.split == 0).astype(float)
    rate = smoothed(clicked[table.item] - in_training * table.label, shown[table.item] - in_training, mean)
    best, best_loss = None, np.inf
    for window in WINDOWS:
        inputs = np.stack([np.log(rate / (1 - rate)), _residual(prepared, rate, window)], axis=1)
        fitted = LogisticRegression(C=np.inf).fit(inputs[train], table.label[train])
        loss = row_losses(table.label[valid], _clicks(fitted, inputs[valid])).mean()
        if loss < best_loss:
            best, best_loss = _clicks(fitted, inputs[rows]), loss
    assert best is not None
    return best


def _residual(prepared: Prepared, rate: Floats, window: int) -> Floats:
    """The smoothed mean of label - rate over the user's latest `window` rows before each row [R]."""
    table = prepared.rows
    residual = np.empty(len(rate))
    by_time = np.argsort(table.place, kind="stable")
    difference = (table.label - rate)[by_time]
    user, cut = table.user[by_time], table.cut[by_time]
    before = np.r_[0.0, np.cumsum(difference)[:-1]]
    # Rows of one impression see the same history, so none of them counts for another.
    begins = np.r_[True, (user[1:] != user[:-1]) | (cut[1:] != cut[:-1])]
    group_start = np.maximum.accumulate(np.where(begins, np.arange(len(user)), 0))
    user_start = np.maximum.accumulate(np.where(np.r_[True, user[1:] != user[:-1]], np.arange(len(user)), 0))
    first = np.maximum(user_start, group_start - window)
    residual[by_time] = (before[group_start] - before[first]) / (group_start - first + USER_PRIOR_ROWS)
    return residual


def logistic_regression(prepared: Prepared, rows: Ints) -> Floats:
    """Logistic regression on the codes of item, user and context, one-hot; it sees no history.

    Like the model it is trained with logged values, and asked with what serving holds at a reference held there.
    """
    table, at_reference = prepared.rows, prepared.transforms.at_reference
    train, valid = table.of(TRAIN), table.of(VALID)
    logged = _one_hot(prepared, train, table.contexts[train])
    held = _one_hot(prepared, valid, at_reference(table.contexts[valid]))
    best, best_loss = None, np.inf
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=300).fit(logged, table.label[train])
        loss = row_losses(table.label[valid], _clicks(fitted, held)).mean()
        if loss < best_loss:
            best, best_loss = fitted, loss
    assert best is not None
    return _clicks(best, _one_hot(prepared, rows, at_reference(table.contexts[rows])))


FLOORS = {
    "item_popularity": item_popularity,
    "item_mean_user_residual": item_mean_user_residual,
    "logistic_regression": logistic_regression,
}


def _clicks(fitted: LogisticRegression, inputs: object) -> Floats:
    chances: NDArray[np.float64] = fitted.predict_proba(inputs)[:, 1]
    return chances


def _one_hot(prepared: Prepared, rows: Ints, contexts: Codes) -> sparse.csr_matrix:
    table, fields = prepared.rows, prepared.transforms.fields
    parts = []
    for group, codes in (
        (fields.item, prepared.items.codes[table.item[rows]]),
        (fields.user, prepared.users.codes[table.user[rows]]),
        (fields.context, contexts),
    ):
        for field in group:
            column = codes[:, field.columns]
            row, place = np.nonzero(column)
            ones = np.ones(len(row), np.float32)
            parts.append(sparse.coo_matrix((ones, (row, column[row, place])), (len(column), field.size)))
    return sparse.hstack(parts, format="csr")
