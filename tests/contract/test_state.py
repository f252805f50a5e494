"""The bytes of a user state."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from srp4ctr.contract.errors import StateCorrupt, StateForeign
from srp4ctr.contract.state import (
    HEADER_BYTES,
    ArraySpec,
    StateLayout,
    UserState,
    code_dtype,
    decode_state,
    encode_state,
    stored,
)

GOLDEN = Path(__file__).parents[1] / "data" / "user_state_v2.bin"
GOLDEN_INT8 = GOLDEN.with_name("user_state_int8_v2.bin")
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
        ArraySpec(name="keys", dtype="int8", shape=("S", 5)),
        ArraySpec(name="weights", dtype="float32", shape=("S",)),
    ),
)
QUANTISED = StateLayout(
    kind="tokens",
    arrays=(
        ArraySpec(name="tokens", dtype="int8", shape=(3, 5)),
        ArraySpec(name="user_codes", dtype="int32", shape=(3,)),
    ),
)
# The largest numbers that a float16 scale can carry; below, they reach down to the smallest float32.
LARGEST = 127 * 65504.0
REAL = st.floats(-LARGEST, LARGEST, width=32) | st.floats(-4, 4, width=32) | st.just(0.0)
ROWS = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6), elements=REAL)


def golden_state() -> UserState:
    tokens = np.array([[0.5, -1.0, 2.0], [0.0, 65504.0, -0.25]], np.float16)
    arrays = {"tokens": tokens, "user_codes": np.array([2, 1, 70000], np.int32)}
    return UserState(
        arrays,
        events=7,
        created_at_ms=1_700_000_000_123,
        last_event_at_ms=1_699_999_999_000,
        sequence=1_700_000_000_000_004,
    )


def test_golden_bytes() -> None:
    """States that were written once can be read for ever: the bytes are those in tests/data."""
    assert encode_state(golden_state(), LAYOUT, FINGERPRINT) == GOLDEN.read_bytes()
    found = decode_state(GOLDEN.read_bytes(), LAYOUT, FINGERPRINT)
    wanted = golden_state()
    assert (found.events, found.created_at_ms, found.last_event_at_ms, found.sequence) == (
        7,
        1_700_000_000_123,
        1_699_999_999_000,
        1_700_000_000_000_004,
    )
    for name, array in wanted.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_specified_bytes() -> None:
    """The golden bytes are laid out as docs/contract.md says."""
    data = GOLDEN.read_bytes()
    assert data[:4] == b"SRPU"
    assert int.from_bytes(data[4:6], "little") == 2
    assert int.from_bytes(data[6:8], "little") == HEADER_BYTES == 64
    assert data[8:24] == FINGERPRINT[:16]
    assert int.from_bytes(data[24:32], "little") == 1_700_000_000_123
    assert int.from_bytes(data[40:48], "little") == 1_700_000_000_000_004
    assert int.from_bytes(data[48:52], "little") == 7
    assert int.from_bytes(data[56:60], "little") == len(data) - 64 == 16 + 16
    assert np.frombuffer(data, "<f2", 6, 64)[2] == 2.0
    assert np.frombuffer(data, "<i4", 3, 80).tolist() == [2, 1, 70000]


def int8_state() -> UserState:
    tokens = np.array([[127, -126.5, 0.5, 63.4, 0], [0, 0, 0, 0, 0], [1, -0.25, 0.5, 0.004, -1]], np.float32)
    return UserState(
        {"tokens": tokens, "user_codes": np.array([2, 1, 70000], np.int32)}, 7, 1_700_000_000_123
    )


def test_golden_bytes_of_int8() -> None:
    """Quantised states, too, can be read for ever, and are laid out as docs/contract.md says."""
    data = GOLDEN_INT8.read_bytes()
    assert encode_state(int8_state(), QUANTISED, FINGERPRINT) == data
    assert int.from_bytes(data[56:60], "little") == len(data) - 64 == 16 + 8 + 16
    values = np.frombuffer(data, "i1", 15, 64).reshape(3, 5)
    scales = np.frombuffer(data, "<f2", 3, 64 + 16)
    # Halves go to the even neighbour; 1 / 127 is 1032.06 / 2^17, and a scale is the next float16 above.
    assert values.tolist() == [[127, -126, 0, 63, 0], [0, 0, 0, 0, 0], [127, -32, 63, 1, -127]]
    assert scales.tolist() == [1.0, 0.0, 1033 / 2**17]
    assert np.frombuffer(data, "<i4", 3, 64 + 24).tolist() == [2, 1, 70000]
    found = decode_state(data, QUANTISED, FINGERPRINT)
    assert found.arrays["tokens"].dtype == np.float32
    np.testing.assert_array_equal(found.arrays["tokens"], values * scales[:, None].astype(np.float32))


def test_bytes_of_16_tokens_of_64() -> None:
    """In int8, 16 tokens of 64 numbers take a byte a number and two a token."""
    spec = ArraySpec(name="tokens", dtype="int8", shape=(16, 64))
    assert StateLayout(kind="tokens", arrays=(spec,)).payload_bytes() == 1024 + 32


def test_a_layout_is_its_fields() -> None:
    """A layout that has served states of some lengths equals one that is just read: manifests are compared."""
    used = GROWING.model_copy(deep=True)
    assert used.payload_bytes(3) < used.payload_bytes(30)
    fresh = StateLayout.model_validate_json(used.model_dump_json())
    assert fresh == used
    assert hash(fresh) == hash(used)


@given(ROWS)
def test_int8_is_nearest(rows) -> None:
    """No number moves by more than half a step of its row, and steps are no larger than float16 makes them."""
    found = stored(rows, "int8")
    assert found.shape == rows.shape
    assert found.dtype == np.float32
    largest = np.abs(rows.astype(np.float64)).max(axis=-1, keepdims=True, initial=0)
    # A normal float16 is within 2^-10 of any number, the others within 2^-24.
    step = np.maximum(largest / 127 * (1 + 2**-10), largest / 127 + 2**-24)
    assert (np.abs(found.astype(np.float64) - rows) <= step / 2).all()
    assert (found[rows == 0] == 0).all()


@given(st.sampled_from(["float32", "float16", "int8"]), st.data())
def test_what_is_stored_is_what_comes_back(dtype, data) -> None:
    """`stored` of a batch gives, bit by bit, what each user's own state gives back."""
    largest = LARGEST if dtype == "int8" else 65504.0
    shape = data.draw(array_shapes(min_dims=2, max_dims=4, max_side=5))
    batch = data.draw(arrays(np.float32, shape, elements=st.floats(-largest, largest, width=32)))
    spec = ArraySpec(name="x", dtype=dtype, shape=("S", *shape[2:]))
    layout = StateLayout(kind="sequence", arrays=(spec,))
    together = stored(batch, dtype)
    for array, wanted in zip(batch, together, strict=True):
        state = UserState({"x": array}, events=1, created_at_ms=0, length=shape[1])
        found = decode_state(encode_state(state, layout, FINGERPRINT), layout, FINGERPRINT).arrays["x"]
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes() == stored(array, dtype).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
def test_only_finite_numbers_are_stored(dtype, wrong) -> None:
    """What is not a number, or is none in the array's dtype, never reaches a state."""
    with pytest.raises(AssertionError, match="finite"):
        stored(np.array([[1.0, wrong]]), dtype)


def test_int8_needs_a_row() -> None:
    """A single number has no row to be quantised with: the manifest is refused and names the array."""
    with pytest.raises(ValueError, match="'bias' is int8"):
        ArraySpec(name="bias", dtype="int8", shape=())


@given(st.integers(0, 40), st.integers(0, 2**40))
def test_arrays_that_grow_with_the_history(length, created) -> None:
    """A state whose arrays have one row a position is read back as it was, whatever the number of positions."""
    generator = np.random.default_rng(length)
    arrays = {
        "keys": stored(generator.normal(size=(length, 5)), "int8"),
        "weights": generator.random(length).astype(np.float32),
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
    for golden, layout in ((GOLDEN, LAYOUT), (GOLDEN_INT8, QUANTISED)):
        found = decode_state(golden.read_bytes(), layout, FINGERPRINT)
        for array in found.arrays.values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1  # type: ignore[index]


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [
        (2, "uint8"),
        (256, "uint8"),
        (257, "uint16"),
        (65536, "uint16"),
        (65537, "int32"),
        (10_000_000, "int32"),
    ],
)
def test_codes_take_no_more_bytes_than_they_need(codes: int, dtype: str) -> None:
    """The largest code of a vocabulary comes back from the smallest dtype that its state can keep it in."""
    assert code_dtype(codes) == dtype
    layout = StateLayout(kind="tokens", arrays=(ArraySpec(name="ids", dtype=dtype, shape=(3,)),))
    state = UserState({"ids": np.array([0, 1, codes - 1], np.int32)}, events=1, created_at_ms=0)
    found = decode_state(encode_state(state, layout, FINGERPRINT), layout, FINGERPRINT)
    assert found.arrays["ids"].tolist() == [0, 1, codes - 1]
    assert layout.arrays[0].holds_codes
    assert found.arrays["ids"].itemsize == np.dtype(dtype).itemsize
