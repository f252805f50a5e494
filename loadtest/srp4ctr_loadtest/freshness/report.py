"""What was measured, as JSON for freshness.json and as lines for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srp4ctr.contract.errors import ConfigError
from srp4ctr_loadtest.freshness.events import Freshness
from srp4ctr_loadtest.freshness.publishing import PublishRate
from srp4ctr_loadtest.freshness.rollback import Rollback
from srp4ctr_loadtest.freshness.sizes import Size, Sizes

FAULTS = ("kills", "wrong", "mixed", "lost")
"""What `python -m srp4ctr_loadtest.chaos` counts."""
AUC_BY_DELAY = "auc_by_delay"
"""What `python -m srp4ctr_offline.study.delays` measures."""


@dataclass(frozen=True)
class Results:
    """One run's measurements; None where a part was left out."""

    about: Mapping[str, str]
    settings: Mapping[str, float | str]
    real_mix: PublishRate
    events: Freshness | None = None
    sizes: Sizes | None = None
    rollback: Rollback | None = None
    full_length: PublishRate | None = None

    def as_json(self, chaos: Mapping[str, Any] | None, delays: Mapping[str, Any] | None) -> dict[str, Any]:
        """Everything, with what two other commands found; the fields that people look for come first."""
        events, sizes, rollback, full = self.events, self.sizes, self.rollback, self.full_length
        content = {
            "event_to_score_p50_ms": events and events.event_to_score_p50_ms,
            "event_to_score_p99_ms": events and events.event_to_score_p99_ms,
            "events_per_s": events and events.events_per_s,
            "publish_users_per_s": full and full.users_per_s,
            "bytes_per_user": sizes and sizes.published.memory_usage,
            "rollback_ms": rollback and rollback.median_ms,
            **{name: chaos and _total(chaos[name]) for name in FAULTS},
            AUC_BY_DELAY: delays and delays[AUC_BY_DELAY],
            "about": dict(self.about),
            "settings": dict(self.settings),
            "events": events and asdict(events),
            "publish": {"real_mix": asdict(self.real_mix), "full_length": full and asdict(full)},
            "bytes": sizes and asdict(sizes),
            "rollback": rollback and asdict(rollback),
            "chaos": chaos and dict(chaos),
            "delays": delays and dict(delays),
        }
        return {name: _rounded(value) for name, value in content.items()}

    def lines(self) -> str:
        """What people read."""
        lines = [f"{name}: {value}" for name, value in self.about.items()]
        if self.events is not None:
            lines += _events_lines(self.events)
        lines += ["", f"{'publish':<14} {'users':>9} {'events each':>12} {'users/s':>9} {'by CPU':>9}"]
        for name, rate in (("real mix", self.real_mix), ("full length", self.full_length)):
            if rate is not None:
                lines.append(
                    f"{name:<14} {rate.users:>9,} {rate.mean_events:>12.1f} {rate.users_per_s:>9,.0f} {rate.users_per_cpu_s:>9,.0f}"
                )
        if self.sizes is not None:
            lines += _sizes_lines(self.sizes)
        if self.rollback is not None:
            one = self.rollback
            lines += [
                "",
                (
                    f"rollback to the first answer by the version before: median {one.median_ms:,.0f} ms, most {one.max_ms:,.0f} ms "
                    f"of {one.times}; by the command {one.command_to_answer_median_ms:,.0f} ms and {one.command_to_answer_max_ms:,.0f} "
                    f"ms of {one.command_times}, which takes {one.command_ms:,.0f} ms itself"
                ),
            ]
        return "\n".join(lines)


def _events_lines(one: Freshness) -> list[str]:
    return [
        "",
        (
            f"{one.events:,} events, {one.events_per_s:.0f} a second, beside {one.scores_per_s:.0f} requests a second for "
            f"{one.candidates} candidates (alone: {one.capacity_rps:.0f})"
        ),
        f"{'ms':<28} {'p50':>8} {'p99':>8} {'most':>8}",
        f"{'event to score':<28} {one.event_to_score_p50_ms:>8.1f} {one.event_to_score_p99_ms:>8.1f} {one.event_to_score_max_ms:>8.1f}",
        f"{'acknowledged to score':<28} {one.acknowledged_to_score_p50_ms:>8.1f} {one.acknowledged_to_score_p99_ms:>8.1f}",
        f"{'event to acknowledged':<28} {one.acknowledged_p50_ms:>8.1f} {one.acknowledged_p99_ms:>8.1f}",
        f"{'request to scores':<28} {one.scores_p50_ms:>8.1f} {one.scores_p99_ms:>8.1f}",
        (
            f"{one.samples:,} samples, {one.never_fresh} never fresh; {one.refused} events and questions and {one.scores_refused} "
            f"requests refused, {one.cheaper_answers} answers cheaper than in full; "
            f"{one.dead_letters} dead letters, {one.left_waiting} entries left"
        ),
        (
            f"CPU: worker {one.worker_cpu_ms_per_event:.2f} ms an event; of a core: worker {one.worker_cpu_share:.0%}, service "
            f"{one.service_cpu_share:.0%}, Redis {one.redis_cpu_share:.0%}"
        ),
    ]


def _sizes_lines(sizes: Sizes) -> list[str]:
    def line(name: str, size: Size) -> str:
        return f"{name:<14} {size.formula:>9,.0f} {size.memory_usage:>13,.0f}"

    return [
        "",
        f"{'bytes a user':<14} {'formula':>9} {'MEMORY USAGE':>13}   mean of {sizes.users:,} users",
        *(line(f"state, {dtype}", size) for dtype, size in sizes.states.items()),
        line("raw history", sizes.histories),
    ]


def read_part(given: Path | None, out: Path | None, part: str, *fields: str) -> Mapping[str, Any] | None:
    """What another command found: out of the file that it wrote, else as it stands in `out` already; None: nowhere.

    The file may be all that the command printed, the JSON its last line. Raises ConfigError where it is of another one.
    """
    if given is None:
        if out is None or not out.exists():
            return None
        kept: Mapping[str, Any] | None = json.loads(out.read_bytes()).get(part)
        return kept
    try:
        content = _json_of(given.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{given} cannot be read as JSON: {error}") from error
    absent = [name for name in fields if not isinstance(content, dict) or name not in content]
    if absent:
        raise ConfigError(f"{given} lacks {', '.join(absent)}; is it of another command?")
    found: Mapping[str, Any] = content
    return found


def _json_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        *_, last = text.strip().splitlines() or [""]
        return json.loads(last)


def _total(count: int | Mapping[str, int]) -> int:
    return sum(count.values()) if isinstance(count, Mapping) else count


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return value
