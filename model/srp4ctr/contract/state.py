"""The bytes of a user state; docs/contract.md has the specification, tests/data its golden bytes."""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from srp4ctr.contract.errors import StateCorrupt, StateForeign
from srp4ctr.contract.schema import Strict

MAGIC = b"SRPU"
LAYOUT_VERSION = 1
FINGERPRINT_BYTES = 16
NO_TIME = -1

_HEADER = struct.Struct("<4sHH16sqqIIII")
HEADER_BYTES = _HEADER.size
_ALIGNMENT = 8
# The checksum is the header's last field and covers everything but itself.
_CHECKSUM_AT = HEADER_BYTES - 4

DType = Literal["float32", "float16", "int32", "int8"]


class ArraySpec(Strict):
    """Name, dtype and shape of one array; the dimension `"L"` is the number of events that a state keeps."""

    name: str
    dtype: DType
    shape: tuple[int | Literal["L"], ...]

    def concrete(self, length: int) -> tuple[int, ...]:
        """The shape of an array in a state that keeps `length` events."""
        return tuple(length if dim == "L" else dim for dim in self.shape)


class StateLayout(Strict):
    """What a bundle's user states consist of; the state's kind is the network's business alone."""

    kind: Literal["tokens", "sequence"]
    arrays: tuple[ArraySpec, ...] = Field(min_length=1)

    def payload_bytes(self, length: int = 0) -> int:
        """Bytes of the arrays of a state that keeps `length` events, alignment included."""
        return sum(_aligned(_array_bytes(spec, length)) for spec in self.arrays)


@dataclass(frozen=True)
class UserState:
    """One user's cached encoding: a value, never changed.

    `arrays` follow the layout of the bundle; `events` counts the history's events that were encoded, and `length`
    is the arrays' dimension `"L"` (0 where no array has one). Times are Unix milliseconds.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    events: int
    created_at_ms: int
    last_event_at_ms: int | None = None
    length: int = 0


def encode_state(state: UserState, layout: StateLayout, fingerprint: bytes) -> bytes:
    """The state's bytes; arrays are cast to the layout's dtypes and must have its shapes."""
    body = bytearray(layout.payload_bytes(state.length))
    offset = 0
    for spec in layout.arrays:
        array = np.ascontiguousarray(state.arrays[spec.name], np.dtype(spec.dtype).newbyteorder("<"))
        assert array.shape == spec.concrete(state.length), (spec, array.shape, state.length)
        body[offset : offset + array.nbytes] = array.tobytes()
        offset += _aligned(array.nbytes)
    last = NO_TIME if state.last_event_at_ms is None else state.last_event_at_ms
    head = _HEADER.pack(
        MAGIC,
        LAYOUT_VERSION,
        HEADER_BYTES,
        fingerprint[:FINGERPRINT_BYTES],
        state.created_at_ms,
        last,
        state.events,
        state.length,
        len(body),
        0,
    )[:_CHECKSUM_AT]
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + bytes(body)


def decode_state(data: bytes, layout: StateLayout, fingerprint: bytes) -> UserState:
    """The state in `data`; its arrays are read-only views into it.

    Raises StateCorrupt where the bytes are not a whole state, and StateForeign where another model wrote them.
    """
    if len(data) < HEADER_BYTES:
        raise StateCorrupt(f"{len(data)} bytes are fewer than a header of {HEADER_BYTES}")
    magic, version, header, by, created, last, events, length, payload, checksum = _HEADER.unpack_from(data)
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
    offset = HEADER_BYTES
    for spec in layout.arrays:
        shape = spec.concrete(length)
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        count = int(np.prod(shape, dtype=np.int64))
        arrays[spec.name] = np.frombuffer(data, dtype, count, offset).reshape(shape)
        offset += _aligned(_array_bytes(spec, length))
    return UserState(arrays, events, created, None if last == NO_TIME else last, length)


def _array_bytes(spec: ArraySpec, length: int) -> int:
    return int(np.prod(spec.concrete(length), dtype=np.int64)) * np.dtype(spec.dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
