"""Model bundles on disk: opened and verified by whoever runs a model, sealed by the export job."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from srp4ctr.contract.errors import BundleError, StateError
from srp4ctr.contract.manifest import (
    COLD_STATE,
    ENCODER,
    FORMAT_VERSION,
    ITEM,
    ITEMS,
    MANIFEST,
    SCORER,
    Manifest,
    sha256_file,
)
from srp4ctr.contract.state import UserState, decode_state
from srp4ctr.contract.transforms import Transforms
from srp4ctr.runtime.items import ItemTable


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
        for name, sha256 in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{folder} is not whole: {name} is missing; export it again")
            if sha256_file(path) != sha256:
                raise BundleError(f"{path} is not the file that was exported; export the bundle again")
        state_bytes = (folder / COLD_STATE).read_bytes()
        try:
            cold_state = decode_state(state_bytes, manifest.state, manifest.fingerprint_bytes)
        except StateError as error:
            raise BundleError(f"{folder / COLD_STATE}: {error}") from error
        items = ItemTable.load(folder / ITEMS)
        return cls(folder, manifest, Transforms.load(folder), items, cold_state)


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


def seal_bundle(draft: Path, bundles: Path, manifest: Manifest) -> Bundle:
    """Write the manifest into `draft`, sync it to disk, rename it to its version and open it, verified.

    A whole bundle of that version that is there already is left as it is: equal content, equal version.
    """
    (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    # What is temporary is private; a bundle is for services of any user.
    draft.chmod(0o755)
    for path in (*draft.rglob("*"), draft):
        _sync(path)
    final = bundles / manifest.version
    if final.exists():
        try:
            bundle = Bundle.open(final)
        except BundleError:
            shutil.rmtree(final)
        else:
            shutil.rmtree(draft)
            return bundle
    draft.rename(final)
    _sync(bundles)
    return Bundle.open(final)


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
