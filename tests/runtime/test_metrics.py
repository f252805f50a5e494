"""Metrics against independent implementations, and their intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from srp4ctr.runtime.metrics import (
    auc,
    calibration_curve,
    calibration_error_by_chance,
    evaluate_rows,
    expected_calibration_error,
)


def sample(seed: int, rows: int = 400, users: int = 30):
    """Labels, users and predictions with ties."""
    generator = np.random.default_rng(seed)
    user = generator.integers(users, size=rows)
    probability = np.round(generator.random(rows), 2)
    label = (generator.random(rows) < probability).astype(np.int8)
    return label, user, probability


@given(st.integers(0, 10_000))
def test_auc_is_scikit_learns(seed) -> None:
    """AUC with ties and weights is what scikit-learn computes."""
    label, _, probability = sample(seed)
    weight = np.random.default_rng(seed).integers(0, 4, len(label)).astype(float)
    assert auc(label, probability) == pytest.approx(roc_auc_score(label, probability))
    assert auc(label, probability, weight) == pytest.approx(
        roc_auc_score(label, probability, sample_weight=weight)
    )


def test_metrics_are_their_definitions() -> None:
    """GAUC weights users' AUC by their rows and leaves out users with one label; logloss and ECE are as defined."""
    label, user, probability = sample(1)
    found = dict(
        zip(
            ("auc", "gauc", "logloss", "ece"),
            evaluate_rows(label, user, probability, draws=1).value,
            strict=True,
        )
    )
    rated = [u for u in np.unique(user) if 0 < label[user == u].mean() < 1]
    sizes = [(user == u).sum() for u in rated]
    own = [roc_auc_score(label[user == u], probability[user == u]) for u in rated]
    assert found["gauc"] == pytest.approx(np.average(own, weights=sizes))
    assert found["logloss"] == pytest.approx(log_loss(label, np.clip(probability, 1e-7, 1 - 1e-7)))
    edges = np.minimum((probability * 15).astype(int), 14)
    gaps = [(edges == b).mean() * abs((probability - label)[edges == b].mean()) for b in np.unique(edges)]
    assert found["ece"] == pytest.approx(sum(gaps))


def test_intervals_hold_users_together() -> None:
    """The bootstrap draws whole users: copies of a user's rows do not narrow the interval."""
    label, user, probability = sample(2)
    once = evaluate_rows(label, user, probability)
    times = 9
    copied = evaluate_rows(*(np.tile(x, times) for x in (label, user, probability)))
    np.testing.assert_allclose(once.interval(), copied.interval())
    low, high = once.interval()[0]
    assert low < once.value[0] < high


def test_parts_of_the_rows_are_drawn_with_the_whole() -> None:
    """Draw by draw the loss of all rows lies between those of two parts, though some users have no row in one of them."""
    label, user, probability = sample(7)
    part = (np.arange(len(label)) % 3 == 0) | (user % 4 == 0)
    assert set(user[~part]) < set(user)
    whole, one, other = (
        evaluate_rows(label[at], user[at], probability[at], among=user) for at in (part | ~part, part, ~part)
    )
    losses = [quality.draws[:, 2] for quality in (one, whole, other)]
    assert ((np.sort(losses, axis=0)[1]) == losses[1]).all()
    empty = evaluate_rows(label[:1], user[:1], probability[:1], among=user)
    assert np.isnan(empty.draws).any()


def test_paired_difference_is_tighter_than_both() -> None:
    """Two close models are told apart by the paired interval though their own intervals overlap."""
    label, user, probability = sample(3, rows=3000, users=200)
    worse = np.clip(probability + np.random.default_rng(0).normal(0, 0.15, len(label)), 0, 1)
    good, bad = evaluate_rows(label, user, probability), evaluate_rows(label, user, worse)
    gap = good.difference(bad)["auc"]
    assert gap["interval_95"][0] > 0
    assert gap["difference"] == pytest.approx(good.value[0] - bad.value[0], abs=1e-6)
    paired = gap["interval_95"][1] - gap["interval_95"][0]
    assert paired < np.diff(good.interval()[0])[0]


def test_one_label_has_no_auc() -> None:
    """AUC of rows with one label is not a number, rather than a wrong one."""
    assert np.isnan(auc(np.ones(3, np.int8), np.array([0.1, 0.2, 0.3])))
    assert np.isnan(auc(np.empty(0, np.int8), np.empty(0)))


def test_calibration_curve_counts_every_row() -> None:
    """Bins without rows are left out, and the others hold all rows."""
    label, _, probability = sample(4)
    curve = calibration_curve(label, probability)
    assert curve[:, 2].sum() == len(label)
    assert np.isfinite(curve).all()


def test_right_probabilities_have_an_error_by_chance() -> None:
    """It is the mean ECE of labels that are drawn by the probabilities themselves."""
    generator = np.random.default_rng(0)
    probability = generator.beta(2, 2, 5_000)
    drawn = [
        expected_calibration_error((generator.random(5_000) < probability).astype(np.int8), probability)
        for _ in range(300)
    ]
    assert calibration_error_by_chance(probability) == pytest.approx(np.mean(drawn), rel=0.05)
