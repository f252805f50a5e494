"""Which revision of a version's items may have been in use when, and what is in it."""

from collections.abc import Mapping, Sequence
from math import inf

from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import ItemTable
from srp4ctr_loadtest.chaos.turns import Absence, Turns

OWN = ""
"""Names the bundle's own table among those that revisions are made of."""


class Catalogues:
    """The item tables of all versions. A revision is known by the table that it was made of until its name is."""

    def __init__(self, bundles: Mapping[str, Bundle], absences: Sequence[Absence]) -> None:
        """In the beginning each version has its bundle's own items; `absences` are Redis's."""
        self.tables: dict[tuple[str, str | None], ItemTable] = {}
        self._made_of: dict[tuple[str, str | None], str] = {}
        self._turns = {version: Turns(absences) for version in bundles}
        for version, bundle in bundles.items():
            self.begin(version, OWN, -inf)
            self.complete(version, OWN, -inf, None, bundle.items)

    def begin(self, version: str, made_of: str, now: float) -> None:
        """A run begins that has services take what is made of that table."""
        self._turns[version].begin(made_of, now)

    def complete(
        self, version: str, made_of: str, now: float, revision: str | None, items: ItemTable
    ) -> None:
        """They have by now; and so it is named, and these are its items."""
        self._turns[version].complete(made_of, now)
        self._made_of[version, revision] = made_of
        self.tables[version, revision] = items

    def left_s(self, version: str, revision: str | None, asked_at: float, answered_at: float) -> float | None:
        """As of Turns: seconds in which services could have known that it is no longer in use; None where it cannot have been."""
        made_of = self._made_of.get((version, revision))
        return None if made_of is None else self._turns[version].left_s(made_of, asked_at, answered_at)
