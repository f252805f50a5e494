"""Users of the synthetic data set: who they are, when they come, and what they are shown. No clicks yet.

Shapes: U users, T places of a timeline (first W for the warm-up history, then the labelled rows).

Every quantity has a random stream of its own, filled user by user: a user's numbers do not change when more users
follow.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr_offline.data.synthetic_catalogue import ANY, CATEGORIES, Catalogue, Floats, Ints
from srp4ctr_offline.data.synthetic_config import DAY_S, DAYS, START, TEST_FROM, WARM_UP_DAYS, SyntheticConfig

AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55+")
REGIONS = ("north", "east", "south", "west", None)
DEVICES = ("mobile", "desktop", "tablet")
EVENT_TYPES = ("click", "cart", "buy")

POSITIONS = 10
"""Places of a page, the first at its top."""

WARM_UP = 12
"""Most events of a warm-up history."""

_ROWS_LIMIT = 3
"""Most rows of a user, in multiples of the mean."""

_HOUR_OF_DAY = np.cumsum([0, 2, 1, 1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 6, 5, 5, 5, 6, 7, 8, 9, 9, 8, 6, 4])
_CATEGORY_RANKS = np.cumsum(1.0 / np.arange(1, len(CATEGORIES) + 1))


@dataclass(frozen=True, eq=False)
class Timelines:
    """What happens to U users whatever they click on.

    `base` [U] is a user's part of the logit of a click. All others are [U, T]: `active` tells which places are
    used, `item`, `timestamp` (Unix seconds, growing along a timeline), `device` and `position` (1 to POSITIONS) are
    the row's, `coin` in [0, 1) decides the click, and `event_type` and `dwell_seconds` become the event's if there is
    one. Positions are drawn at random, whatever stands there: what a position does is told apart from what an item does.
    """

    users: pl.DataFrame
    base: Floats
    active: NDArray[np.bool_]
    item: Ints
    timestamp: Ints
    device: Ints
    coin: Floats
    event_type: Ints
    dwell_seconds: Floats
    position: Ints


def draw_timelines(
    catalogue: Catalogue, config: SyntheticConfig, key: tuple[int, int], users: range
) -> Timelines:
    """Timelines of the users numbered `users`, from the random streams called `key`."""
    streams = map(np.random.default_rng, np.random.SeedSequence((config.seed, *key)).spawn(24))
    count, places = len(users), WARM_UP + _ROWS_LIMIT * config.rows_per_user
    shape = (count, places)

    age = next(streams).integers(len(AGE_GROUPS), size=count)
    region = next(streams).integers(len(REGIONS), size=count)
    base = 0.2 * (region - 2.0) + next(streams).normal(0, 0.5, count)
    active = _active(streams, count, config.rows_per_user)

    place = np.arange(places)
    starts = next(streams).random(shape) < 1 / 6
    starts[:, [0, WARM_UP]] = True
    session = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    timestamp = _timestamps(streams, active, starts, session)

    primary = next(streams).integers(len(DEVICES), size=(count, 1))
    other = next(streams).integers(len(DEVICES), size=shape)
    device = np.where(next(streams).random(shape) < 0.8, primary, other)

    dwell: Floats = np.exp(next(streams).normal(3.4, 1.0, shape))
    return Timelines(
        users=pl.DataFrame(
            {
                "user_id": [f"u{number}" for number in users],
                "age_group": pl.Series(AGE_GROUPS).gather(age),
                "region": pl.Series(REGIONS).gather(region),
            }
        ),
        base=base,
        active=active,
        item=_shown(streams, catalogue, age, timestamp),
        timestamp=timestamp,
        device=np.take_along_axis(device, session, axis=1),
        coin=next(streams).random(shape),
        event_type=np.searchsorted([0.75, 0.92], next(streams).random(shape), side="right"),
        dwell_seconds=dwell.round(1),
        position=next(streams).integers(1, POSITIONS + 1, size=shape),
    )


def _active(streams: Iterator[np.random.Generator], count: int, rows_per_user: int) -> NDArray[np.bool_]:
    limit = _ROWS_LIMIT * rows_per_user
    # With a mean above 1, because visitors and the limit take from it.
    activity = np.exp(next(streams).normal(-0.09, 0.6, count))
    rows = np.clip(np.rint(rows_per_user * activity), 1, limit)
    # Visitors come once or twice and have no history: with others who do not click they are the cold users.
    visitor = next(streams).random(count) < 0.08
    rows = np.where(visitor, np.minimum(rows, 2), rows)
    events = np.floor(next(streams).random(count) * (WARM_UP + 1))
    events[visitor] = 0
    return np.hstack([np.arange(WARM_UP) < events[:, None], np.arange(limit) < rows[:, None]])


def _timestamps(
    streams: Iterator[np.random.Generator],
    active: NDArray[np.bool_],
    starts: NDArray[np.bool_],
    session: Ints,
) -> Ints:
    shape, place = active.shape, np.arange(active.shape[1])
    # One moment a session, in order; a place that starts none has the last moment of all.
    moment = np.where(active & starts, next(streams).random(shape), 1.0)
    number = np.cumsum(starts, axis=1, dtype=np.int64)
    days = np.hstack(
        [
            (WARM_UP_DAYS - 1) * _nth(moment[:, :WARM_UP], number[:, :WARM_UP]),
            DAYS * _nth(moment[:, WARM_UP:], number[:, WARM_UP:] - number[:, WARM_UP - 1 : WARM_UP]),
        ]
    )
    whole = np.floor(days)
    seconds = DAY_S / 24 * np.interp((days - whole) * _HOUR_OF_DAY[-1], _HOUR_OF_DAY, np.arange(25))
    start = np.where(place < WARM_UP, START - WARM_UP_DAYS * DAY_S, START)
    pause = 20 * (place - session) + next(streams).integers(15, size=shape)
    time = start + whole.astype(np.int64) * DAY_S + seconds.astype(np.int64) + pause
    # A session may last into the next: no two places of a user share a second.
    return np.maximum.accumulate(time - place, axis=1) + place


def _nth(moments: Floats, number: Ints) -> Floats:
    return np.take_along_axis(np.sort(moments, axis=1), number - 1, axis=1)


def _shown(streams: Iterator[np.random.Generator], catalogue: Catalogue, age: Ints, timestamp: Ints) -> Ints:
    shape = timestamp.shape
    place = np.arange(shape[1])
    # A user's interest lasts for some events, and they for some rows; half of what is shown follows it.
    changes = next(streams).random(shape) < np.where(place < WARM_UP, 1 / 5, 1 / 30)
    changes[:, 0] = True
    rank = np.searchsorted(_CATEGORY_RANKS / _CATEGORY_RANKS[-1], next(streams).random(shape), side="right")
    wish = (np.minimum(rank, len(CATEGORIES) - 1) + 2 * age[:, None]) % len(CATEGORIES)
    interest = np.take_along_axis(wish, np.maximum.accumulate(np.where(changes, place, 0), axis=1), axis=1)
    follows = next(streams).random(shape) < np.where(place < WARM_UP, 0.8, 0.5)
    category = np.where(follows, interest, ANY)
    uniform = next(streams).random(shape)
    late = catalogue.late.draw(category, uniform)
    return np.where(timestamp < TEST_FROM, catalogue.early.draw(category, uniform), late)
