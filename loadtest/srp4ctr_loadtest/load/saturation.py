"""The highest rate at which a service keeps a budget: doubled until it does not, bisected, then confirmed for longer."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from srp4ctr_loadtest.load.open_loop import OpenLoop

PRECISION = 0.05
"""The search ends when the rate that is kept and that which is not are so near, as a part of the latter."""
TRIES = 2
"""Of a rate that is not kept: what else runs on a machine must not decide."""
LEAST = 1.0
LESS = 0.9
"""The part of a rate that is tried next where the rate was not kept for longer."""
CONFIRMATIONS = 4
BUSY = 0.9
"""Of a core: a loader that uses more cannot be told from a service that is slow."""


@dataclass(frozen=True)
class Step:
    """One rate that was tried; `why` it was not kept is empty where it was."""

    rate_rps: float
    seconds: float
    answered_rps: float
    p99_ms: float | None
    errors: dict[str, int]
    prior: int
    loader_cpu: float
    late_p99_ms: float
    why: str


@dataclass(frozen=True)
class Saturation:
    """The highest rate that was kept, None where none was, and all steps in their order.

    `confirm_s` says for how many seconds it was kept in the end; 0: for no longer than any step.
    """

    budget_ms: float
    step_s: float
    confirm_s: float
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

    @property
    def doubt(self) -> str:
        """What speaks against the rate: lower ones that were not kept at some time, and why; empty where nothing does."""
        below = [one for one in self.steps if one.why and self.rps is not None and one.rate_rps < self.rps]
        return "; ".join(f"at {one.rate_rps:.0f} requests/s once: {one.why}" for one in below)

    @property
    def unanswered(self) -> int:
        """Requests of steps of which not one was answered: that is no overload."""
        return sum(sum(one.errors.values()) for one in self.steps if one.p99_ms is None)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"loop": "open", "ended": self.ended, "doubt": self.doubt} | asdict(self)


def search(
    ask: Callable[[float, float], OpenLoop],
    budget_ms: float,
    step_s: float,
    first: float,
    most: float,
    confirm_s: float = 0.0,
) -> Saturation:
    """Find it by asking at one rate after the other for `step_s`, `first` to begin with, `most` in the end.

    What was found is asked for `confirm_s`, and where it is not kept for so long, a little less is, a few times.
    """
    steps: list[Step] = []

    def kept(rate: float, seconds: float = step_s, tries: int = TRIES) -> bool:
        for _ in range(tries):
            steps.append(_step(ask(rate, seconds), seconds, budget_ms))
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
    if low and confirm_s:
        confirmations = (low * LESS**nth for nth in range(CONFIRMATIONS))
        low = next((rate for rate in confirmations if kept(rate, confirm_s, 1)), 0.0)
    return Saturation(budget_ms, step_s, confirm_s, low or None, steps)


def _step(load: OpenLoop, seconds: float, budget_ms: float) -> Step:
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
        seconds=seconds,
        answered_rps=found["rps"],
        p99_ms=p99,
        errors=found["errors"],
        prior=prior,
        loader_cpu=round(load.loader_cpu, 3),
        late_p99_ms=round(load.late_p99_ms, 2),
        why=why,
    )
