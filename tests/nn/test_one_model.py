"""One model everywhere: a score is the same however it is computed."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import decode_state
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr.runtime.settings import StoreSettings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.checkpoint import load_model
from srp4ctr_offline.publish import publish

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5
# The published state keeps its tokens in float16, whose values of about 1 lie 2^-11 apart; through attention and
# tower a probability moves by much less than the tokens do.
HALF_PRECISION = 2e-3

examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def model(tiny) -> Srp4Ctr:
    """The tiny run's fine-tuned model."""
    return load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared)


@pytest.fixture(scope="module")
def scorer(tiny) -> OnnxScorer:
    """The tiny bundle's scorer."""
    return OnnxScorer(tiny.bundle)


def history(tiny, user: int, end: int | None = None):
    """Torch inputs of one user's history up to `end` events."""
    events = int(tiny.prepared.event_counts()[user]) if end is None else end
    items, behaviours, _ = tiny.prepared.histories(np.array([user]), np.array([events]))
    codes = np.ascontiguousarray(tiny.prepared.users.codes[[user]])
    return torch.from_numpy(items), torch.from_numpy(behaviours), torch.from_numpy(codes)


def codes_of(tiny, rows) -> torch.Tensor:
    """Item codes [1, C, W] of item table rows."""
    return torch.from_numpy(tiny.prepared.items.codes[np.asarray(rows)][None].copy())


def folded(model: Srp4Ctr, tiny, user: int, rows, context) -> np.ndarray:
    """Probabilities by encoding once and scoring all candidates."""
    with torch.no_grad():
        state = model.encode_user(*history(tiny, user))
        return model.calibrate(model.score(state, codes_of(tiny, rows), context))[0].numpy()


users_st = st.integers(0, 399)
rows_st = st.lists(st.integers(0, 120), min_size=1, max_size=40)
hours_st = st.integers(0, 25)


def context_of(tiny, hour: int) -> torch.Tensor:
    width = tiny.prepared.rows.contexts.shape[1]
    return torch.tensor([[[hour] + [1] * (width - 1)]], dtype=torch.int32)


@examples
@given(users_st, rows_st, hours_st)
def test_folded_equals_unfolded(tiny, model, user, rows, hour) -> None:
    """Encoding a user once gives each candidate the score that it has when encoded and scored alone."""
    together = folded(model, tiny, user, rows, context_of(tiny, hour))
    items, behaviours, codes = history(tiny, user)
    copies = [tensor.expand(len(rows), *tensor.shape[1:]) for tensor in (items, behaviours, codes)]
    candidates = codes_of(tiny, rows).transpose(0, 1)
    context = context_of(tiny, hour).expand(len(rows), -1, -1)
    with torch.no_grad():
        alone = model.calibrate(model(*copies, candidates, context))[:, 0].numpy()
    np.testing.assert_allclose(together, alone, atol=ROUNDING)


@examples
@given(users_st, rows_st, hours_st, st.randoms(use_true_random=False))
def test_candidates_permuted_split_and_merged(tiny, model, scorer, user, rows, hour, random) -> None:
    """A candidate's score in ONNX Runtime does not depend on the others, on their order or on their number."""
    with torch.no_grad():
        state = model.encode_user(*history(tiny, user))
    arrays = {name: state[name][0].numpy() for name in ("tokens", "user_codes")}
    user_state = type(tiny.bundle.cold_state)(arrays, events=1, created_at_ms=0)
    context = context_of(tiny, hour)[0, 0].numpy()
    codes = tiny.prepared.items.codes[rows]
    whole = scorer(user_state, codes, context)
    order = list(range(len(rows)))
    random.shuffle(order)
    np.testing.assert_allclose(scorer(user_state, codes[order], context), whole[order], atol=ROUNDING)
    cut = random.randint(0, len(rows))
    parts = [scorer(user_state, part, context) for part in (codes[:cut], codes[cut:]) if len(part)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=ROUNDING)
    more = np.concatenate([codes, tiny.prepared.items.codes[: random.randint(1, 90)]])
    np.testing.assert_allclose(scorer(user_state, more, context)[: len(rows)], whole, atol=ROUNDING)
    np.testing.assert_allclose(whole, folded(model, tiny, user, rows, context_of(tiny, hour)), atol=ROUNDING)


@examples
@given(users_st, st.integers(0, 12), st.integers(1, 12))
def test_padding_does_not_leak(tiny, model, user, end, padding) -> None:
    """A history's state does not depend on how far it was padded; that of an empty history neither."""
    end = min(end, int(tiny.prepared.event_counts()[user]))
    items, behaviours, codes = history(tiny, user, end)
    room = max(0, min(padding, tiny.prepared.max_events - items.shape[1]))
    padded = [
        torch.cat([part.new_zeros(1, room, part.shape[2]), part], dim=1) for part in (items, behaviours)
    ]
    with torch.no_grad():
        short = model.encode_user(items, behaviours, codes)["tokens"]
        long = model.encode_user(*padded, codes)["tokens"]
    np.testing.assert_allclose(short.numpy(), long.numpy(), atol=ROUNDING)


def test_a_batch_does_not_leak(tiny, model) -> None:
    """A user's state is the same in a batch with longer histories as alone."""
    counts = tiny.prepared.event_counts()
    users = np.argsort(counts)[[0, 100, 200, 300, 399]]
    items, behaviours, _ = tiny.prepared.histories(users, counts[users])
    codes = torch.from_numpy(tiny.prepared.users.codes[users])
    with torch.no_grad():
        together = model.encode_user(torch.from_numpy(items), torch.from_numpy(behaviours), codes)["tokens"]
        alone = [model.encode_user(*history(tiny, int(user)))["tokens"][0] for user in users]
    assert counts[users[0]] == 0
    np.testing.assert_allclose(together.numpy(), torch.stack(alone).numpy(), atol=ROUNDING)


def test_the_model_reads_the_history(tiny, model) -> None:
    """Users with different histories and equal features get different scores for the same items."""
    rows = list(range(1, 60))
    longest = int(np.argmax(tiny.prepared.event_counts()))
    items, behaviours, codes = history(tiny, longest)
    with torch.no_grad():
        known = model.score(
            model.encode_user(items, behaviours, codes), codes_of(tiny, rows), context_of(tiny, 5)
        )
        empty = model.encode_user(items[:, :1] * 0, behaviours[:, :1] * 0, codes)
        cold = model.score(empty, codes_of(tiny, rows), context_of(tiny, 5))
    assert (known - cold).abs().max() > 1e-3


@pytest.fixture(scope="module")
def published(tiny, shared_redis_server) -> Iterator[StateStore]:
    """A store that holds all states of the tiny bundle."""
    client = connect(StoreSettings(), shared_redis_server.url)
    store = StateStore(client, Keys())
    done = publish(tiny.bundle, tiny.prepared, store)
    assert done.users == len(tiny.user_ids)
    yield store
    client.close()


def test_states_from_redis_score_as_torch_does(tiny, model, scorer, published) -> None:
    """Every published state, decoded, scores as the torch model does from the raw history."""
    manifest = tiny.bundle.manifest
    rows = np.arange(0, 121, 3)
    found = published.get_many(manifest.version, tiny.user_ids)
    now = time.time() * 1000
    counts = tiny.prepared.event_counts()
    for user, data in enumerate(found):
        assert data is not None
        state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
        assert state.events == min(counts[user], tiny.prepared.max_events)
        assert abs(now - state.created_at_ms) < 600_000
        context = context_of(tiny, user % 24 + 2)
        scores = scorer(state, tiny.prepared.items.codes[rows], context[0, 0].numpy())
        wanted = folded(model, tiny, user, rows, context)
        np.testing.assert_allclose(scores, wanted, atol=HALF_PRECISION)


def test_exported_cold_state_is_the_models(tiny, model, scorer) -> None:
    """The bundle's cold state scores as a user of whom nothing is known."""
    rows = list(range(40))
    items, behaviours, codes = history(tiny, 0, 0)
    with torch.no_grad():
        state = model.encode_user(items, behaviours, torch.ones_like(codes))
        wanted = model.calibrate(model.score(state, codes_of(tiny, rows), context_of(tiny, 3)))[0].numpy()
    context = context_of(tiny, 3)[0, 0].numpy()
    got = scorer(tiny.bundle.cold_state, tiny.prepared.items.codes[rows], context)
    np.testing.assert_allclose(got, wanted, atol=HALF_PRECISION)
