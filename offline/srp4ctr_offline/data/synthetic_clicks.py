"""Who clicks on what in the synthetic data set: a known probability that depends on the user's latest events.

The logit of a click on item i by user u at a time is

    intercept + quality_i + base_u + hour + device - .5 * ln(position) + 3 * match(category_i) + 2 * match(brand_i)
    match(x) = sum_k .75^k * w_k * [event k has x] / sum_k .75^k       over the user's latest 8 events, newest k = 0

where an event weighs w = .6 (click), .8 (cart) or 1 (buy), and 0 if the user left within 10 seconds. Clicks become
events, and what is shown follows interests that move on: the taste that counts is the recent one. Position 1 is the
top of a page: the same item further down is clicked less.

Shapes: U users, T places of a timeline, K latest events.
"""

import numpy as np
from numpy.typing import NDArray

from srp4ctr_offline.data.synthetic_catalogue import NO_BRAND, Catalogue, Floats
from srp4ctr_offline.data.synthetic_config import PILOT_STREAM, SyntheticConfig
from srp4ctr_offline.data.synthetic_users import WARM_UP, Timelines, draw_timelines

_PILOT_USERS = 1024
_LATEST = 8
_FADING_K = 0.75 ** np.arange(_LATEST) / np.sum(0.75 ** np.arange(_LATEST))
_EVENT_WEIGHT = np.array([0.6, 0.8, 1.0])
_BOUNCE_S = 10.0
_CATEGORY_EFFECT, _BRAND_EFFECT = 3.0, 2.0
_DEVICE_EFFECT = np.array([0.15, -0.25, 0.0])
_POSITION_EFFECT = -0.5
_HOUR_EFFECT = 0.3 * np.sin(2 * np.pi * (np.arange(24) - 14) / 24)


def respond(catalogue: Catalogue, timelines: Timelines, intercept: float) -> tuple[Floats, NDArray[np.bool_]]:
    """True click probabilities and clicks, both [U, T]. A place of the warm-up is an event whatever its probability."""
    count, places = timelines.item.shape
    category_UT = catalogue.category[timelines.item]
    brand_UT = catalogue.brand[timelines.item]
    weight_UT = _EVENT_WEIGHT[timelines.event_type] * (timelines.dwell_seconds >= _BOUNCE_S)
    logit_UT = intercept + catalogue.quality[timelines.item] + timelines.base[:, None]
    logit_UT += _HOUR_EFFECT[timelines.timestamp // 3600 % 24] + _DEVICE_EFFECT[timelines.device]
    logit_UT += _POSITION_EFFECT * np.log(timelines.position)

    probability_UT = np.empty((count, places))
    clicked_UT = np.zeros((count, places), np.bool_)
    category_UK = np.full((count, _LATEST), -1)
    brand_UK = np.full((count, _LATEST), NO_BRAND)
    weight_UK = np.zeros((count, _LATEST))
    for place in range(places):
        same_category = category_UK == category_UT[:, place, None]
        same_brand = (brand_UK == brand_UT[:, place, None]) & (brand_UK != NO_BRAND)
        effect_UK = _CATEGORY_EFFECT * same_category + _BRAND_EFFECT * same_brand
        logit_U = logit_UT[:, place] + (effect_UK * weight_UK) @ _FADING_K
        probability_UT[:, place] = 1.0 / (1.0 + np.exp(-logit_U))
        happens = (timelines.coin[:, place] < probability_UT[:, place]) | (place < WARM_UP)
        clicked_UT[:, place] = timelines.active[:, place] & happens
        who = np.flatnonzero(clicked_UT[:, place])
        for latest, now in ((category_UK, category_UT), (brand_UK, brand_UT), (weight_UK, weight_UT)):
            latest[who, 1:] = latest[who, :-1]
            latest[who, 0] = now[who, place]
    return probability_UT, clicked_UT


def fit_intercept(catalogue: Catalogue, config: SyntheticConfig) -> float:
    """The intercept with which a pilot population, the same for any number of users, clicks at `config.ctr`."""
    pilot = draw_timelines(catalogue, config, (PILOT_STREAM, 0), range(_PILOT_USERS))
    rows = pilot.active & (np.arange(pilot.item.shape[1]) >= WARM_UP)
    intercept = _logit(config.ctr)
    # Clicks feed on clicks, so that the rate answers more than in proportion: steps are repeated until it settles.
    for _ in range(8):
        probability, _clicked = respond(catalogue, pilot, intercept)
        intercept += _logit(config.ctr) - _logit(float(probability[rows].mean()))
    return intercept


def _logit(probability: float) -> float:
    return float(np.log(probability / (1.0 - probability)))
