"""`srp4ctr items`: new and changed items for a version that is in use, without a new model.

A revision of the version's item table is made by the bundle's own transforms and item graph, beside the bundle, which never
changes; services and refresh workers take it up when the version's pointer in Redis names it.
"""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError

from srp4ctr.contract.errors import BundleError, DataError
from srp4ctr.contract.id_index import Rows
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import ITEMS, REVISION, ItemsManifest
from srp4ctr.contract.transforms import ITEM, ITEM_ID
from srp4ctr.contract.vocabulary import Texts
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import (
    Bundle,
    draft_below,
    file_hashes,
    find_bundle,
    open_revision,
    revision_folder,
    revisions_folder,
    seal_revision,
)
from srp4ctr.runtime.items import Catalogue, ItemTable, Vectors, vectors_of
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxItems
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.columns import encode_frame, id_texts
from srp4ctr_offline.data.tables import read_table

BUNDLE = "bundle"
"""Names the table that the version was exported with."""
KEPT = 5
"""Revisions of a version that stay by default, beside the one in use."""


class Revision(NamedTuple):
    """A revision that was made: what its table is, and the bundle with it."""

    manifest: ItemsManifest
    bundle: Bundle


def revise(bundle: Bundle, current: ItemTable, table: Path, *, replace_all: bool = False) -> Revision:
    """Make a revision of `current`, the table in use, with the items of a Parquet file, or of those alone.

    An item keeps the click rate that the bundle has of it, whatever became of it since; one that is new to the bundle has that of
    the unknown item. Vectors of items that have not changed stay as they are, to the bit. Raises DataError where the file does
    not have the schema's columns, or no items.
    """
    given = _catalogue(bundle, table)
    merged = given if replace_all else _merged(bundle, current, given)
    with draft_below(bundle.folder.parent) as draft:
        ItemTable.build(merged, _vectors(bundle, current, merged)).save(draft / ITEMS)
        manifest = _manifest(bundle, merged, draft)
        return Revision(manifest, seal_revision(draft, bundle, manifest))


def revisions(bundle: Bundle) -> list[ItemsManifest]:
    """All revisions of the bundle's item table that are here and can be read, the newest first."""
    found = []
    folder = revisions_folder(bundle.folder.parent, bundle.manifest.version)
    for path in folder.glob(f"*/{REVISION}"):
        try:
            one = ItemsManifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            print(f"{path} is left out: {error}", file=sys.stderr)
            continue
        # A renamed folder is no revision; services refuse it, too.
        if one.revision == path.parent.name:
            found.append(one)
    return sorted(found, key=lambda one: one.created_at, reverse=True)


def remove_old(bundle: Bundle, used: str | None, keep: int) -> list[str]:
    """Remove all revisions but the newest so many and the one in use; gives their names.

    Who has one of them mapped keeps it; who is just about to open it takes what the pointer names by then.
    """
    old = [one.revision for one in revisions(bundle) if one.revision != used][keep:]
    for revision in old:
        shutil.rmtree(revision_folder(bundle.folder.parent, bundle.manifest.version, revision))
    return old


def _catalogue(bundle: Bundle, table: Path) -> Catalogue:
    """The file's items in the bundle's codes, by sorted id."""
    schema, transforms = bundle.transforms.schema, bundle.transforms
    features = schema.item_attributes
    needed = {schema.item_id: "schema.item_id"} | {one.name: "schema.item_attributes" for one in features}
    frame = read_table(table.parent, table.name, needed).select(list(needed)).collect()
    if frame.is_empty():
        raise DataError(f"{table} has no items")
    ids = id_texts(frame[schema.item_id], ITEMS)
    order = np.argsort(ids, kind="stable")
    ids, frame = ids[order], frame[order]
    if (ids[1:] == ids[:-1]).any():
        twice = ids[1:][ids[1:] == ids[:-1]][0].decode()
        raise DataError(f"{ITEMS}: the id {twice!r} stands in more than one row; keep one of them")
    columns = {one.name: frame[one.name] for one in features}
    columns[ITEM_ID] = pl.Series([one.decode() for one in ids.tolist()], dtype=pl.String)
    codes = encode_frame(transforms, ITEM, columns, len(frame), ITEMS)
    return Catalogue(ids, np.concatenate([bundle.items.codes[:1], codes]), _rates(bundle, ids))


def _merged(bundle: Bundle, current: ItemTable, given: Catalogue) -> Catalogue:
    """The current items, those that are given in their place, and the others that are given."""
    ids = np.union1d(current.index.ids[1:], given.ids)
    # A table's ids have room to spare, and its successor's must not have more every time.
    ids = ids.astype(f"S{np.char.str_len(ids).max()}")
    at = _rows(ids, given.ids)
    codes = np.where((at > 0)[:, None], given.codes[at], current.codes[_rows(ids, current.index.ids[1:])])
    return Catalogue(ids, np.concatenate([current.codes[:1], codes]), _rates(bundle, ids))


def _rates(bundle: Bundle, ids: Texts) -> NDArray[np.float32]:
    """Click rates [N + 1] of sorted ids: the bundle's own, the unknown item's before them and for what it does not know."""
    rows = _rows(ids, bundle.items.index.ids[1:])
    return np.concatenate([bundle.items.prior[:1], bundle.items.prior[rows]])


def _rows(ids: Texts, known: Texts) -> Rows:
    """Rows [N] of ids in the table of these sorted ids; 0 where it lacks one."""
    if not len(known):
        return np.zeros(len(ids), np.int32)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[place] == ids, place + 1, 0).astype(np.int32)


def _vectors(bundle: Bundle, current: ItemTable, merged: Catalogue) -> Vectors:
    """The current vectors of what has not changed, and the item graph's of what is new or has."""
    rows = _rows(merged.ids, current.index.ids[1:])
    differs = (rows == 0) | (current.codes[rows] != merged.codes[1:]).any(axis=1)
    vectors: Vectors = current.vectors[np.append(0, rows)]
    vectors[1:][differs] = vectors_of(merged.codes[1:][differs], OnnxItems(bundle), vectors.shape[1])
    return vectors


def _manifest(bundle: Bundle, merged: Catalogue, draft: Path) -> ItemsManifest:
    own = bundle.items
    rows = _rows(merged.ids, own.index.ids[1:])
    there = rows > 0
    mark = bytes.fromhex(bundle.manifest.fingerprint)
    return ItemsManifest(
        version=bundle.manifest.version,
        fingerprint=bundle.manifest.fingerprint,
        revision=hashlib.sha256(mark + merged.digest()).hexdigest()[:8],
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        items=len(merged.ids),
        new=int((~there).sum()),
        changed=int((own.codes[rows] != merged.codes[1:])[there].any(axis=1).sum()),
        removed=len(own.codes) - 1 - int(there.sum()),
        files=file_hashes(draft),
    )


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr items",
        description="Reads a bundle, the revisions of its item table, and a Parquet table of items with the schema's id and "
        "attributes. Writes a revision below var/bundles/.items, and the pointer in Redis by which services and refresh "
        "workers take it up within a second or two; copy the folder first where those run on other machines (--no-use). "
        "Removes revisions that are old.",
    )
    parser.add_argument("version", help="a version below var/bundles")
    parser.add_argument("table", type=Path, nargs="?", help="items that are new, and those that have changed")
    parser.add_argument(
        "--replace", action="store_true", help="the table is the whole catalogue: others are removed"
    )
    parser.add_argument(
        "--no-use", action="store_true", help="make the revision, and leave the pointer as it is"
    )
    parser.add_argument(
        "--use",
        metavar="REVISION",
        help=f"use a revision that is there; {BUNDLE!r} is the version's own table",
    )
    parser.add_argument("--list", action="store_true", help="show the revisions that are there")
    parser.add_argument(
        "--keep",
        type=int,
        default=KEPT,
        metavar="N",
        help="revisions that stay, beside the one in use; older ones are removed (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    if sum((arguments.table is not None, arguments.use is not None, arguments.list)) != 1:
        parser.error("give a table, or --use REVISION, or --list")
    if arguments.keep < 0:
        parser.error("--keep is a number of revisions, 0 or more")
    bundle = find_bundle(arguments.version, settings.bundles_dir)
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    used = store.items_revision(arguments.version)
    if arguments.list:
        _print(bundle, used)
    elif arguments.use is not None:
        _use(store, bundle, arguments.use)
    else:
        # A whole catalogue needs no other, which may be lost.
        current = bundle if used is None or arguments.replace else open_revision(bundle, used)
        made = revise(bundle, current.items, arguments.table, replace_all=arguments.replace).manifest
        print(
            f"revision {made.revision} of {made.version}: {made.items:,} items, of which {made.new:,} are new, {made.changed:,} "
            f"changed and {made.removed:,} removed since the export"
        )
        if not arguments.no_use:
            store.follow_items_revision(arguments.version, used, made.revision)
            print(f"in use: {made.revision}")
            for old in remove_old(bundle, made.revision, arguments.keep):
                print(f"removed: {old}")
    return 0


def _use(store: StateStore, bundle: Bundle, revision: str) -> None:
    if revision != BUNDLE:
        known = [one.revision for one in revisions(bundle)]
        if revision not in known:
            raise BundleError(f"there is no revision {revision!r}; there are: {', '.join(known) or 'none'}")
        open_revision(bundle, revision)
    store.set_items_revision(bundle.manifest.version, None if revision == BUNDLE else revision)
    print(f"in use: {revision}")


def _print(bundle: Bundle, used: str | None) -> None:
    print(f"{'revision':<10}{'items':>12}{'new':>10}{'changed':>10}{'removed':>10}  made")
    own = bundle.manifest
    mark = "  in use" if used is None else ""
    print(f"{BUNDLE:<10}{own.items:>12,}{'-':>10}{'-':>10}{'-':>10}  {own.created_at}{mark}")
    for one in revisions(bundle):
        mark = "  in use" if used == one.revision else ""
        print(
            f"{one.revision:<10}{one.items:>12,}{one.new:>10,}{one.changed:>10,}{one.removed:>10,}  {one.created_at}{mark}"
        )
