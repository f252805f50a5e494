"""Which version may have answered when: from when it may become active until services must have left it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

FOLLOW_S = 5.0
"""In which services must have followed the pointer: they look at it twice a second, and read and verify the version's bundle, on
a machine where everything else is being started, too. They cannot while Redis is away."""


@dataclass
class Absence:
    """When a process was killed, and when it was started again, by the monotonic clock."""

    gone_at: float
    back_at: float = inf


LOADING_S = 10.0
"""Longest time that Redis takes to load its data once it has been started."""


@dataclass
class _Turn:
    version: str
    began: float
    left_at: float = inf


class Turns:
    """What switches of the active version there were, by the monotonic clock; `absences` are Redis's, oldest first."""

    def __init__(self, absences: Sequence[Absence]) -> None:
        self._absences = absences
        self._turns: list[_Turn] = []

    def begin(self, version: str, now: float) -> None:
        """A run begins that switches to the version at some moment."""
        if not any(one.version == version and one.left_at == inf for one in self._turns):
            self._turns.append(_Turn(version, now))

    def complete(self, version: str, now: float) -> None:
        """The version is active by now, and no other."""
        for one in self._turns:
            if one.version != version:
                one.left_at = min(one.left_at, now)

    def left_s(self, version: str, asked_at: float, answered_at: float) -> float | None:
        """For how many seconds services could have known, when they were asked, that the version is active no more.

        These are without a break of Redis; 0 where it may still be active. None where it cannot have been by the answer.
        """
        turns = [one for one in self._turns if one.version == version and one.began <= answered_at]
        return min((self._longest_s(one.left_at, asked_at) for one in turns), default=None)

    def redis_was_away(self, since: float, until: float) -> bool:
        """Whether Redis was, or was loading its data, at some moment between two times."""
        return any(one.gone_at < until and since < one.back_at + LOADING_S for one in self._absences)

    def _longest_s(self, since: float, until: float) -> float:
        """Of the stretches between two times in which Redis was there."""
        longest, begin = 0.0, since
        for one in self._absences:
            if one.back_at > since:
                longest = max(longest, min(one.gone_at, until) - begin)
                begin = one.back_at
        return max(longest, until - begin)
