"""One model everywhere: a score is the same however it is computed, whatever a state consists of."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import HEADER_BYTES, StateLayout, UserState, decode_state, encode_state
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxEncoder, OnnxScorer
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.checkpoint import load_model
from srp4ctr_offline.config import OptimizerConfig
from srp4ctr_offline.publish import publish
from srp4ctr_offline.training import Trainer

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5
# How far a probability may move by what its state is stored in. Numbers of a state are about 1: in float16 they lie
# 2^-11 apart, in int8 a row's largest is 127 steps; attention averages, and a probability moves by a quarter of a
# logit at most.
STORED = {"float32": ROUNDING, "float16": 2e-3, "int8": 2e-2}
# How far a number of a state may move itself, as a part of the largest in its row.
NEAREST = {"float32": 0.0, "float16": 2**-11, "int8": 0.51 / 127}

examples = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=["tiny", "tiny_sequence"])
def run(request):
    """A trained and exported run of each kind of state."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def model(run) -> Srp4Ctr:
    """The run's fine-tuned model."""
    return load_model(run.run / "finetune", "finetune", run.config, run.prepared)


@pytest.fixture(scope="module")
def scorer(run) -> OnnxScorer:
    """The bundle's scorer."""
    return OnnxScorer(run.bundle)


def history(run, user: int, end: int | None = None):
    """Torch inputs of one user's history up to `end` events."""
    events = int(run.prepared.event_counts()[user]) if end is None else end
    items, behaviours, _ = run.prepared.histories(np.array([user]), np.array([events]))
    codes = np.ascontiguousarray(run.prepared.users.codes[[user]])
    return torch.from_numpy(items), torch.from_numpy(behaviours), torch.from_numpy(codes)


def vectors_of(run, rows) -> np.ndarray:
    """Item vectors [C, V] of item table rows."""
    return run.bundle.items.vectors[np.asarray(rows)]


def codes_of(run, rows) -> torch.Tensor:
    """Item codes [1, C, W] of item table rows."""
    return torch.from_numpy(run.prepared.items.codes[np.asarray(rows)][None].copy())


def folded(model: Srp4Ctr, run, user: int, rows, context) -> np.ndarray:
    """Probabilities by encoding once and scoring all candidates."""
    with torch.no_grad():
        state = model.encode_user(*history(run, user))
        return model.calibrate(model.score(state, codes_of(run, rows), context))[0].numpy()


def user_state(model: Srp4Ctr, run, user: int) -> UserState:
    """The user's state as torch computes it, as a value that can be stored."""
    events = int(run.prepared.lengths(run.prepared.event_counts()[[user]])[0])
    with torch.no_grad():
        batch = {name: array.numpy() for name, array in model.encode_user(*history(run, user)).items()}
    encoding = model.state_layout.of_user(batch, 0, events)
    return UserState(encoding.arrays, events=events, created_at_ms=0, length=encoding.length)


def assert_stored(found: UserState, computed: UserState, dtype: str) -> None:
    """The state found is the one computed, up to rounding and what storing it in `dtype` costs."""
    assert (found.events, found.length) == (computed.events, computed.length)
    for name, array in computed.arrays.items():
        largest = np.abs(array).max(axis=-1, keepdims=True)
        off = np.abs(found.arrays[name].astype(np.float64) - array)
        assert (off <= NEAREST[dtype] * largest + ROUNDING).all(), name


users_st = st.integers(0, 399)
rows_st = st.lists(st.integers(0, 120), min_size=1, max_size=40)
hours_st = st.integers(0, 25)


def context_of(run, hour: int) -> torch.Tensor:
    width = run.prepared.rows.contexts.shape[1]
    return torch.tensor([[[hour] + [1] * (width - 1)]], dtype=torch.int32)


@examples
@given(users_st, rows_st, hours_st)
def test_folded_equals_unfolded(run, model, user, rows, hour) -> None:
    """Encoding a user once gives each candidate the score that it has when encoded and scored alone."""
    together = folded(model, run, user, rows, context_of(run, hour))
    items, behaviours, codes = history(run, user)
    copies = [tensor.expand(len(rows), *tensor.shape[1:]) for tensor in (items, behaviours, codes)]
    candidates = codes_of(run, rows).transpose(0, 1)
    context = context_of(run, hour).expand(len(rows), -1, -1)
    with torch.no_grad():
        alone = model.calibrate(model(*copies, candidates, context))[:, 0].numpy()
    np.testing.assert_allclose(together, alone, atol=ROUNDING)


@examples
@given(users_st, rows_st, hours_st, st.randoms(use_true_random=False))
def test_candidates_permuted_split_and_merged(run, model, scorer, user, rows, hour, random) -> None:
    """A candidate's score in ONNX Runtime does not depend on the others, on their order or on their number."""
    state = user_state(model, run, user)
    context = context_of(run, hour)[0].numpy()
    vectors = vectors_of(run, rows)
    whole = scorer(state, vectors, context)
    order = list(range(len(rows)))
    random.shuffle(order)
    np.testing.assert_allclose(scorer(state, vectors[order], context), whole[order], atol=ROUNDING)
    cut = random.randint(0, len(rows))
    parts = [scorer(state, part, context) for part in (vectors[:cut], vectors[cut:]) if len(part)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=ROUNDING)
    more = np.concatenate([vectors, vectors_of(run, range(random.randint(1, 90)))])
    np.testing.assert_allclose(scorer(state, more, context)[: len(rows)], whole, atol=ROUNDING)
    np.testing.assert_allclose(whole, folded(model, run, user, rows, context_of(run, hour)), atol=ROUNDING)


@pytest.mark.parametrize("dtype", STORED)
@examples
@given(user=users_st, rows=rows_st, hour=hours_st)
def test_a_state_goes_through_its_bytes(run, model, scorer, dtype, user, rows, hour) -> None:
    """Written and read, a state scores as before: in float32 it is the same, in less within the tolerance."""
    layout = model.state_layout
    first = layout.arrays[0].model_copy(update={"dtype": dtype})
    layout = StateLayout(kind=layout.kind, arrays=(first, *layout.arrays[1:]))
    state = user_state(model, run, user)
    back = decode_state(encode_state(state, layout, bytes(16)), layout, bytes(16))
    assert_stored(back, state, dtype)
    if dtype == "float32":
        for name, array in state.arrays.items():
            np.testing.assert_array_equal(back.arrays[name], array)
    context = context_of(run, hour)
    scores = scorer(back, vectors_of(run, rows), context[0].numpy())
    wanted = folded(model, run, user, rows, context)
    np.testing.assert_allclose(scores, wanted, atol=STORED[dtype])


@examples
@given(users_st, st.integers(0, 12), st.integers(1, 12))
def test_padding_does_not_leak(run, model, user, end, padding) -> None:
    """A history's state does not depend on how far it was padded; that of an empty history neither."""
    end = min(end, int(run.prepared.event_counts()[user]))
    items, behaviours, codes = history(run, user, end)
    room = max(0, min(padding, run.prepared.max_events - items.shape[1]))
    padded = [
        torch.cat([part.new_zeros(1, room, part.shape[2]), part], dim=1) for part in (items, behaviours)
    ]
    with torch.no_grad():
        batches = [
            {name: array.numpy() for name, array in model.encode_user(*events, codes).items()}
            for events in ((items, behaviours), padded)
        ]
    short, long = (model.state_layout.of_user(batch, 0, end) for batch in batches)
    assert short.length == long.length
    for name, array in short.arrays.items():
        np.testing.assert_allclose(array, long.arrays[name], atol=ROUNDING)
    # Nor does it matter whether a scorer is given the padding or not.
    rows, context = codes_of(run, range(40)), context_of(run, 3)
    with torch.no_grad():
        whole, cut = (
            model.score({name: torch.from_numpy(array) for name, array in state.items()}, rows, context)
            for state in (batches[1], {name: array[None] for name, array in short.arrays.items()})
        )
    np.testing.assert_allclose(whole, cut, atol=ROUNDING)


def test_a_batch_does_not_leak(run, model) -> None:
    """A user's state is the same in a batch with longer histories as alone, by torch and by ONNX Runtime."""
    prepared = run.prepared
    counts = prepared.event_counts()
    users = np.argsort(counts)[[0, 100, 200, 300, 399]]
    assert counts[users[0]] == 0
    items, behaviours, _ = prepared.histories(users, counts[users])
    codes = prepared.users.codes[users]
    with torch.no_grad():
        computed = model.encode_user(*(torch.from_numpy(array) for array in (items, behaviours, codes)))
    together = {name: array.numpy() for name, array in computed.items()}
    for batch in (together, OnnxEncoder(run.bundle)(items, behaviours, codes)):
        for place, user in enumerate(users):
            mine = model.state_layout.of_user(batch, place, int(prepared.lengths(counts[[user]])[0]))
            alone = user_state(model, run, user)
            assert mine.length == alone.length
            for name, array in alone.arrays.items():
                np.testing.assert_allclose(mine.arrays[name], array, atol=ROUNDING)


def test_the_model_reads_the_history(run, model) -> None:
    """Users with different histories and equal features get different scores for the same items."""
    rows = list(range(1, 60))
    longest = int(np.argmax(run.prepared.event_counts()))
    items, behaviours, codes = history(run, longest)
    with torch.no_grad():
        known = model.score(
            model.encode_user(items, behaviours, codes), codes_of(run, rows), context_of(run, 5)
        )
        empty = model.encode_user(items[:, :1] * 0, behaviours[:, :1] * 0, codes)
        cold = model.score(empty, codes_of(run, rows), context_of(run, 5))
    assert (known - cold).abs().max() > 1e-3


@pytest.fixture(scope="module")
def published(run, shared_redis_server) -> Iterator[StateStore]:
    """A store that holds all states of the bundle."""
    client = connect(StoreSettings(), shared_redis_server.url)
    store = StateStore(client, Keys())
    done = publish(run.bundle, run.prepared, store)
    assert done.users == len(run.user_ids)
    yield store
    client.close()


def test_states_from_redis_score_as_torch_does(run, model, scorer, published) -> None:
    """Every published state, decoded, scores as the torch model does from the raw history."""
    manifest = run.bundle.manifest
    rows = np.arange(0, 121, 3)
    found = published.get_many(manifest.version, run.user_ids)
    now = time.time() * 1000
    counts = run.prepared.event_counts()
    for user, data in enumerate(found):
        assert data is not None
        state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
        assert state.events == min(counts[user], run.prepared.max_events)
        dtype = manifest.state.arrays[0].dtype
        assert_stored(state, user_state(model, run, user), dtype)
        assert abs(now - state.created_at_ms) < 600_000
        context = context_of(run, user % 24 + 2)
        scores = scorer(state, vectors_of(run, rows), context[0].numpy())
        wanted = folded(model, run, user, rows, context)
        np.testing.assert_allclose(scores, wanted, atol=STORED[dtype])


def test_exported_cold_state_is_the_models(run, model, scorer) -> None:
    """The bundle's cold state scores as a user of whom nothing is known."""
    rows = list(range(40))
    items, behaviours, codes = history(run, 0, 0)
    with torch.no_grad():
        state = model.encode_user(items, behaviours, torch.ones_like(codes))
        wanted = model.calibrate(model.score(state, codes_of(run, rows), context_of(run, 3)))[0].numpy()
    context = context_of(run, 3)[0].numpy()
    got = scorer(run.bundle.cold_state, vectors_of(run, rows), context)
    np.testing.assert_allclose(got, wanted, atol=STORED[run.bundle.manifest.state.arrays[0].dtype])


def test_a_sequence_state_keeps_the_users_own_positions(tiny_sequence) -> None:
    """A state of n events has n + 1 positions, that of no event one, in D + 2 bytes a layer's and position's row."""
    run = tiny_sequence
    model = load_model(run.run / "finetune", "finetune", run.config, run.prepared)
    kept = run.prepared.lengths(run.prepared.event_counts())
    layers, width = run.config.model.layers, run.config.model.width
    for user in (int(np.argmin(kept)), 7, int(np.argmax(kept))):
        state = user_state(model, run, user)
        assert state.length == kept[user] + 1 == state.events + 1
        assert state.arrays["layers"].shape == (state.length, layers * width)
        assert (state.arrays["layers"] != 0).any(-1).all()
        data = encode_state(state, model.state_layout, bytes(16))
        user_bytes = 4 * run.prepared.users.codes.shape[1]
        parts = (state.length * layers * width, 2 * state.length, user_bytes)
        assert len(data) == HEADER_BYTES + sum(-(-part // 8) * 8 for part in parts)
    assert kept.min() == 0
    assert run.bundle.cold_state.length == 1


def test_a_sequence_model_shares_keys_and_values(run) -> None:
    """With `sequence` a candidate reads each layer through that layer's own keys and values, with `tokens` through its
    own: so it is after loading and after a step of training.
    """
    model = load_model(run.run / "finetune", "finetune", run.config, run.prepared).train()
    shared = run.config.model.state == "sequence"
    users = np.arange(8)
    items, behaviours, _ = run.prepared.histories(users, run.prepared.event_counts()[users])
    arrays = (items, behaviours, run.prepared.users.codes[users])

    def pairs():
        for mine, encoders in zip(model.cross, model.encoder.blocks, strict=True):
            for name in ("key", "value"):
                yield getattr(mine.attention, name), getattr(encoders.attention, name)

    before = [theirs.weight.detach().clone() for _, theirs in pairs()]
    options = OptimizerConfig(epochs=1, batch_size=8, learning_rate=1e-2)
    with Trainer("a step", [(model.parameters(), 1.0)], options, 8) as trainer:
        logit = model(
            *(torch.from_numpy(array) for array in arrays),
            codes_of(run, range(9)).repeat(8, 1, 1),
            context_of(run, 3),
        )
        trainer.step(logit.square().mean())
    for (mine, theirs), weight in zip(pairs(), before, strict=True):
        assert (mine is theirs) == shared
        assert torch.equal(mine.weight, theirs.weight) == shared
        assert not torch.equal(theirs.weight, weight)
