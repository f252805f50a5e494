"""The real chain's last link: what HTTP answers is what the scorer gives for the published state."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import COLD_STATE
from srp4ctr.contract.state import HEADER_BYTES, decode_state
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.publish import publish

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5


@pytest.fixture(scope="module", params=["tiny", "tiny_sequence"])
def run(request):
    """A trained and exported run of each kind of state."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def served(run, serving, service_settings, shared_redis_server):
    """The run's bundle published, activated and served: a client, the store and the scorer."""
    manifest = run.bundle.manifest
    settings = service_settings(run.bundles.parent, shared_redis_server.url)
    settings = settings.model_copy(update={"namespace": f"published-{manifest.name}"})
    with connect(settings, shared_redis_server.url) as redis:
        store = StateStore(redis, Keys(settings.namespace))
        publish(run.bundle, run.prepared, store)
        store.activate(manifest.version, manifest.fingerprint)
        with serving(settings) as client:
            yield client, store, OnnxScorer(run.bundle)


@examples(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.integers(0, 149),
    places=st.lists(st.integers(0, 130), min_size=1, max_size=60),
    context=st.fixed_dictionaries(
        {}, optional={"hour": st.integers(0, 30), "device": st.sampled_from(["?", "a"])}
    ),
    random=st.randoms(use_true_random=False),
)
def test_http_answers_what_the_scorer_gives(run, served, user, places, context, random):
    """For any user, candidates and context: HTTP = scorer with the state from Redis, permuted, split and merged."""
    client, store, scorer = served
    manifest = run.bundle.manifest
    user_id = run.user_ids[user]
    items = [run.item_ids[place] if place < len(run.item_ids) else f"new-{place}" for place in places]
    data = store.get_many(manifest.version, [user_id])[0]
    state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
    vectors = run.bundle.items.vectors[run.bundle.items.rows(items)]
    expected = scorer(
        state, vectors, run.bundle.transforms.encode_values("context", context, "context")[None]
    )

    def ask(item_ids):
        response = client.post("/score", json={"user_id": user_id, "item_ids": item_ids, "context": context})
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["tier"] == "full"
        assert answer["degraded"] == []
        assert answer["user_state"]["status"] == ("fresh" if state.events else "cold")
        return np.array(answer["scores"], np.float32)

    # float32 survives JSON, whose numbers are the shortest that give the same float32 again.
    np.testing.assert_array_equal(ask(items), expected)
    order = list(range(len(items)))
    random.shuffle(order)
    np.testing.assert_allclose(ask([items[place] for place in order]), expected[order], atol=ROUNDING)
    cut = random.randint(0, len(items))
    parts = [ask(part) for part in (items[:cut], items[cut:]) if part]
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=ROUNDING)
    merged = ask([*items, *run.item_ids[: random.randint(1, 90)]])
    np.testing.assert_allclose(merged[: len(items)], expected, atol=ROUNDING)


def test_states_take_what_the_layout_says(run, served):
    """Each user's bytes in Redis are a header and the layout's arrays for the positions that the user has."""
    _, store, _ = served
    manifest = run.bundle.manifest
    kept = run.prepared.lengths(run.prepared.event_counts())
    sequence = manifest.state.kind == "sequence"
    sizes = []
    for events, data in zip(kept.tolist(), store.get_many(manifest.version, run.user_ids), strict=True):
        state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
        assert (state.events, state.length) == (events, events + 1 if sequence else 0)
        assert len(data) == HEADER_BYTES + manifest.state.payload_bytes(state.length)
        sizes.append(len(data))
    assert (len(set(sizes)) > 1) == sequence
    assert kept.min() == 0 < kept.max() == run.prepared.max_events
    cold = (run.bundle.folder / COLD_STATE).stat().st_size
    assert cold == min(sizes)


def test_strangers_are_scored_by_the_cold_state(run, served):
    """A user without a state gets the scores of the bundle's cold state, and the answer says so."""
    client, _, scorer = served
    answer = client.post("/score", json={"user_id": "nobody", "item_ids": run.item_ids[:20]}).json()
    assert answer["user_state"]["status"] != "fresh"
    vectors = run.bundle.items.vectors[run.bundle.items.rows(run.item_ids[:20])]
    expected = scorer(
        run.bundle.cold_state, vectors, run.bundle.transforms.encode_values("context", {}, "context")[None]
    )
    np.testing.assert_array_equal(np.array(answer["scores"], np.float32), expected)


def test_user_features_of_the_request_are_used(run, served):
    """Features that the request gives stand in for those that the state was encoded with, and only for those."""
    client, store, scorer = served
    user = run.user_ids[3]
    manifest = run.bundle.manifest
    (data,) = store.get_many(manifest.version, [user])
    state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
    feature, *_ = run.bundle.transforms.features("user")
    vocabulary = run.bundle.transforms.vocabularies[f"user.{feature.name}"]
    others = [code for code in range(2, vocabulary.size) if code != state.arrays["user_codes"][0]]
    value = vocabulary.values[others[0] - 2].decode()
    items = run.item_ids[:30]
    body = {"user_id": user, "item_ids": items}
    answer = client.post("/score", json=body | {"user_features": {feature.name: value}}).json()
    codes = np.array(state.arrays["user_codes"])
    codes[0] = others[0]
    other = dataclasses.replace(state, arrays={**state.arrays, "user_codes": codes})
    context = run.bundle.transforms.encode_values("context", {}, "context")[None]
    expected = scorer(other, run.bundle.items.vectors[run.bundle.items.rows(items)], context)
    np.testing.assert_array_equal(np.array(answer["scores"], np.float32), expected)
    assert answer["scores"] != client.post("/score", json=body).json()["scores"]
