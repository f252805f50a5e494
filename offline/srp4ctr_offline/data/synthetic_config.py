"""Size and seed of a synthetic data set, and its calendar."""

from dataclasses import asdict, dataclass

from srp4ctr.contract.errors import ConfigError

CATALOGUE_STREAM, USER_STREAM, PILOT_STREAM = range(3)
"""Second word of every seed: what the random numbers are for."""

DAY_S = 86_400
START = 1_704_067_200
"""Unix seconds of the first day with labelled rows, 2024-01-01 00:00 UTC."""

DAYS = 30
VALID_FROM = START + 24 * DAY_S
TEST_FROM = START + 27 * DAY_S
"""One cut for all users: 80 % of the time is train, 10 % valid, 10 % test."""

WARM_UP_DAYS = 15
"""Days before START in which histories begin."""

MIN_ITEMS = 50


@dataclass(frozen=True)
class SyntheticConfig:
    """How much to generate; raises ConfigError where a value is impossible.

    `rows_per_user` and `ctr` (the mean label) are reached about, everything else exactly.
    """

    users: int
    items: int
    rows_per_user: int
    seed: int
    ctr: float

    def __post_init__(self) -> None:
        for name, least in (("users", 1), ("items", MIN_ITEMS), ("rows_per_user", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0.001 <= self.ctr <= 0.9:
            raise ConfigError(f"ctr must be from 0.001 to 0.9, not {self.ctr}")

    @property
    def recipe(self) -> dict[str, str | int | float]:
        """What the tables depend on; `generator` counts the changes of its code."""
        return {"dataset": "synthetic", "generator": 2, **asdict(self)}
