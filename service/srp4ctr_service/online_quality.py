"""How good the model is on what users were shown: its answers joined with their events within an attribution window."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import structlog
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from srp4ctr.contract.errors import StoreError, StoreUnavailable
from srp4ctr.contract.events import RawEvent
from srp4ctr.contract.keys import PARTITIONS
from srp4ctr.runtime.event_store import EventStore
from srp4ctr.runtime.feedback_store import FeedbackStore, MonitoredAnswer, ShownItems
from srp4ctr.runtime.metrics import auc, expected_calibration_error, row_losses

log = structlog.get_logger()

LATE_S = 10.0
"""Beyond the window, that an event may need to arrive."""
AT_ONCE = 64
"""Partitions whose impressions are in memory together."""


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


def judge(
    shown: ShownItems,
    answer: MonitoredAnswer,
    events: Iterable[RawEvent],
    window_ms: float,
    is_click: Callable[[RawEvent], bool],
) -> list[Judged]:
    """Of each shown item that the answer has: its probability, and whether it was clicked in the window."""
    clicked = {
        event.item_id
        for event in events
        if shown.shown_ms <= event.time_ms <= shown.shown_ms + window_ms and is_click(event)
    }
    given = dict(zip(answer.item_ids, answer.scores.tolist(), strict=True))
    return [
        Judged(answer.version, given[item_id], item_id in clicked)
        for item_id in dict.fromkeys(shown.item_ids)
        if item_id in given
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
        self._unmatched = Counter(
            "srp4ctr_unmatched_impressions",
            "Impressions of monitored answers of which the answer was not found",
            registry=registry,
        )
        self._unreadable = Counter(
            "srp4ctr_unreadable_impressions",
            "Impressions that could not be judged because of what Redis holds of their users",
            registry=registry,
        )
        registry.register(self)

    def add(self, judged: Sequence[Judged]) -> None:
        """Count in what was judged."""
        self._judged.extend(judged)
        self._shown.inc(len(judged))
        self._clicked.inc(sum(one.clicked for one in judged))
        self._expected.inc(sum(one.probability for one in judged))

    def add_unmatched(self, impressions: int) -> None:
        """Count impressions that could not be judged."""
        self._unmatched.inc(impressions)

    def add_unreadable(self, impressions: int) -> None:
        """Count impressions whose own data, or whose user's, are damaged."""
        self._unreadable.inc(impressions)

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
        """Judge all impressions whose window is over, and tell how many; raises StoreUnavailable.

        Some partitions at a time, so that memory does not grow with what has waited.
        """
        return sum(
            self._judge(range(first, min(first + AT_ONCE, PARTITIONS)))
            for first in range(0, PARTITIONS, AT_ONCE)
        )

    def _judge(self, partitions: range) -> int:
        due = self._feedback.due(self._window_s + self._late_s, partitions)
        if not due:
            return 0
        events = self._events_of({one.shown.user_id for one in due if one.shown and one.answer})
        # Only now: what cannot be read because Redis went away is judged when it is back. Whoever removes it judges it.
        mine = self._feedback.remove(due)
        for one in mine:
            if one.shown is None:
                self._quality.add_unreadable(1)
            elif one.answer is None:
                self._quality.add_unmatched(1)
            elif (own := events.get(one.shown.user_id, ())) is None:
                self._quality.add_unreadable(1)
            else:
                self._quality.add(judge(one.shown, one.answer, own, 1000 * self._window_s, self._is_click))
        return len(mine)

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
