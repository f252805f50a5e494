"""Smoothed click rates of items."""

import numpy as np
from numpy.typing import NDArray

PRIOR_ROWS = 10.0
"""How many rows of the average click rate an item's own rows are smoothed with."""


def smoothed(clicked: NDArray[np.float64], shown: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Click rates pulled towards `mean`; what was never shown has the mean."""
    return (clicked + PRIOR_ROWS * mean) / (shown + PRIOR_ROWS)
