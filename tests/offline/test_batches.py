"""Batches of similar length; that windows and folded rows are whole is tested beside the jobs."""

import numpy as np
import pytest

from srp4ctr_offline.batches import POOL, by_length


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
