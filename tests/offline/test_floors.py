"""The floors: what each of them knows of a row, and that it knows no more."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression

from srp4ctr.runtime.metrics import auc
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.floors import (
    USER_PRIOR_ROWS,
    item_mean_user_residual,
    item_popularity,
    logistic_regression,
)
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.rates import PRIOR_ROWS

# The floors sum over all rows before they take differences, so that other users move a number's last bits.
ROUNDING = 1e-9


def prepared_of(
    folder: Path, rows: pl.DataFrame, events: pl.DataFrame | None = None, split: dict | None = None
) -> Prepared:
    """Prepare these rows, and events where rows are not events; an item's genre is its id's first letter."""
    rows.write_parquet(folder / "rows.parquet")
    if events is not None:
        events.write_parquet(folder / "events.parquet")
    items = rows.select(pl.col("item_id").unique().sort())
    items.with_columns(genre=pl.col("item_id").str.slice(0, 1)).write_parquet(folder / "items.parquet")
    rows.select(pl.col("user_id").unique().sort()).write_parquet(folder / "users.parquet")
    config = {
        "name": "test",
        "tables": {"folder": folder, "events": "rows.parquet" if events is None else "events.parquet"},
        "schema": {"max_events": 4, "item_attributes": [{"name": "genre", "type": "categorical"}]},
        "split": split or {"rule": "column"},
    }
    return prepare(RunConfig.model_validate(config))


def with_labels(prepared: Prepared, at, labels) -> Prepared:
    """The same data with other labels of the rows `at`."""
    label = prepared.rows.label.copy()
    label[at] = labels
    return dataclasses.replace(prepared, rows=dataclasses.replace(prepared.rows, label=label))


def moody_rows(rows_per_order: int = 1) -> pl.DataFrame:
    """Rows of users who click by nature more or less often; each order has so many rows of a user."""
    generator = np.random.default_rng(4)
    users, orders = 30, 12
    user = np.repeat(np.arange(users), orders * rows_per_order)
    order = np.tile(np.repeat(np.arange(orders), rows_per_order), users)
    often = generator.choice([0.15, 0.75], users)[user]
    return pl.DataFrame(
        {
            "user_id": user,
            "item_id": [f"{'abc'[item % 3]}{item}" for item in generator.integers(12, size=len(user))],
            "order": 10 * order,
            "label": (generator.random(len(user)) < often).astype(np.int8),
            "split": np.where(order < 7, "train", np.where(order < 9, "valid", "test")),
        }
    ).sample(fraction=1.0, shuffle=True, seed=1)


def test_item_popularity_is_the_smoothed_click_rate(tmp_path) -> None:
    """An item's rate is of its training rows alone, pulled to their mean by the prior rows; a new item has the mean."""
    rows = pl.DataFrame(
        {
            "user_id": ["u"] * 9,
            "item_id": ["a", "a", "a", "b", "b", "a", "a", "b", "new"],
            "order": range(9),
            "label": [1, 1, 0, 0, 0, 0, 1, 1, 1],
            "split": ["train"] * 5 + ["valid"] * 2 + ["test"] * 2,
        }
    )
    found = item_popularity(prepared_of(tmp_path, rows), np.array([8, 7, 6, 0]))
    rate_a, rate_b = (2 + PRIOR_ROWS * 0.4) / (3 + PRIOR_ROWS), PRIOR_ROWS * 0.4 / (2 + PRIOR_ROWS)
    np.testing.assert_allclose(found, [0.4, rate_b, rate_a, rate_a], rtol=1e-6)


def test_residuals_look_back_alone(tmp_path) -> None:
    """A row's label moves the user's later rows, and neither the row itself, nor earlier ones, nor other users."""
    prepared = prepared_of(tmp_path, moody_rows())
    table = prepared.rows
    test = table.of("test")
    everyone = np.arange(len(table.label))
    before = item_mean_user_residual(prepared, everyone)
    for row in test[:20]:
        raised = item_mean_user_residual(with_labels(prepared, row, 1), everyone)
        lowered = item_mean_user_residual(with_labels(prepared, row, 0), everyone)
        later = (table.user == table.user[row]) & (table.place > table.place[row])
        assert (raised[later] - lowered[later] > 1e-3).all()
        np.testing.assert_allclose(raised[~later], lowered[~later], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(before, (lowered, raised)[table.label[row]], rtol=0, atol=0)
    # Of twenty rows most are not a user's last.
    assert sum(((table.user == table.user[r]) & (table.place > table.place[r])).any() for r in test[:20]) > 10


def test_residuals_do_not_see_their_own_impression(tmp_path) -> None:
    """Rows of one impression, which share a history, do not move one another; the next impression's rows move."""
    rows = moody_rows(rows_per_order=3)
    # After each impression the user does something, so that the next one has a longer history.
    events = rows.unique(["user_id", "order"], maintain_order=True).select(
        "user_id", "item_id", pl.col("order") + 1
    )
    prepared = prepared_of(tmp_path, rows, events)
    table = prepared.rows
    everyone = np.arange(len(table.label))
    first_test = table.cut == table.cut[table.of("test")].min()
    for row in np.flatnonzero(first_test)[:12]:
        raised = item_mean_user_residual(with_labels(prepared, row, 1), everyone)
        lowered = item_mean_user_residual(with_labels(prepared, row, 0), everyone)
        mine = table.user == table.user[row]
        assert (mine & first_test).sum() == 3
        later = mine & (table.cut > table.cut[row])
        assert later.sum() == 6
        assert (raised[later] - lowered[later] > 1e-3).all()
        np.testing.assert_allclose(raised[~later], lowered[~later], rtol=0, atol=ROUNDING)


def test_residuals_are_their_definition(tmp_path) -> None:
    """Row by row: the item's rate without the row itself, and the mean distance of earlier labels from such rates."""
    prepared = prepared_of(tmp_path, moody_rows())
    table = prepared.rows
    train = table.of("train")
    mean = table.label[train].mean()

    def rate_of(row: int) -> float:
        others = [one for one in train if one != row and table.item[one] == table.item[row]]
        return (table.label[others].sum() + PRIOR_ROWS * mean) / (len(others) + PRIOR_ROWS)

    everyone = range(len(table.label))
    rates = np.array([rate_of(row) for row in everyone])
    inputs = []
    for row in everyone:
        earlier = (table.user == table.user[row]) & (table.place < table.place[row])
        distance = (table.label - rates)[earlier].sum()
        inputs.append((np.log(rates[row] / (1 - rates[row])), distance / (earlier.sum() + USER_PRIOR_ROWS)))
    fitted = LogisticRegression(C=np.inf).fit(np.array(inputs)[train], table.label[train])
    test = table.of("test")
    expected = fitted.predict_proba(np.array(inputs)[test])[:, 1]
    np.testing.assert_allclose(item_mean_user_residual(prepared, test), expected, atol=1e-5)
    assert auc(table.label[test], expected) > 0.65


def test_residuals_forget_what_no_longer_holds(tmp_path) -> None:
    """Where users change their minds, the residual counts their latest rows, as validation rows tell it to."""
    generator = np.random.default_rng(6)
    users, orders = 20, 300
    user, order = np.repeat(np.arange(users), orders), np.tile(np.arange(orders), users)
    # Each user's mood holds for 100 rows.
    chance = generator.choice([0.05, 0.95], (users, orders // 100))[user, order // 100]
    rows = pl.DataFrame(
        {
            "user_id": user,
            "item_id": [f"a{item}" for item in generator.integers(12, size=len(user))],
            "order": order,
            "label": (generator.random(len(user)) < chance).astype(np.int8),
            "split": np.where(order % 100 < 60, "train", np.where(order % 100 < 80, "valid", "test")),
        }
    )
    prepared = prepared_of(tmp_path, rows)
    test = prepared.rows.of("test")
    assert auc(prepared.rows.label[test], item_mean_user_residual(prepared, test)) > 0.9


@pytest.fixture(scope="module")
def by_genre(tmp_path_factory) -> Prepared:
    """Labels that depend on the item's genre; the test rows' items are all new."""
    generator = np.random.default_rng(2)
    count = 1200
    at = np.arange(count)
    item = generator.integers(40, size=count) + np.where(at < 900, 0, 40)
    label = generator.random(count) < np.array([0.1, 0.4, 0.6, 0.9])[item % 4]
    rows = pl.DataFrame(
        {
            "user_id": generator.integers(25, size=count),
            "item_id": [f"{'abcd'[one % 4]}{one}" for one in item],
            "order": at,
            "label": label.astype(np.int8),
            "split": np.where(at < 600, "train", np.where(at < 900, "valid", "test")),
        }
    )
    return prepared_of(tmp_path_factory.mktemp("by_genre"), rows)


def test_logistic_regression_knows_attributes(by_genre) -> None:
    """An item that training never saw is ranked by its attributes, far better than by chance."""
    test = by_genre.rows.of("test")
    label = by_genre.rows.label[test]
    assert auc(label, item_popularity(by_genre, test)) == 0.5
    assert auc(label, logistic_regression(by_genre, test)) > 0.7


def test_logistic_regression_sees_no_history(by_genre) -> None:
    """Neither what the users did before nor any label outside training and validation changes a prediction."""
    test = by_genre.rows.of("test")
    before = logistic_regression(by_genre, test)
    events = dataclasses.replace(by_genre.events, item=by_genre.events.item[::-1].copy())
    rows = dataclasses.replace(by_genre.rows, cut=np.zeros_like(by_genre.rows.cut))
    forgotten = dataclasses.replace(by_genre, events=events, rows=rows)
    np.testing.assert_array_equal(logistic_regression(forgotten, test), before)
    flipped = with_labels(by_genre, test, 1 - by_genre.rows.label[test])
    np.testing.assert_array_equal(logistic_regression(flipped, test), before)


def test_logistic_regression_is_asked_at_the_reference(tiny) -> None:
    """Where a row was shown trains the regression, and is not told to it when it predicts: as serving is not."""
    prepared, test = tiny.prepared, tiny.prepared.rows.of("test")
    before = logistic_regression(prepared, test)
    for split, matters in (("test", False), ("valid", False), ("train", True)):
        moved = prepared.rows.contexts.copy()
        of = prepared.rows.of(split)
        moved[of, -1] = np.random.default_rng(0).permutation(moved[of, -1])
        rows = dataclasses.replace(prepared.rows, contexts=moved)
        after = logistic_regression(dataclasses.replace(prepared, rows=rows), test)
        if matters:
            assert np.abs(after - before).max() > 1e-3
        else:
            np.testing.assert_array_equal(after, before)


def test_logistic_regression_is_chosen_on_validation_rows(by_genre) -> None:
    """Validation labels that contradict training choose the regression that trusts its inputs least."""
    test, valid = by_genre.rows.of("test"), by_genre.rows.of("valid")
    contradicted = with_labels(by_genre, valid, 1 - by_genre.rows.label[valid])
    assert logistic_regression(by_genre, test).std() > 1.2 * logistic_regression(contradicted, test).std()
