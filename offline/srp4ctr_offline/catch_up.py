"""Users whose states of a version lack events: they are encoded anew when services are about to switch to it, or just have."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from srp4ctr.contract.errors import StoreError, StoreUnavailable
from srp4ctr.runtime.bundle import Bundle, open_revision
from srp4ctr.runtime.event_store import EventStore, History
from srp4ctr.runtime.history_encoder import HistoryEncoder, write_states
from srp4ctr.runtime.state_store import StateStore


@dataclass(frozen=True)
class CaughtUp:
    """How many users were behind, and how many of their states were written."""

    behind: int
    written: int


def with_items_in_use(bundle: Bundle, states: StateStore) -> Bundle:
    """The bundle with the revision of its item table that services take."""
    revision = states.items_revision(bundle.manifest.version)
    return bundle if revision is None else open_revision(bundle, revision)


def catch_up(
    bundle: Bundle,
    events: EventStore,
    states: StateStore,
    threads: int = 1,
    renew: Callable[[], None] = lambda: None,
) -> CaughtUp:
    """Bring the states of the bundle's version up to the users' acknowledged events.

    The version must be active or have been announced before: workers keep it fresh from then on, and whoever acted earlier is
    found here. `renew` is called again and again meanwhile, to say so anew.
    """
    version, encoder = bundle.manifest.version, None
    behind = written = 0
    with tqdm(desc="catching up", unit="user") as bar:
        for users in events.users_behind(version):
            renew()
            if not users:
                continue
            encoder = encoder or HistoryEncoder(bundle, threads)
            for histories in _readable(events, users, version):
                written += write_states(encoder, histories, states, events)
                behind += len(histories)
                bar.update(len(histories))
    return CaughtUp(behind, written)


def _readable(events: EventStore, users: Sequence[str], version: str) -> Iterator[list[History]]:
    """Their histories, without those that cannot be read: these users stay behind, and say so in their answers."""
    try:
        yield events.histories(users, [version])
    except StoreUnavailable:
        raise
    except StoreError:
        for user in users:
            try:
                yield events.histories([user], [version])
            except StoreUnavailable:
                raise
            except StoreError as error:
                print(f"a user is left behind: {error}")
