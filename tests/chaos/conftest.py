"""What users of these tests do."""

import pytest

from srp4ctr.contract.events import RawEvent
from srp4ctr_loadtest.chaos.acts import Acts


class Doings:
    """Five events before the snapshot and three after it, of items of the small run."""

    user = "someone"
    keep = 128
    """Events of a history."""

    def __init__(self, run):
        self.before = [
            RawEvent(1_700_000_000_000 + number, "", run.item_ids[-number], {"event_type": "click"})
            for number in range(1, 6)
        ]
        kinds = (("buy", 200.0), ("click", 1.0), ("cart", 40.0))
        self.after = [
            RawEvent(
                1_800_000_000_000 + number,
                f"e-{number}",
                run.item_ids[number],
                {"event_type": kind, "dwell_seconds": seconds},
            )
            for number, (kind, seconds) in enumerate(kinds)
        ]

    def acts(self, user_id=user, sent_at=0.0, acknowledged_at=0.0):
        """A user after all of them, the later three one by one."""
        acts = Acts(user_id, self.keep, self.before)
        for event in self.after:
            acts.record([event], sent_at)
            acts.acknowledge(acknowledged_at)
        return acts


@pytest.fixture(scope="session")
def doings(tiny):
    """What a user does."""
    return Doings(tiny)
