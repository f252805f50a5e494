"""The bytes of a user state; docs/contract.md has the specification, tests/data its golden bytes."""

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from srp4ctr.contract.errors import StateCorrupt, StateForeign
from srp4ctr.contract.schema import Strict

MAGIC = b"SRPU"
LAYOUT_VERSION = 2
FINGERPRINT_BYTES = 16
NO_TIME = -1
START_POSITIONS = 1
"""Positions of a state with a dimension `"S"` that are no event's: the start token's, which comes last."""

_HEADER = struct.Struct("<4sHH16sqqqIIII")
SEQUENCE_AT = 40
"""Offset of the header's sequence, a little-endian int64."""
HEADER_BYTES = _HEADER.size
_ALIGNMENT = 8
# The checksum is the header's last field and covers everything but itself.
_CHECKSUM_AT = HEADER_BYTES - 4
# The largest value of a quantised row; -128 is not used, so that a number and its negative are stored alike.
_INT8_MAX = 127

DType = Literal["float32", "float16", "int32", "uint16", "uint8", "int8"]
_CODES: tuple[DType, ...] = ("uint8", "uint16", "int32")


class ArraySpec(Strict):
    """Name, dtype and shape of one array; the dimension `"S"` is the number of positions that a state keeps.

    `int8` is real numbers, each row (last axis) of them quantised with a scale of its own; see `stored`.
    """

    name: str
    dtype: DType
    shape: tuple[int | Literal["S"], ...]

    @property
    def holds_codes(self) -> bool:
        """Whether these are codes, which graphs take as int32, or real numbers, which they take as float32."""
        return self.dtype in _CODES

    def concrete(self, length: int) -> tuple[int, ...]:
        """The shape of an array in a state that keeps `length` events."""
        return tuple(length if dim == "S" else dim for dim in self.shape)

    @model_validator(mode="after")
    def _int8_has_rows(self) -> Self:
        if self.dtype == "int8" and not self.shape:
            raise ValueError(f"the state array {self.name!r} is int8 and has no dimension to quantise along")
        return self


def code_dtype(codes: int) -> DType:
    """The smallest dtype that keeps codes below `codes` as they are."""
    return next(dtype for dtype in _CODES if codes - 1 <= np.iinfo(dtype).max)


class Encoding(NamedTuple):
    """One user's arrays, and the positions that those with a dimension `"S"` keep (0 where none has one)."""

    arrays: dict[str, NDArray[np.generic]]
    length: int


class Place(NamedTuple):
    """Where numbers are in the bytes of a state."""

    offset: int
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    size: int


class StateLayout(Strict):
    """What a bundle's user states consist of; the state's kind is the network's business alone."""

    kind: Literal["tokens", "sequence"]
    arrays: tuple[ArraySpec, ...] = Field(min_length=1)

    @cached_property
    def _places(self) -> dict[int, tuple[tuple[str, tuple["Place", ...]], ...]]:
        """By length: working it out takes longer than decoding a state. Not a private attribute: those are compared."""
        return {}

    def payload_bytes(self, length: int = 0) -> int:
        """Bytes of the arrays of a state that keeps `length` positions, alignment included."""
        last = self.places(length)[-1][1][-1]
        return last.offset + _aligned(last.size * last.dtype.itemsize) - HEADER_BYTES

    def places(self, length: int) -> tuple[tuple[str, tuple["Place", ...]], ...]:
        """Each array's name and where its parts are in the bytes of a state that keeps `length` positions."""
        if length not in self._places:
            offset, found = HEADER_BYTES, []
            for spec in self.arrays:
                parts = []
                for dtype, shape in _parts(spec, length):
                    parts.append(Place(offset, dtype, shape, math.prod(shape)))
                    offset += _aligned(math.prod(shape) * dtype.itemsize)
                found.append((spec.name, tuple(parts)))
            self._places[length] = tuple(found)
        return self._places[length]

    def of_user(self, batch: Mapping[str, NDArray[np.generic]], place: int, events: int) -> "Encoding":
        """The arrays of one user of a batch [U, ...], without the padding on the left of the user's own positions.

        `events` are those of the user's history; a state keeps the start token beside them.
        """
        arrays, length = {}, 0
        for spec in self.arrays:
            array = batch[spec.name][place]
            if spec.shape[0] == "S":
                length = events + START_POSITIONS
                array = array[len(array) - length :]
            arrays[spec.name] = array
        return Encoding(arrays, length)


@dataclass(frozen=True)
class UserState:
    """One user's cached encoding: a value, never changed.

    `arrays` follow the layout of the bundle; `events` counts the history's events that were encoded, and `length`
    is the arrays' dimension `"S"` (0 where no array has one). Times are Unix milliseconds. `sequence` is how far the
    user's acknowledged events had been counted when the history was read; 0 where none had been.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    events: int
    created_at_ms: int
    last_event_at_ms: int | None = None
    length: int = 0
    sequence: int = 0


def encode_state(state: UserState, layout: StateLayout, fingerprint: bytes) -> bytes:
    """The state's bytes; arrays are cast or quantised to the layout's dtypes and must have its shapes."""
    body = bytearray(layout.payload_bytes(state.length))
    for spec, (_, places) in zip(layout.arrays, layout.places(state.length), strict=True):
        array = state.arrays[spec.name]
        assert array.shape == spec.concrete(state.length), (spec, array.shape, state.length)
        for part, place in zip(_take_apart(array, spec.dtype), places, strict=True):
            at = place.offset - HEADER_BYTES
            body[at : at + part.nbytes] = part.tobytes()
    last = NO_TIME if state.last_event_at_ms is None else state.last_event_at_ms
    head = _HEADER.pack(
        MAGIC,
        LAYOUT_VERSION,
        HEADER_BYTES,
        fingerprint[:FINGERPRINT_BYTES],
        state.created_at_ms,
        last,
        state.sequence,
        state.events,
        state.length,
        len(body),
        0,
    )[:_CHECKSUM_AT]
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + bytes(body)


def decode_state(data: bytes, layout: StateLayout, fingerprint: bytes) -> UserState:
    """The state in `data`; its arrays are read-only: views into it, or float32 where they are stored in int8.

    Raises StateCorrupt where the bytes are not a whole state, and StateForeign where another model wrote them.
    """
    if len(data) < HEADER_BYTES:
        raise StateCorrupt(f"{len(data)} bytes are fewer than a header of {HEADER_BYTES}")
    magic, version, header, by, created, last, sequence, events, length, payload, checksum = (
        _HEADER.unpack_from(data)
    )
    if magic != MAGIC or version != LAYOUT_VERSION or header != HEADER_BYTES:
        raise StateCorrupt(f"not a user state of layout {LAYOUT_VERSION}: it begins with {data[:8]!r}")
    if len(data) != HEADER_BYTES + payload:
        raise StateCorrupt(f"{len(data)} bytes, and the header announces {HEADER_BYTES + payload}")
    view = memoryview(data)
    if zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[:_CHECKSUM_AT])) != checksum:
        raise StateCorrupt("the checksum does not hold")
    if by != fingerprint[:FINGERPRINT_BYTES]:
        raise StateForeign(f"written by the model {by.hex()}, not by {fingerprint[:FINGERPRINT_BYTES].hex()}")
    if payload != layout.payload_bytes(length):
        raise StateCorrupt(f"{payload} bytes of arrays, and the layout has {layout.payload_bytes(length)}")
    arrays: dict[str, NDArray[np.generic]] = {}
    for name, places in layout.places(length):
        parts = [
            np.frombuffer(data, place.dtype, place.size, place.offset).reshape(place.shape)
            for place in places
        ]
        arrays[name] = array = _put_together(parts)
        array.flags.writeable = False
    return UserState(arrays, events, created, None if last == NO_TIME else last, length, sequence)


def stored(array: NDArray[np.generic], dtype: DType) -> NDArray[np.generic]:
    """What a state gives back of an array that it keeps in `dtype`; any number of leading dimensions.

    `int8` becomes float32: each row (last axis) is a multiple of the smallest float16 scale with 127 * scale >= max|row|,
    so that no number moves by more than half a scale and a row of zeros stays one. Other dtypes are casts.
    """
    return _put_together(_take_apart(array, dtype))


def _parts(spec: ArraySpec, length: int) -> list[tuple[np.dtype[np.generic], tuple[int, ...]]]:
    """Dtype and shape of what `_take_apart` makes of an array."""
    shape = spec.concrete(length)
    parts: list[tuple[np.dtype[np.generic], tuple[int, ...]]] = [(_little(spec.dtype), shape)]
    if spec.dtype == "int8":
        parts.append((_little("float16"), shape[:-1]))
    return parts


def _take_apart(array: NDArray[np.generic], dtype: DType) -> list[NDArray[np.generic]]:
    """The array as it is stored: one part, or int8 values [..., D] and their rows' scales [...]."""
    if dtype in _CODES:
        return [array.astype(_little(dtype))]
    # Too large for the dtype is as wrong as infinite, and noticed below.
    with np.errstate(over="ignore"):
        if dtype != "int8":
            cast = array.astype(_little(dtype))
            assert np.isfinite(cast).all(), "a state's numbers are finite"
            return [cast]
        # In float64, every number comes to lie on the nearest of its row's steps.
        rows = array.astype(np.float64)
        least = np.abs(rows).max(axis=-1, initial=0.0) / _INT8_MAX
        nearest = least.astype(np.float16)
        scales = np.where(nearest < least, np.nextafter(nearest, np.float16(np.inf)), nearest)
    assert np.isfinite(scales).all(), "a state's numbers are finite"
    steps = np.where(scales == 0, 1, scales).astype(np.float64)
    return [np.rint(rows / steps[..., None]).astype(np.int8), scales.astype(_little("float16"))]


def _put_together(parts: list[NDArray[np.generic]]) -> NDArray[np.generic]:
    if len(parts) == 1:
        return parts[0]
    values, scales = parts
    # Exact: 7 bits times 11.
    return values.astype(np.float32) * scales[..., None].astype(np.float32)


@cache
def _little(dtype: DType) -> np.dtype[np.generic]:
    return np.dtype(dtype).newbyteorder("<")


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
