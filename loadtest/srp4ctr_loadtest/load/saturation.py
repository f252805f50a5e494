"""The highest rate at which a service keeps a budget: doubled until it does not, then bisected."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from srp4ctr_loadtest.load.open_loop import OpenLoop

PRECISION = 0.05
"""The search ends when the rate that is kept and that which is not are so near, as a part of the latter."""
TRIES = 2
"""Of a rate that is not kept: what else runs on a machine must not decide."""
LEAST = 1.0
BUSY = 0.9
"""Of a core: a loader that uses more cannot be told from a service that is slow."""


@dataclass(frozen=True)
class Step:
    """One rate that was tried; `why` it was not kept is empty where it was."""

    rate_rps: float
    answered_rps: float
    p99_ms: float | None
    errors: dict[str, int]
    prior: int
    loader_cpu: float
    late_p99_ms: float
    why: str


@dataclass(frozen=True)
class Saturation:
    """The highest rate that was kept, None where none was, and all steps in their order."""

    budget_ms: float
    step_s: float
    rps: float | None
    steps: list[Step]

    @property
    def ended(self) -> str:
        """Why no higher rate is the answer."""
        above = [one for one in self.steps if one.why and (self.rps is None or one.rate_rps > self.rps)]
        if not above:
            return "the highest rate that was to be tried was kept"
        nearest = min(above, key=lambda one: one.rate_rps)
        busy = "; the loader had no more to give, and may be why" if nearest.loader_cpu > BUSY else ""
        return f"at {nearest.rate_rps:.0f} requests/s: {nearest.why}{busy}"

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"loop": "open", "ended": self.ended} | asdict(self)


def search(
    ask: Callable[[float], OpenLoop], budget_ms: float, step_s: float, first: float, most: float
) -> Saturation:
    """Find it by asking at one rate after the other, `first` to begin with, `most` in the end."""
    steps: list[Step] = []

    def kept(rate: float) -> bool:
        for _ in range(TRIES):
            steps.append(_step(ask(rate), budget_ms))
            if not steps[-1].why:
                return True
        return False

    rate, low, high = min(first, most), 0.0, float("inf")
    while rate >= LEAST:
        if kept(rate):
            low = rate
        else:
            high = rate
        if low >= most or low >= (1 - PRECISION) * high:
            break
        if high == float("inf"):
            rate = min(2 * low, most)
        elif low == 0.0:
            rate = high / 2
        else:
            rate = (low + high) / 2
    return Saturation(budget_ms, step_s, low or None, steps)


def _step(load: OpenLoop, budget_ms: float) -> Step:
    found = load.answers.summary()
    p99, prior = found["p99_ms"], load.answers.mix.tiers["prior"]
    if found["failed"]:
        name, count = load.answers.errors().most_common(1)[0]
        why = f"{found['failed']} of {found['requests']} requests failed, {count} by: {name}"
    elif p99 is None:
        why = "no request was due"
    elif prior:
        why = f"{prior} of {found['requests']} answers were not by the model"
    elif p99 > budget_ms:
        why = f"p99 {p99:.1f} ms"
    else:
        why = ""
    return Step(
        rate_rps=load.rate,
        answered_rps=found["rps"],
        p99_ms=p99,
        errors=found["errors"],
        prior=prior,
        loader_cpu=round(load.loader_cpu, 3),
        late_p99_ms=round(load.late_p99_ms, 2),
        why=why,
    )
