"""What a run found: a table for people, one JSON line, and what of it should not be."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from srp4ctr_loadtest.chaos.aftermath import Aftermath
from srp4ctr_loadtest.chaos.oracle import Oracle
from srp4ctr_loadtest.chaos.traffic import Observation

REASONS = 10
LEAST_IN_FULL = 0.5
"""Of all answers: whoever answers less than that with the model and what Redis has survives, and does not serve."""


@dataclass
class Answers:
    """Answers about users, judged; those about users who lost events, of whom nothing can be said, are not checked."""

    answers: int = 0
    checked: int = 0
    in_full: int = 0
    """By the model, and with nothing that they say is missing."""
    wrong: int = 0
    mixed: int = 0
    late: int = 0
    """Right but for events that were acknowledged just before, at most so many milliseconds:"""
    latest_ms: float = 0.0
    cautious: int = 0
    """Right but for saying that they lack events that they have."""
    left_ms: float = 0.0
    """For how long, at most, a version had been left that still gave one of them."""
    states: Counter[str] = field(default_factory=Counter)
    """What they say of the user's state, or that they are of the prior tier."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why which of them are not right."""

    @classmethod
    def judged(cls, seen: Iterable[Observation], oracle: Oracle, without: Collection[str]) -> "Answers":
        """All answers but those about some users."""
        found = cls()
        for one in seen:
            found.answers += 1
            found.in_full += one.answer["tier"] == "full" and not one.answer["degraded"]
            said = one.answer["user_state"]["status"]
            found.states[said if one.answer["tier"] == "full" else one.answer["tier"]] += 1
            if one.acts.user_id in without:
                continue
            found.checked += 1
            outcome, reason, late_s = oracle.judge(one)
            found.wrong += outcome == "wrong"
            found.mixed += outcome == "mixed"
            found.late += outcome == "late"
            found.cautious += outcome == "cautious"
            found.latest_ms = max(found.latest_ms, round(1000 * late_s, 1))
            found.left_ms = max(found.left_ms, round(1000 * (one.left_s or 0.0), 1))
            if outcome in ("wrong", "mixed"):
                found.reasons[f"{outcome}, {said}: {reason}"] += 1
        return found


@dataclass(frozen=True)
class Report:
    """Everything that a run has counted."""

    settings: Mapping[str, Any]
    kills: Mapping[str, int]
    answers: Answers
    not_recovered: int
    """Answers when all was calm again that were not all that they can be."""
    aftermath: Aftermath
    events: Mapping[str, int]
    """`sent` once or more often, and `acknowledged`; of these `late`, those of the past, `resent`, those that were told once more,
    and `too_old`, those that came after a full history of newer ones."""
    wrong_outcomes: Mapping[str, int]
    """What POST /events said of events of which something else must have become."""
    forgotten: int
    """How often a user was."""
    jobs: Mapping[str, int]
    """`completed`; `reruns`: those that were cut off, and `reruns_completed`."""
    job_failures: Mapping[str, int]
    ended: Mapping[str, int]
    """Processes that ended by themselves, by name and exit code."""
    errors_by_type: Mapping[str, int]
    """Requests without an answer."""
    seconds: float

    def lines(self) -> Iterator[str]:
        """The table, and the JSON line last."""
        after = asdict(self.aftermath) | {"lost_of": len(self.aftermath.lost_of)}
        answers = asdict(self.answers)
        answers.pop("reasons")
        answers.pop("states")
        for title, counts in {
            "kills": self.kills,
            "answers": answers,
            "  by user state": self.answers.states,
            "requests without an answer": self.errors_by_type,
            "events": self.events,
            "  wrong outcomes": self.wrong_outcomes,
            "users": {"forgotten": self.forgotten},
            "afterwards": after,
            "jobs": self.jobs,
            "  failed, not killed": self.job_failures,
            "processes that ended by themselves": self.ended,
        }.items():
            yield f"{title:<36}" + (", ".join(f"{name} {count}" for name, count in counts.items()) or "none")
        for reason, count in self.answers.reasons.most_common(REASONS):
            yield f"NOT RIGHT, {count} x: {reason}"
        for wrong in self.failures():
            yield f"FAILED: {wrong}"
        yield json.dumps(self._summary(answers, after))

    def failures(self) -> list[str]:
        """What should not be; empty where all is well."""
        bad = {"wrong answers": self.answers.wrong, "answers of mixed versions": self.answers.mixed}
        bad |= {
            f"afterwards {name}": count for name, count in asdict(self.aftermath).items() if name != "lost_of"
        }
        bad["answers that were not whole when all was calm again"] = self.not_recovered
        if self.answers.in_full < LEAST_IN_FULL * self.answers.answers:
            bad["answers that were not in full, which is most"] = self.answers.answers - self.answers.in_full
        bad["jobs that never completed"] = self.jobs["reruns"] - self.jobs["reruns_completed"]
        bad["jobs that failed without being killed"] = sum(self.job_failures.values())
        bad["processes that ended by themselves"] = sum(self.ended.values())
        bad["events with a wrong outcome"] = sum(self.wrong_outcomes.values())
        bad["events that were never acknowledged"] = self.events["sent"] - self.events["acknowledged"]
        bad["answers of status 500"] = sum(
            count for kind, count in self.errors_by_type.items() if kind.startswith("500")
        )
        return [f"{count} {what}" for what, count in bad.items() if count]

    def _summary(self, answers: Mapping[str, Any], after: Mapping[str, int]) -> dict[str, Any]:
        return {
            "benchmark": "chaos",
            **self.settings,
            "kills": self.kills,
            **answers,
            **{f"events_{name}": count for name, count in self.events.items()},
            "wrong_outcomes": self.wrong_outcomes,
            "forgotten": self.forgotten,
            "not_recovered": self.not_recovered,
            **after,
            "jobs_completed": self.jobs["completed"],
            "reruns": self.jobs["reruns"],
            "reruns_completed": self.jobs["reruns_completed"],
            "job_failures": self.job_failures,
            "ended": self.ended,
            "user_states": self.answers.states,
            "errors_by_type": self.errors_by_type,
            "seconds": round(self.seconds, 1),
        }
