"""Batches for training and prediction: histories of similar length together, so that little of them is padding."""

import numpy as np

from srp4ctr_offline.config import OptimizerConfig
from srp4ctr_offline.prepared import TRAIN, Ints, Prepared

POOL = 32
"""Batches that are sorted by length together; between pools the order is random."""


def by_length(lengths: Ints, batch_size: int, generator: np.random.Generator) -> list[Ints]:
    """Places of all examples in random batches, each of similar length."""
    order = generator.permutation(len(lengths))
    batches: list[Ints] = []
    for pool in np.array_split(order, max(1, -(-len(order) // (POOL * batch_size)))):
        pool_sorted = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool_sorted[at : at + batch_size] for at in range(0, len(pool_sorted), batch_size)]
    return [batches[place] for place in generator.permutation(len(batches))]


def data_of_epoch(prepared: Prepared, options: OptimizerConfig, generator: np.random.Generator) -> Prepared:
    """`prepared`, or with `shuffle_events` a fresh shuffle of it: other events meet in a history each epoch."""
    return prepared.shuffled(generator) if options.shuffle_events else prepared


def windows(
    prepared: Prepared, generator: np.random.Generator, prefix_rate: float = 0.0
) -> tuple[Ints, Ints]:
    """Users and ends of histories that together hold every training event up to the newest history's end.

    The newest ends with the user's last training event, or for a share `prefix_rate` of the users with any of them;
    the others follow back from a place that is drawn anew at each call, so that an event is seen at many positions.
    """
    longest = prepared.max_events
    events = prepared.users.train_events
    if prefix_rate:
        prefix = generator.random(len(events)) < prefix_rate
        events = np.where(prefix & (events > 0), generator.integers(1, np.maximum(events, 1) + 1), events)
    step = np.where(events > longest, generator.integers(1, longest + 1, len(events)), events)
    pieces = np.where(events > 0, 1 + -(-(events - step) // longest), 0)
    users = np.repeat(np.arange(len(events)), pieces)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return users, events[users] - np.where(nth > 0, step[users] + (nth - 1) * longest, 0)


def folded(
    prepared: Prepared,
    rows_per_history: int,
    generator: np.random.Generator,
    negative_rate: float = 1.0,
) -> tuple[Ints, Ints]:
    """Training rows [G, R] in groups that share the history of their first row, -1 where a group is shorter.

    A group is up to R consecutive rows of one user; where the groups begin differs at each call. Encoding once for a
    whole group is what makes fine-tuning cheap, and its later rows show the model states that lack the newest events.
    Of the rows without a click a share `negative_rate` is drawn.
    """
    rows = prepared.rows
    train = rows.of(TRAIN)
    if negative_rate < 1:
        train = train[(rows.label[train] == 1) | (generator.random(len(train)) < negative_rate)]
    train = train[np.argsort(rows.place[train], kind="stable")]
    users = rows.user[train]
    first = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    size = np.diff(np.r_[first, len(users)])
    within = np.arange(len(users)) - np.repeat(first, size)
    shift = np.repeat(generator.integers(0, rows_per_history, len(first)), size)
    group = np.r_[0, np.cumsum((within[1:] == 0) | ((within[1:] + shift[1:]) % rows_per_history == 0))]
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    table = np.full((len(starts), rows_per_history), -1, np.int64)
    table[group, np.arange(len(users)) - starts[group]] = train
    return table, rows.cut[train[starts]]
