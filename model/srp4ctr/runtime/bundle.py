"""Model bundles on disk: opened and verified by whoever runs a model, sealed by the export job."""

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from pydantic import ValidationError

from srp4ctr.contract.errors import BundleError, StateError
from srp4ctr.contract.manifest import (
    COLD_STATE,
    ENCODER,
    FORMAT_VERSION,
    ITEM,
    ITEMS,
    MANIFEST,
    REVISION,
    REVISION_NAME,
    SCORER,
    ItemsManifest,
    Manifest,
    sha256_file,
)
from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import Transforms
from srp4ctr.runtime.items import ItemTable

REVISIONS = ".items"
"""Below the bundles' folder: `<version>/<revision>/` of each revision of an item table."""

_DRAFT = ".draft-"
LEFT_AFTER_S = 2 * 86_400
"""Longer than anything takes that is written in a draft."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Bundle:
    """One model version, opened: everything in it has one fingerprint."""

    folder: Path
    manifest: Manifest
    transforms: Transforms
    items: ItemTable
    cold_state: UserState

    @property
    def encoder_path(self) -> Path:
        """The graph that turns histories into user states."""
        return self.folder / ENCODER

    @property
    def scorer_path(self) -> Path:
        """The graph that turns states and candidates into probabilities."""
        return self.folder / SCORER

    @property
    def item_path(self) -> Path:
        """The graph that turns item codes into the vectors of the item table."""
        return self.folder / ITEM

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a bundle after comparing every file with the manifest; raises BundleError."""
        try:
            return cls._open(folder)
        except OSError as error:
            raise BundleError(
                f"{error.filename or folder} cannot be read ({error.strerror or error}); "
                f"let this user read all of {folder}, or copy the bundle there again"
            ) from error

    @classmethod
    def _open(cls, folder: Path) -> Self:
        try:
            written = (folder / MANIFEST).read_bytes()
            manifest = Manifest.model_validate_json(written)
        except FileNotFoundError:
            raise BundleError(f"{folder} is no bundle: it has no {MANIFEST}") from None
        except ValidationError as error:
            found = _format_of(written)
            if found != FORMAT_VERSION:
                raise BundleError(
                    f"{folder} is of format {found}, and this version reads format {FORMAT_VERSION}; export it again"
                ) from None
            raise BundleError(f"{folder / MANIFEST} is damaged: {error}") from error
        _verify(folder, manifest.files, "export the bundle again")
        state_bytes = (folder / COLD_STATE).read_bytes()
        try:
            cold_state = manifest.decode_state(state_bytes)
        except StateError as error:
            raise BundleError(f"{folder / COLD_STATE}: {error}") from error
        items = ItemTable.load(folder / ITEMS)
        return cls(folder, manifest, Transforms.load(folder), items, cold_state)


def _verify(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} is not whole: {name} is missing; {remedy}")
        if sha256_file(path) != sha256:
            raise BundleError(f"{path} is not the file that was exported; {remedy}")


def _format_of(manifest: bytes) -> object:
    try:
        content = json.loads(manifest)
    except ValueError:
        return None
    return content.get("format_version") if isinstance(content, dict) else None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the manifest, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in paths}


@contextmanager
def draft_below(bundles: Path) -> Iterator[Path]:
    """A folder to write something in that is then sealed; what has not been is removed, also of commands that were killed days ago."""
    bundles.mkdir(parents=True, exist_ok=True)
    for left in bundles.glob(f"{_DRAFT}*"):
        if time.time() - left.stat().st_mtime > LEFT_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=bundles))
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def seal_bundle(draft: Path, bundles: Path, manifest: Manifest) -> Bundle:
    """Write the manifest into `draft`, sync it to disk, rename it to its version and open it, verified.

    A whole bundle of that version that is there already is left as it is: equal content, equal version.
    """
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    return _seal(draft, bundles / manifest.version, Bundle.open)


def seal_revision(draft: Path, bundle: Bundle, manifest: ItemsManifest) -> Bundle:
    """Write the manifest into `draft`, sync it to disk, rename it to its revision and open it, verified."""
    (draft / REVISION).write_text(manifest.model_dump_json(indent=1))
    final = revision_folder(bundle.folder.parent, manifest.version, manifest.revision)
    final.parent.mkdir(parents=True, exist_ok=True)
    for folder in final.parent.parents[:2]:
        _sync(folder)
    return _seal(draft, final, lambda folder: open_revision(bundle, folder.name))


def revision_folder(bundles: Path, version: str, revision: str) -> Path:
    """Where a revision of that version's item table is."""
    return revisions_folder(bundles, version) / revision


def revisions_folder(bundles: Path, version: str) -> Path:
    """Where all revisions of that version's item table are."""
    return bundles / REVISIONS / version


def open_revision(bundle: Bundle, revision: str | None) -> Bundle:
    """The bundle with that revision of its item table, None for its own, after comparing every file; raises BundleError."""
    # It becomes a path.
    if revision is not None and not re.fullmatch(REVISION_NAME, revision):
        raise BundleError(f"{revision!r} is not the name of a revision of an item table")
    own = bundle.manifest
    folder = (
        bundle.folder if revision is None else revision_folder(bundle.folder.parent, own.version, revision)
    )
    remedy = "publish it again: srp4ctr items"
    try:
        if revision is None:
            files = {name: sha256 for name, sha256 in own.files.items() if name.startswith(f"{ITEMS}/")}
            _verify(folder, files, "export the bundle again")
        else:
            manifest = ItemsManifest.model_validate_json((folder / REVISION).read_bytes())
            if manifest.fingerprint != own.fingerprint:
                raise BundleError(f"{folder} is of another model, {manifest.fingerprint[:12]}; {remedy}")
            if (manifest.version, manifest.revision) != (own.version, revision):
                raise BundleError(f"{folder} holds {manifest.revision} of {manifest.version}; {remedy}")
            _verify(folder, manifest.files, remedy)
        return replace(bundle, items=ItemTable.load(folder / ITEMS))
    except FileNotFoundError:
        raise BundleError(f"{folder} has no revision of the item table; copy it there, or {remedy}") from None
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise BundleError(f"{folder / REVISION} is damaged: {error}; {remedy}") from error


def drop_revisions(bundles: Path, version: str) -> int:
    """Remove all revisions of that version's item table; gives how many there were."""
    folder = revisions_folder(bundles, version).resolve()
    if folder.parent != (bundles / REVISIONS).resolve() or not folder.is_dir():
        return 0
    number = sum(1 for _ in folder.glob(f"*/{REVISION}"))
    shutil.rmtree(folder)
    return number


def _seal(draft: Path, final: Path, opened: Callable[[Path], T]) -> T:
    # What is temporary is private; a bundle is for services of any user.
    draft.chmod(0o755)
    for path in (*draft.rglob("*"), draft):
        _sync(path)
    if final.exists():
        try:
            found = opened(final)
        except BundleError:
            shutil.rmtree(final)
        else:
            shutil.rmtree(draft)
            return found
    draft.rename(final)
    _sync(final.parent)
    return opened(final)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def find_bundle(version: str, bundles: Path) -> Bundle:
    """Open the bundle of that version; where there is none, BundleError says which there are."""
    folder = bundles / version
    if not folder.is_dir():
        known = ", ".join(sorted(path.parent.name for path in bundles.glob(f"*/{MANIFEST}"))) or "none"
        raise BundleError(f"{bundles} has no version {version!r}; there are: {known}")
    return Bundle.open(folder)
