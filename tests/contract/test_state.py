"""The bytes of a user state."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srp4ctr.contract.errors import StateCorrupt, StateForeign
from srp4ctr.contract.state import HEADER_BYTES, ArraySpec, StateLayout, UserState, decode_state, encode_state

GOLDEN = Path(__file__).parents[1] / "data" / "user_state_v1.bin"
FINGERPRINT = bytes(range(32))
LAYOUT = StateLayout(
    kind="tokens",
    arrays=(
        ArraySpec(name="tokens", dtype="float16", shape=(2, 3)),
        ArraySpec(name="user_codes", dtype="int32", shape=(3,)),
    ),
)
GROWING = StateLayout(
    kind="sequence",
    arrays=(
        ArraySpec(name="keys", dtype="int8", shape=("L", 5)),
        ArraySpec(name="scales", dtype="float32", shape=("L",)),
    ),
)


def golden_state() -> UserState:
    tokens = np.array([[0.5, -1.0, 2.0], [0.0, 65504.0, -0.25]], np.float16)
    arrays = {"tokens": tokens, "user_codes": np.array([2, 1, 70000], np.int32)}
    return UserState(arrays, events=7, created_at_ms=1_700_000_000_123, last_event_at_ms=1_699_999_999_000)


def test_golden_bytes() -> None:
    """States that were written once can be read for ever: the bytes are those in tests/data."""
    assert encode_state(golden_state(), LAYOUT, FINGERPRINT) == GOLDEN.read_bytes()
    found = decode_state(GOLDEN.read_bytes(), LAYOUT, FINGERPRINT)
    wanted = golden_state()
    assert (found.events, found.created_at_ms, found.last_event_at_ms) == (
        7,
        1_700_000_000_123,
        1_699_999_999_000,
    )
    for name, array in wanted.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_specified_bytes() -> None:
    """The golden bytes are laid out as docs/contract.md says."""
    data = GOLDEN.read_bytes()
    assert data[:4] == b"SRPU"
    assert int.from_bytes(data[4:6], "little") == 1
    assert int.from_bytes(data[6:8], "little") == HEADER_BYTES == 56
    assert data[8:24] == FINGERPRINT[:16]
    assert int.from_bytes(data[24:32], "little") == 1_700_000_000_123
    assert int.from_bytes(data[40:44], "little") == 7
    assert int.from_bytes(data[48:52], "little") == len(data) - 56 == 16 + 16
    assert np.frombuffer(data, "<f2", 6, 56)[2] == 2.0
    assert np.frombuffer(data, "<i4", 3, 72).tolist() == [2, 1, 70000]


@given(st.integers(0, 40), st.integers(0, 2**40))
def test_arrays_that_grow_with_the_history(length, created) -> None:
    """A state whose arrays have one row an event is read back as it was, whatever the number of events."""
    generator = np.random.default_rng(length)
    arrays = {
        "keys": generator.integers(-128, 128, (length, 5)).astype(np.int8),
        "scales": generator.random(length).astype(np.float32),
    }
    state = UserState(arrays, events=length, created_at_ms=created, length=length)
    found = decode_state(encode_state(state, GROWING, FINGERPRINT), GROWING, FINGERPRINT)
    assert found.length == length
    assert found.last_event_at_ms is None
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


@given(st.data())
def test_any_damage_is_noticed(data) -> None:
    """A state with any byte changed, or cut anywhere, is never decoded."""
    good = GOLDEN.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(StateCorrupt):
        decode_state(bytes(flipped), LAYOUT, FINGERPRINT)
    with pytest.raises(StateCorrupt):
        decode_state(good[:at], LAYOUT, FINGERPRINT)
    with pytest.raises(StateCorrupt):
        decode_state(good + b"\0", LAYOUT, FINGERPRINT)


def test_another_models_state_is_foreign() -> None:
    """A whole state of a model with another fingerprint is told from a damaged one."""
    with pytest.raises(StateForeign, match="000102"):
        decode_state(GOLDEN.read_bytes(), LAYOUT, bytes(32))


def test_another_layout_is_not_read() -> None:
    """A state is not decoded by a layout of another size, even under the same fingerprint."""
    with pytest.raises(StateCorrupt, match="the layout has"):
        decode_state(GOLDEN.read_bytes(), GROWING, FINGERPRINT)


def test_arrays_cannot_be_changed() -> None:
    """A decoded state is a value: its arrays are read-only."""
    found = decode_state(GOLDEN.read_bytes(), LAYOUT, FINGERPRINT)
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["user_codes"][0] = 1  # type: ignore[index]
