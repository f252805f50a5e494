"""`srp4ctr items`: new and changed items for a version that is in use, without a new model.

A revision of the version's item table is made by the bundle's own transforms and item graph, beside the bundle, which never
changes; services and refresh workers take it up when the version's pointer in Redis names it.
"""

import argparse
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError, Srp4ctrError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import ITEMS, REVISION, ItemsManifest
from srp4ctr.contract.transforms import ITEM, ITEM_ID
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import REVISIONS, Bundle, file_hashes, find_bundle, open_revision, seal_revision
from srp4ctr.runtime.items import Catalogue, ItemTable
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxItems
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.columns import encode_frame, id_texts
from srp4ctr_offline.data.tables import read_table

BUNDLE = "bundle"
"""Names the table that the version was exported with."""
ITEMS_AT_ONCE = 65_536


class Revision(NamedTuple):
    """A revision that was made: what its table is, and the bundle with it."""

    manifest: ItemsManifest
    bundle: Bundle


def revise(bundle: Bundle, current: ItemTable, table: Path, *, replace_all: bool = False) -> Revision:
    """Make a revision of `current`, the table in use, with the items of a Parquet file, or of those alone.

    An item that is known keeps its click rate, and a new one has that of the unknown item. Raises DataError where the file does
    not have the schema's columns.
    """
    catalogue = _catalogue(bundle, table)
    own = _catalogue_of(current)
    merged = _known_rates(catalogue, own) if replace_all else _merged(own, catalogue)
    draft = Path(tempfile.mkdtemp(prefix=".draft-items-", dir=bundle.folder.parent))
    try:
        ItemTable.build(merged, _vectors(bundle, merged)).save(draft / ITEMS)
        manifest = _manifest(bundle, merged, draft)
        return Revision(manifest, seal_revision(draft, bundle, manifest))
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def revisions(bundle: Bundle) -> list[ItemsManifest]:
    """All revisions of the bundle's item table that are here, the newest first."""
    folder = bundle.folder.parent / REVISIONS / bundle.manifest.version
    found = [ItemsManifest.model_validate_json(path.read_bytes()) for path in folder.glob(f"*/{REVISION}")]
    return sorted(found, key=lambda one: one.created_at, reverse=True)


def _catalogue(bundle: Bundle, table: Path) -> Catalogue:
    """The file's items in the bundle's codes, by sorted id, each with the unknown item's click rate."""
    schema, transforms = bundle.transforms.schema, bundle.transforms
    features = schema.item_attributes
    needed = {schema.item_id: "schema.item_id"} | {one.name: "schema.item_attributes" for one in features}
    frame = read_table(table.parent, table.name, needed).select(list(needed)).collect()
    ids = id_texts(frame[schema.item_id], ITEMS)
    order = np.argsort(ids, kind="stable")
    ids, frame = ids[order], frame[order]
    if (ids[1:] == ids[:-1]).any():
        twice = ids[1:][ids[1:] == ids[:-1]][0].decode()
        raise DataError(f"{ITEMS}: the id {twice!r} stands in more than one row; keep one of them")
    columns = {one.name: frame[one.name] for one in features}
    columns[ITEM_ID] = pl.Series([one.decode() for one in ids.tolist()], dtype=pl.String)
    codes = encode_frame(transforms, ITEM, columns, len(frame), ITEMS)
    unknown = bundle.items
    prior = np.full(len(ids) + 1, unknown.prior[0], np.float32)
    return Catalogue(ids, np.concatenate([unknown.codes[:1], codes]), prior)


def _catalogue_of(table: ItemTable) -> Catalogue:
    # The table's first row is the unknown item's.
    return Catalogue(table.index.ids[1:], table.codes, table.prior)


def _merged(old: Catalogue, new: Catalogue) -> Catalogue:
    """The old items, those that the new ones name in their place, and the others of the new ones."""
    new = _known_rates(new, old)
    kept = ~_among(old.ids, new.ids)
    ids = np.concatenate([old.ids[kept], new.ids])
    order = np.argsort(ids, kind="stable")
    codes = np.concatenate([old.codes[1:][kept], new.codes[1:]])[order]
    prior = np.concatenate([old.prior[1:][kept], new.prior[1:]])[order]
    return Catalogue(
        ids[order],
        np.concatenate([old.codes[:1], codes]),
        np.concatenate([old.prior[:1], prior]),
    )


def _known_rates(new: Catalogue, old: Catalogue) -> Catalogue:
    """The new items, with the old click rates of those that are known."""
    prior = new.prior.copy()
    known = _among(new.ids, old.ids)
    prior[1:][known] = old.prior[1:][np.searchsorted(old.ids, new.ids[known])]
    return Catalogue(new.ids, new.codes, prior)


def _among(ids: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isin(ids, others)
    return found


def _vectors(bundle: Bundle, catalogue: Catalogue) -> NDArray[np.float32]:
    items = OnnxItems(bundle)
    parts = [
        items(np.ascontiguousarray(catalogue.codes[at : at + ITEMS_AT_ONCE], np.int32))
        for at in range(0, len(catalogue.codes), ITEMS_AT_ONCE)
    ]
    # As the bundle's own are stored, so that an item that has not changed scores the same.
    return np.concatenate(parts).astype(bundle.items.vectors.dtype)


def _manifest(bundle: Bundle, merged: Catalogue, draft: Path) -> ItemsManifest:
    own = _catalogue_of(bundle.items)
    there = _among(merged.ids, own.ids)
    before = own.codes[1:][np.searchsorted(own.ids, merged.ids[there])]
    mark = bytes.fromhex(bundle.manifest.fingerprint)
    return ItemsManifest(
        version=bundle.manifest.version,
        fingerprint=bundle.manifest.fingerprint,
        revision=hashlib.sha256(mark + merged.digest()).hexdigest()[:8],
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        items=len(merged.ids),
        new=int((~there).sum()),
        changed=int((before != merged.codes[1:][there]).any(axis=1).sum()),
        removed=int((~_among(own.ids, merged.ids)).sum()),
        files=file_hashes(draft),
    )


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr items",
        description="Reads a bundle, the revisions of its item table, and a Parquet table of items with the schema's id and "
        "attributes. Writes a revision below var/bundles/.items, and the pointer in Redis by which services and refresh "
        "workers take it up within a second or two; copy the folder first where those run on other machines (--no-use).",
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
    arguments = parser.parse_args(argv)
    if sum((arguments.table is not None, arguments.use is not None, arguments.list)) != 1:
        parser.error("give a table, or --use REVISION, or --list")
    bundle = find_bundle(arguments.version, settings.bundles_dir)
    store = StateStore(connect(settings, local_redis.ensure(settings)), Keys(settings.namespace))
    used = store.items_revision(arguments.version)
    if arguments.list:
        _print(bundle, used)
    elif arguments.use is not None:
        _use(store, bundle, arguments.use)
    else:
        current = bundle.items if used is None else open_revision(bundle, used).items
        made = revise(bundle, current, arguments.table, replace_all=arguments.replace).manifest
        print(
            f"revision {made.revision} of {made.version}: {made.items:,} items, of which {made.new:,} are new, {made.changed:,} "
            f"changed and {made.removed:,} removed since the export"
        )
        if not arguments.no_use:
            _use(store, bundle, made.revision)
    return 0


def _use(store: StateStore, bundle: Bundle, revision: str) -> None:
    if revision != BUNDLE:
        known = [one.revision for one in revisions(bundle)]
        if revision not in known:
            raise Srp4ctrError(f"there is no revision {revision!r}; there are: {', '.join(known) or 'none'}")
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
