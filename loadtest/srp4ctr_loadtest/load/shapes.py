"""How many users ask, over time."""

import math

from srp4ctr_loadtest.load.settings import Shape

STEPS = 4
SPIKE = (0.4, 0.6)
"""When a spike begins and ends, of the whole time."""
BASE = 0.25
"""Of the users, those who are there before and after a spike."""


def users_at(shape: Shape, users: int, part: float) -> int:
    """Of so many users at most, those who ask when `part` (0 to 1) of the time is over; one at least."""
    if shape == "ramp":
        share = part
    elif shape == "step":
        share = (math.floor(part * STEPS) + 1) / STEPS
    elif shape == "spike":
        share = 1.0 if SPIKE[0] <= part < SPIKE[1] else BASE
    else:
        share = 1.0
    return max(1, min(users, math.ceil(share * users)))
