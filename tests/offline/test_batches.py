"""Batches of similar length, and windows over prefixes; that windows and folded rows are whole is tested beside the jobs."""

import numpy as np
import pytest

from srp4ctr_offline.batches import POOL, by_length, windows


@pytest.mark.parametrize("examples", [0, 1, 7, 8, 9, 2 * POOL * 8, 2000])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_every_example_is_in_one_batch(examples, batch_size) -> None:
    """Batches hold every example once, none of them more than batch_size, and hardly any of them fewer."""
    lengths = np.random.default_rng(0).integers(0, 50, examples)
    batches = by_length(lengths, batch_size, np.random.default_rng(1))
    assert sorted(place for batch in batches for place in batch.tolist()) == list(range(examples))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    pools = -(-examples // (POOL * batch_size))
    assert sum(len(batch) < batch_size for batch in batches) <= pools


def test_lengths_in_a_batch_are_close() -> None:
    """In a batch lengths differ by far less than among examples at random."""
    lengths = np.random.default_rng(0).integers(1, 101, 5000)
    batches = by_length(lengths, 16, np.random.default_rng(1))
    shuffled = np.random.default_rng(2).permutation(lengths)
    at_random = np.mean([np.ptp(shuffled[at : at + 16]) for at in range(0, 5000, 16)])
    assert np.mean([np.ptp(lengths[batch]) for batch in batches]) < 0.1 * at_random


def test_batches_are_random() -> None:
    """Long and short batches come in no order, and another generator gives other batches, the same one the same."""
    lengths = np.random.default_rng(0).integers(1, 101, 16 * POOL)
    first, again, other = (by_length(lengths, 16, np.random.default_rng(seed)) for seed in (1, 1, 2))
    means = [lengths[batch].mean() for batch in first]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in again]
    assert {tuple(sorted(batch.tolist())) for batch in first} != {
        tuple(sorted(batch.tolist())) for batch in other
    }


def newest(prepared, users, ends) -> np.ndarray:
    """Where each user's newest window ends [U]; 0 where there is none."""
    found = np.zeros(len(prepared.users.ids), np.int64)
    np.maximum.at(found, users, ends)
    return found


@pytest.mark.parametrize("prefix_rate", [0.0, 0.5, 1.0])
def test_windows_end_within_the_training_events(tiny, prefix_rate) -> None:
    """Whatever share of the users is shown as they were earlier, no window ends later than training does, each user
    with training events has one, and what comes before the newest window's end is shown, too.
    """
    prepared = tiny.prepared
    trained = prepared.users.train_events
    assert (trained == 0).any()
    for seed in range(3):
        users, ends = windows(prepared, np.random.default_rng(seed), prefix_rate)
        assert ((ends >= 1) & (ends <= trained[users])).all()
        last = newest(prepared, users, ends)
        assert ((last > 0) == (trained > 0)).all()
        for user, end in enumerate(last):
            seen = np.zeros(end, bool)
            for one in ends[users == user]:
                seen[max(0, one - prepared.max_events) : one] = True
            assert seen.all()


def test_prefixes_end_anywhere(tiny) -> None:
    """A share prefix_rate of the users ends at any of their training events, drawn anew at each call; 0 moves none."""
    trained = tiny.prepared.users.train_events
    users = np.flatnonzero(trained)
    draws = {
        rate: np.array(
            [
                newest(tiny.prepared, *windows(tiny.prepared, np.random.default_rng(seed), rate))[users]
                for seed in range(10)
            ]
        )
        for rate in (0.0, 0.5, 1.0)
    }
    assert (draws[0.0] == trained[users]).all()
    place = (draws[1.0] - 1) / np.maximum(1, trained[users] - 1)
    many = trained[users] > 1
    assert place[:, many].mean() == pytest.approx(0.5, abs=0.02)
    assert place[:, many].max() == 1
    assert place[:, many].min() == 0
    assert (draws[1.0][0] != draws[1.0][1]).any()
    expected = 0.5 + 0.5 * (1 / trained[users]).mean()
    assert (draws[0.5] == trained[users]).mean() == pytest.approx(expected, abs=0.02)
