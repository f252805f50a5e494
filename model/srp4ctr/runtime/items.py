"""The catalogue as the jobs prepare it, and the item table that a bundle makes of it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.id_index import IdIndex, Rows
from srp4ctr.contract.vocabulary import Codes, Texts

Vectors = NDArray[np.float32]

ITEMS_AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items by sorted id, and row 0 for every item that is not in it; all arrays may be memory-mapped.

    `ids` [N] are their texts, `codes` [N+1, W] int32 the item codes, `prior` [N+1] float32 the smoothed click rates of the
    training rows.
    """

    ids: Texts
    codes: Codes
    prior: NDArray[np.float32]

    def digest(self) -> bytes:
        """SHA-256 of all that the catalogue holds."""
        sha = hashlib.sha256(b"\0".join(self.ids.tolist()))
        for array in (self.codes, self.prior):
            sha.update(f"{array.dtype.str} {array.shape}\n".encode())
            sha.update(array.tobytes())
        return sha.digest()

    def save(self, folder: Path) -> None:
        """Write `ids.npy`, `codes.npy` and `prior.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ids", "codes", "prior"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map what `save` wrote."""
        return cls(*_mapped(folder, "ids", "codes", "prior"))


@dataclass(frozen=True, eq=False)
class ItemTable:
    """What a service needs of every item: where its id stands, the vectors that the scorer takes, the prior.

    Rows are those of the catalogue. `vectors` [N+1, V] are what the item graph gives of its codes; they may be float16,
    and the scorer then takes them as float32.
    """

    index: IdIndex
    codes: Codes
    prior: NDArray[np.float32]
    vectors: Vectors

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """Row numbers [C] of item ids [C], none of which contains a NUL; 0 where the catalogue lacks one."""
        return self.index.rows(item_ids)

    @classmethod
    def build(cls, catalogue: Catalogue, vectors: Vectors) -> Self:
        """The table of a catalogue whose items have these vectors."""
        return cls(IdIndex.build(catalogue.ids), catalogue.codes, catalogue.prior, vectors)

    def save(self, folder: Path) -> None:
        """Write `ids.npy`, `slots.npy`, `codes.npy`, `prior.npy` and `vectors.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "ids.npy", self.index.ids)
        np.save(folder / "slots.npy", self.index.slots)
        for name in ("codes", "prior", "vectors"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Memory-map what `save` wrote."""
        ids, slots, codes, prior, vectors = _mapped(folder, "ids", "slots", "codes", "prior", "vectors")
        return cls(IdIndex(ids, slots), codes, prior, vectors)


def vectors_of(codes: Codes, graph: Callable[[Codes], Vectors], width: int) -> Vectors:
    """Vectors [N, V = width] of item codes [N, W] by the item graph, in bounded memory."""
    vectors = np.empty((len(codes), width), np.float32)
    for at in range(0, len(codes), ITEMS_AT_ONCE):
        some = np.ascontiguousarray(codes[at : at + ITEMS_AT_ONCE], np.int32)
        vectors[at : at + ITEMS_AT_ONCE] = graph(some)
    return vectors


def _mapped(folder: Path, *names: str) -> list[NDArray[Any]]:
    # Plain views of the maps: numpy's own class for them makes every look-up slower.
    return [np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names]
