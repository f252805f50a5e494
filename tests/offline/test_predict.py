"""Predictions under the conditions of production: each is what it says, and nothing else changes."""

import dataclasses

import numpy as np
import pytest
import torch

from srp4ctr.contract.vocabulary import UNKNOWN
from srp4ctr_offline.checkpoint import load_model
from srp4ctr_offline.predict import Condition, predict, predict_logits
from srp4ctr_offline.prepared import TEST, Prepared

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5


@pytest.fixture(scope="module", params=["tiny", "tiny_sequence"])
def run(request):
    """A trained run of each kind of state."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(run):
    """The run's fine-tuned model."""
    return load_model(run.run / "finetune", "finetune", run.config, run.prepared)


@pytest.fixture(scope="module")
def rows(run):
    """Some test rows."""
    return run.prepared.rows.of(TEST)[:400]


def with_rows(prepared: Prepared, **columns) -> Prepared:
    """The same data with other columns of the rows."""
    return dataclasses.replace(prepared, rows=dataclasses.replace(prepared.rows, **columns))


def with_items(prepared: Prepared, codes, **columns) -> Prepared:
    """The same data with further items, whose numbers follow those that were there."""
    items = prepared.items
    grown = dataclasses.replace(items, codes=np.concatenate([items.codes, codes]))
    return with_rows(dataclasses.replace(prepared, items=grown), **columns)


@pytest.mark.parametrize("missing", [1, 3, 1000])
def test_missing_events_are_those_of_an_earlier_cut(run, model, rows, missing) -> None:
    """A state that lacks the latest k events scores as one that was made k events earlier, down to no event."""
    cut = run.prepared.rows.cut
    assert (cut[rows] < 3).any()
    assert (cut[rows] > 3).any()
    earlier = with_rows(run.prepared, cut=np.maximum(cut - missing, 0))
    late = predict_logits(model, run.prepared, rows, Condition(missing_events=missing))
    np.testing.assert_array_equal(late, predict_logits(model, earlier, rows))
    assert np.abs(late - predict_logits(model, run.prepared, rows)).max() > ROUNDING


def test_storage_moves_scores_by_its_precision(run, model, rows) -> None:
    """Stored in float32 a state scores as it does without storage; float16 and int8 move scores, int8 by more."""
    plain = predict(model, run.prepared, rows)
    moved = {
        dtype: np.abs(predict(model, run.prepared, rows, Condition(state_dtype=dtype)) - plain).max()
        for dtype in ("float32", "float16", "int8")
    }
    assert moved["float32"] <= ROUNDING
    assert 0 < moved["float16"] < 2e-3
    assert moved["float16"] < moved["int8"] < 2e-2


def test_new_items_are_scored_without_their_ids(run, model, rows) -> None:
    """A new item scores as one of unknown id with its attributes; the histories keep the ids that they have."""
    items = run.prepared.items
    unknown = items.codes.copy()
    unknown[:, 0] = UNKNOWN
    strangers = with_items(run.prepared, unknown, item=run.prepared.rows.item + len(items.codes))
    found = predict_logits(model, run.prepared, rows, Condition(new_items=True))
    np.testing.assert_array_equal(found, predict_logits(model, strangers, rows))
    assert np.abs(found - predict_logits(model, run.prepared, rows)).max() > 1e-3


def test_new_items_of_equal_attributes_score_equal(run, model, rows) -> None:
    """As new items, two that differ in nothing but their ids are one, and as known items they are not."""
    item = run.prepared.rows.item
    twins = run.prepared.items.codes.copy()
    twins[1:, 0] = np.roll(twins[1:, 0], 1)
    twin = with_items(run.prepared, twins, item=item + len(twins))
    for new in (True, False):
        mine, other = (
            predict_logits(model, data, rows, Condition(new_items=new)) for data in (run.prepared, twin)
        )
        assert np.array_equal(mine, other) == new


def test_conditions_add_up(run, model, rows) -> None:
    """Conditions hold together: late, stored in less, of a new item."""
    cut = run.prepared.rows.cut
    unknown = run.prepared.items.codes.copy()
    unknown[:, 0] = UNKNOWN
    both = with_items(
        run.prepared,
        unknown,
        item=run.prepared.rows.item + len(unknown),
        cut=np.maximum(cut - 2, 0),
    )
    together = Condition(missing_events=2, state_dtype="int8", new_items=True)
    np.testing.assert_array_equal(
        predict_logits(model, run.prepared, rows, together),
        predict_logits(model, both, rows, Condition(state_dtype="int8")),
    )


def test_predicting_leaves_the_model_as_it_was(run, model, rows) -> None:
    """Predictions are made without dropout, whatever mode the model is in, and it stays in that mode."""
    expected = predict_logits(model, run.prepared, rows)
    model.train()
    try:
        torch.manual_seed(0)
        np.testing.assert_array_equal(predict_logits(model, run.prepared, rows), expected)
        assert model.training
    finally:
        model.eval()
