"""What came of many requests, over time; the one form in which closed and open loops tell it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from srp4ctr_loadtest.load.checks import Mix

PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99, "p999_ms": 99.9}


@dataclass
class Answers:
    """One entry a request: when it began (closed loop) or was due (open loop), seconds since the load began, its latency in
    milliseconds, its route, what failed, "" where nothing did, and how many users there were, 0 in an open loop.
    """

    loop: Literal["closed", "open"]
    seconds: float = 0.0
    at_s: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    mix: Mix = field(default_factory=Mix)

    def add(self, at_s: float, ms: float, route: str, failure: str = "", users: int = 0) -> None:
        """One more."""
        self.at_s.append(at_s)
        self.ms.append(ms)
        self.routes.append(route)
        self.failures.append(failure)
        self.users.append(users)

    def errors(self) -> Counter[str]:
        """Failures by name."""
        return Counter(one for one in self.failures if one)

    def summary(self) -> dict[str, Any]:
        """Counts, rate and latencies of those that were answered rightly; by route, where there are several."""
        found = self._of(range(len(self.ms))) | {"errors": dict(self.errors().most_common())}
        routes = sorted(set(self.routes))
        if len(routes) > 1:
            found["routes"] = {
                route: self._of([place for place, one in enumerate(self.routes) if one == route])
                for route in routes
            }
        return found | self.mix.as_json()

    def over_time(self) -> list[dict[str, Any]]:
        """A row for each second: when it began, answers that began or were due in it, errors, latencies."""
        seconds = np.floor(np.array(self.at_s)).astype(int)
        rows = []
        for second in range(int(seconds.max()) + 1 if len(seconds) else 0):
            places = np.flatnonzero(seconds == second).tolist()
            users = max((self.users[place] for place in places), default=0)
            # The last is shorter.
            row = self._of(places, min(1.0, self.seconds - second) or 1.0)
            rows.append({"at_s": second, "users": users} | row)
        return rows

    def write(self, path: Path) -> None:
        """As JSON, for another process."""
        path.write_text(json.dumps(self.__dict__ | {"mix": self.mix.as_json()}))

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        content = json.loads(path.read_bytes())
        mix = Mix(**{name: Counter(counts) for name, counts in content.pop("mix").items()})
        return cls(**content, mix=mix)

    def _of(self, places: Sequence[int], seconds: float | None = None) -> dict[str, Any]:
        right = [self.ms[place] for place in places if not self.failures[place]]
        values = np.percentile(right, list(PERCENTILES.values())) if right else [None] * len(PERCENTILES)
        return {
            "requests": len(places),
            "failed": len(places) - len(right),
            "rps": round(len(right) / (seconds or self.seconds), 2),
            **{
                name: None if value is None else round(float(value), 3)
                for name, value in zip(PERCENTILES, values, strict=True)
            },
        }
