"""Items that a revision added to a version, and that the version which is to follow it would not know."""

from pathlib import Path

import numpy as np

from srp4ctr.contract.errors import BundleError, GateFailed
from srp4ctr.runtime.bundle import Bundle, find_bundle, open_revision
from srp4ctr.runtime.state_store import StateStore

NAMED = 3


def look_for_left_items(
    store: StateStore, active: str, following: Bundle, bundles: Path, *, leave: bool
) -> None:
    """Say what becomes of the revision that the active version's items have, which belongs to that version alone.

    Raises GateFailed where it added items that `following`, with the table that services will take, lacks, unless they are to
    be left. Where the revision is lost, nothing can be known of it, and that is said.
    """
    revision = store.items_revision(active)
    if revision is None:
        return
    version = following.manifest.version
    try:
        own = find_bundle(active, bundles)
        table = open_revision(own, revision).items
    except BundleError as error:
        print(f"which items of {active} are left behind is not known: {error}")
        return
    added = np.setdiff1d(table.index.ids[1:], own.items.index.ids[1:])
    left = [one.decode() for one in np.setdiff1d(added, following.items.index.ids[1:]).tolist()]
    if not left:
        print(
            f"items: the revision {revision} stays with {active}; {version} has all {len(added):,} items that it added"
        )
        return
    some = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
    what = f"{version} lacks {len(left):,} of {len(added):,} items that the revision {revision} added to {active} ({some})"
    if not leave:
        raise GateFailed(
            f"{what}; bring them with: srp4ctr items {version} TABLE, or go on without them: --leave-items"
        )
    print(f"{what}; they are scored as unknown items")
