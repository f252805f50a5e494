"""What one load test found, as JSON and as lines for a terminal."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from srp4ctr_loadtest.load.answers import Answers
from srp4ctr_loadtest.load.checks import NO_ANSWER, is_refusal
from srp4ctr_loadtest.load.open_loop import OpenLoop
from srp4ctr_loadtest.load.saturation import Saturation
from srp4ctr_loadtest.load.server import Use
from srp4ctr_loadtest.load.settings import LoadSettings

Span = tuple[float, float]
"""When a part began and ended, seconds since the server was first looked at."""
COLUMNS = ("rps", "p50_ms", "p95_ms", "p99_ms", "p999_ms", "failed")
TITLES = ("answers/s", "p50 ms", "p95", "p99", "p99.9", "failed")


@dataclass
class Results:
    """Parts that were left out are None or empty."""

    about: Mapping[str, str]
    settings: LoadSettings
    use: Use
    closed: Answers | None = None
    opened: list[OpenLoop] = field(default_factory=list)
    saturation: Saturation | None = None
    spans: dict[str, Span] = field(default_factory=dict)

    def failures(self) -> Counter[str]:
        """What makes the load test fail: anything in the closed loop, but for refusals where these are accepted; in open
        loops, whose rates may be more than a service can do, what is no refusal, and no answer at all; in the search, which goes
        beyond what it can do, the latter only where nothing was answered. A loop of which nothing was answered rightly always does.
        """
        found: Counter[str] = Counter()
        accepted = self.settings.accept_refusals
        loops = [one.answers for one in self.opened] + ([] if self.closed is None else [self.closed])
        for answers in loops:
            if all(answers.failures):
                # One at least: a loop in which no request ended has failed, too.
                found["no right answer in a whole loop"] += max(1, len(answers.failures))
        if self.closed is not None:
            found.update({n: c for n, c in self.closed.errors().items() if not (accepted and is_refusal(n))})
        for one in self.opened:
            errors = one.answers.errors()
            found.update(
                {n: c for n, c in errors.items() if not (is_refusal(n) and (accepted or _answered(n)))}
            )
        if self.settings.url is None:
            # Nobody else asks the service that was started here, and these users do nothing.
            changed = sum(answers.mix.alone["renewed"] for answers in loops)
            if changed:
                found["wrong answer: other scores for a user who did nothing"] += changed
        if self.saturation is not None:
            for step in self.saturation.steps:
                found.update({n: c for n, c in step.errors.items() if not is_refusal(n)})
            if self.saturation.unanswered:
                found["no answer in a whole step of the search"] += self.saturation.unanswered
        return found

    def as_json(self) -> dict[str, Any]:
        """Everything; what people look for comes first."""
        saturation = self.saturation
        return {
            "rps_at_budget": None if saturation is None or saturation.unanswered else saturation.rps,
            "budget_ms": self.settings.budget_ms,
            "failures": dict(self.failures().most_common()),
            "about": dict(self.about),
            "settings": self.settings.model_dump(mode="json", exclude={"api_key_file"}),
            "closed_loop": self.closed and self._closed(self.closed),
            "open_loop": [self._opened(one) for one in self.opened],
            "saturation": saturation and saturation.as_json() | {"server": self._server("saturation")},
            "server": None if self.use.source is None else self._watched(),
        }

    def lines(self) -> str:
        """What people read."""
        lines = [f"{name}: {value}" for name, value in self.about.items()]
        lines += [
            "",
            f"{'':<44}" + "".join(f"{title:>10}" for title in TITLES) + f"{'server CPU':>12} {'MB':>6}",
        ]
        for title, found in self.latencies():
            cells = "".join(f"{_number(found[name]):>10}" for name in COLUMNS)
            server = found["server"] or {}
            lines.append(
                f"{title:<44}{cells}{_number(server.get('cpu_cores_mean')):>12} {_number(server.get('memory_mb_max')):>6}"
            )
        for title, found in self.rows():
            mix = ", ".join(f"{name} {count}" for name, count in found["states"].items())
            lines.append(f"{title}: states {mix or '-'}; {compared(found['alone'])}")
            lines += [f"    {count} x {name}" for name, count in found["errors"].items()]
        lines += ["", self.answer()]
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, dict[str, Any]]]:
        """The parts, closed and open loops, each with what it is."""
        found = []
        if self.closed is not None:
            shape = f"{self.settings.users} users, {self.settings.shape}"
            found.append((f"closed loop (locust), {shape}", self._closed(self.closed)))
        found += [(f"open loop, {one.rate:g} requests/s wanted", self._opened(one)) for one in self.opened]
        return found

    def latencies(self) -> list[tuple[str, dict[str, Any]]]:
        """The parts with the same figures, each followed by its routes where it asked several."""
        lines = []
        for title, found in self.rows():
            lines.append((title, found))
            lines += [
                (f"  {route}", one | {"server": None}) for route, one in found.get("routes", {}).items()
            ]
        return lines

    def answer(self) -> str:
        """The saturation point in one sentence."""
        found = self.saturation
        if found is None:
            return "no saturation point was looked for"
        if found.unanswered:
            return "no rate is told, since nobody answered in a whole step of the search"
        if found.rps is None:
            return f"no rate was kept with p99 <= {found.budget_ms:g} ms: {found.ended}"
        how = (
            f"kept for {found.confirm_s:g} s"
            if found.confirm_s
            else f"steps of {found.step_s:g} s, not confirmed"
        )
        doubt = f". But {found.doubt}: something else was slow then" if found.doubt else ""
        return f"{found.rps:.0f} requests/s at p99 <= {found.budget_ms:g} ms, open loop, {how} ({found.ended}){doubt}"

    def json_line(self) -> str:
        """The last line of the command."""
        content = self.as_json()
        content["closed_loop"] = _without_time(content["closed_loop"])
        content["open_loop"] = [_without_time(one) for one in content["open_loop"]]
        if content["saturation"] is not None:
            del content["saturation"]["steps"]
        content["server"] = None if content["server"] is None else content["server"]["source"]
        return json.dumps({"benchmark": "load"} | content)

    def _closed(self, closed: Answers) -> dict[str, Any]:
        return {
            "loop": "closed",
            "by": "locust",
            "shape": self.settings.shape,
            "users": self.settings.users,
            "seconds": round(closed.seconds, 2),
            **closed.summary(),
            "server": self._server("closed"),
            "over_time": closed.over_time(),
        }

    def _opened(self, one: OpenLoop) -> dict[str, Any]:
        return {
            "loop": "open",
            "rate_rps": one.rate,
            "seconds": round(one.answers.seconds, 2),
            **one.answers.summary(),
            "loader_cpu": round(one.loader_cpu, 3),
            "sent_late_p99_ms": round(one.late_p99_ms, 2),
            "server": self._server(open_name(one.rate)),
            "over_time": one.answers.over_time(),
        }

    def _server(self, part: str) -> dict[str, Any] | None:
        return self.use.as_json(*self.spans.get(part, ()))

    def _watched(self) -> dict[str, Any]:
        return {**self.use.__dict__, "parts_s": {name: list(span) for name, span in self.spans.items()}}


def compared(alone: Mapping[str, int]) -> str:
    """How many answers were compared with what the users were answered alone."""
    text = f"{alone.get('same', 0) + alone.get('renewed', 0):,} answers compared with what the user was answered alone"
    return f"{text}, {alone['renewed']:,} of them after the user had acted" if alone.get("renewed") else text


def _answered(name: str) -> bool:
    return not name.startswith(NO_ANSWER)


def open_name(rate: float) -> str:
    """What the part of an open loop at that rate is called."""
    return f"open, {rate:g}/s"


def _without_time(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if content is None else {k: v for k, v in content.items() if k != "over_time"}


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,d}" if isinstance(value, int) else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
