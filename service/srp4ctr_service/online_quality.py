"""How good the model is on what users were shown: its answers joined with their events within an attribution window."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from srp4ctr.contract.errors import StoreError, StoreUnavailable
from srp4ctr.contract.events import RawEvent
from srp4ctr.contract.keys import PARTITIONS
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.feedback_store import Due, FeedbackStore, MonitoredAnswer, ShownItems
from srp4ctr.runtime.metrics import auc, expected_calibration_error, row_losses

log = structlog.get_logger()

LATE_S = 10.0
"""Beyond the window, that an event may need to arrive."""
CLOCKS_APART_S = 60
"""How long before its answer, by the two clocks, something may have been shown."""
AT_ONCE = 64
"""Partitions of which some impressions each are in memory together."""
Unmatched = Literal["no_answer", "before_answer"]
Unjudged = Unmatched | Literal["unreadable"]


class Judged(NamedTuple):
    """One item that a user was shown: the probability that it was given, and whether the user clicked."""

    version: str
    probability: float
    clicked: bool


class Clicks:
    """Tells which events are clicks."""

    def __init__(self, rule: str) -> None:
        """`rule` is empty, for all, or `feature=value,value`."""
        self._feature, _, values = rule.partition("=")
        self._values = {_plain(value) for value in values.split(",")}

    def __call__(self, event: RawEvent) -> bool:
        """Whether the event is a click."""
        if not self._feature:
            return True
        value = event.features.get(self._feature)
        return any(_plain(one) in self._values for one in (value if isinstance(value, list) else [value]))


def _plain(value: object) -> float | str:
    """A number for what is one, however it is written: 5, 5.0 and "5" are the same click."""
    try:
        return float(str(value))
    except ValueError:
        return str(value)


def places_of(shown: ShownItems, answer: MonitoredAnswer) -> list[int]:
    """Places among the answer's candidates of the items that were shown; what is none of them is left out."""
    place_of = {item_id: place for place, item_id in enumerate(answer.item_ids)}
    return [place_of[item_id] for item_id in shown.item_ids if item_id in place_of]


def judge(
    shown: ShownItems,
    answer: MonitoredAnswer,
    places: Iterable[int],
    events: Iterable[RawEvent],
    window_ms: float,
    is_click: Callable[[RawEvent], bool],
) -> list[Judged]:
    """Of the answer's candidates at these places: its probability, and whether it was clicked in the window after it was shown."""
    clicked = {
        event.item_id
        for event in events
        if shown.shown_ms <= event.time_ms <= shown.shown_ms + window_ms and is_click(event)
    }
    return [
        Judged(answer.version, float(answer.scores[place]), answer.item_ids[place] in clicked)
        for place in places
    ]


class OnlineQuality(Collector):
    """Counts of what was shown and clicked, and by version the quality on the newest shown items."""

    def __init__(self, newest: int, registry: CollectorRegistry) -> None:
        """Keeps so many shown items."""
        self._judged: deque[Judged] = deque(maxlen=newest)
        self._shown = Counter("srp4ctr_shown_items", "Shown items of monitored answers", registry=registry)
        self._clicked = Counter("srp4ctr_clicked_items", "Those of them that were clicked", registry=registry)
        self._expected = Counter(
            "srp4ctr_expected_clicks",
            "What the model expected: the sum of their probabilities",
            registry=registry,
        )
        self._duplicates = Counter(
            "srp4ctr_duplicate_items",
            "Shown items of monitored answers that had been shown of the same answer before",
            registry=registry,
        )
        unmatched = Counter(
            "srp4ctr_unmatched_impressions",
            "Impressions of monitored answers of which the answer was not found, or is younger",
            ["reason"],
            registry=registry,
        )
        self._unmatched = {reason: unmatched.labels(reason) for reason in get_args(Unmatched)}
        self._unreadable = Counter(
            "srp4ctr_unreadable_impressions",
            "Impressions that could not be judged because they, their answers or their users' histories are damaged",
            registry=registry,
        )
        registry.register(self)

    def add(self, judged: Sequence[Judged], duplicates: int) -> None:
        """Count in what was judged, and how many items beside it had been judged before."""
        self._duplicates.inc(duplicates)
        self._judged.extend(judged)
        self._shown.inc(len(judged))
        self._clicked.inc(sum(one.clicked for one in judged))
        self._expected.inc(sum(one.probability for one in judged))

    def add_unjudged(self, why: Unjudged) -> None:
        """Count an impression that could not be judged."""
        (self._unreadable if why == "unreadable" else self._unmatched[why]).inc()

    def describe(self) -> Iterator[Metric]:
        """The metrics' names."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        """The metrics of every version that is among the newest shown items; those that its items do not define are absent."""
        families = self._families()
        by_version: dict[str, list[Judged]] = {}
        for one in tuple(self._judged):
            by_version.setdefault(one.version, []).append(one)
        for version, judged in by_version.items():
            for name, value in _measure(judged).items():
                if np.isfinite(value):
                    families[name].add_metric([version], value)
        yield from families.values()

    @staticmethod
    def _families() -> Mapping[str, GaugeMetricFamily]:
        return {
            name: GaugeMetricFamily(f"srp4ctr_online_{name}", text, labels=["version"])
            for name, text in (
                ("items", "Newest shown items, which the other metrics of this name are of"),
                ("click_rate", "Share of them that was clicked"),
                ("expected_click_rate", "Mean of their probabilities"),
                ("auc", "AUC of the probabilities"),
                ("logloss", "Mean negative log-likelihood of the clicks"),
                ("ece", "Expected calibration error, 15 bins"),
            )
        }


def _measure(judged: Sequence[Judged]) -> dict[str, float]:
    probability = np.array([one.probability for one in judged])
    label = np.array([one.clicked for one in judged], np.int8)
    return {
        "items": len(judged),
        "click_rate": float(label.mean()),
        "expected_click_rate": float(probability.mean()),
        "auc": auc(label, probability),
        "logloss": float(row_losses(label, probability).mean()),
        "ece": expected_calibration_error(label, probability),
    }


class Monitor:
    """Joins answers, impressions and events, and counts what comes of it."""

    def __init__(
        self,
        feedback: FeedbackStore,
        events: EventStore,
        window_s: float,
        is_click: Callable[[RawEvent], bool],
        quality: OnlineQuality,
        late_s: float = LATE_S,
    ) -> None:
        self._feedback = feedback
        self._events = events
        self._window_s = window_s
        self._late_s = late_s
        self._is_click = is_click
        self._quality = quality

    def step(self) -> int:
        """Judge all impressions whose window is over, and tell how many; raises StoreError.

        Some of some partitions at a time, so that memory does not grow with what has waited.
        """
        until_ms = self._feedback.reported_before(self._window_s + self._late_s)
        judged = 0
        for first in range(0, PARTITIONS, AT_ONCE):
            partitions = range(first, min(first + AT_ONCE, PARTITIONS))
            while due := self._feedback.due(until_ms, partitions):
                judged += self._judge(due)
        return judged

    def _judge(self, due: Sequence[Due]) -> int:
        events = self._events_of({one.shown.user_id for one in due if one.shown and one.answer})
        found = {(one.partition, one.shown_id): _match(one, events) for one in due}
        # Only now: what cannot be read because Redis went away is judged when it is back. Whoever takes it judges it.
        taken = self._feedback.take(
            [
                (one, () if isinstance(match, str) else match.places)
                for one, match in zip(due, found.values(), strict=True)
            ]
        )
        for one, places in taken:
            match = found[one.partition, one.shown_id]
            if isinstance(match, str):
                self._quality.add_unjudged(match)
            elif places is None:
                self._quality.add_unjudged("no_answer")
            else:
                judged = judge(
                    match.shown, match.answer, places, match.events, 1000 * self._window_s, self._is_click
                )
                self._quality.add(judged, len(match.places) - len(places))
        return len(taken)

    def _events_of(self, users: Collection[str]) -> dict[str, Sequence[RawEvent] | None]:
        """Events of the users who have some, None where they cannot be read."""
        try:
            return {one.user_id: one.events for one in self._events.histories(sorted(users), ())}
        except StoreUnavailable:
            raise
        except StoreError as error:
            if len(users) == 1:
                log.warning("history_unreadable", reason=str(error))
                return dict.fromkeys(users)
            return {user: found for one in users for user, found in self._events_of({one}).items()}


class _Match(NamedTuple):
    """An impression with its answer, the places of what was shown among the answer's candidates, and the user's events."""

    shown: ShownItems
    answer: MonitoredAnswer
    places: Sequence[int]
    events: Sequence[RawEvent]


def _match(due: Due, events: Mapping[str, Sequence[RawEvent] | None]) -> _Match | Unjudged:
    shown, answer = due.shown, due.answer
    if shown is None:
        return "unreadable"
    if due.answer_id is None:
        return "no_answer"
    if answer is None:
        log.warning("answer_unreadable", partition=due.partition, entry=due.answer_id.decode())
        return "unreadable"
    if shown.shown_ms < answer.answered_ms - 1000 * CLOCKS_APART_S:
        return "before_answer"
    own = events.get(shown.user_id, ())
    return "unreadable" if own is None else _Match(shown, answer, places_of(shown, answer), own)
