"""The real chain's last link: what HTTP answers is what the scorer gives for the published state."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from srp4ctr.contract.keys import Keys
from srp4ctr.contract.state import decode_state
from srp4ctr.contract.vocabulary import to_texts
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.publish import publish

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def served(tiny, serving, service_settings, shared_redis_server):
    """The tiny bundle published, activated and served: a client, the store and the scorer."""
    settings = service_settings(tiny.bundles.parent, shared_redis_server.url)
    settings = settings.model_copy(update={"namespace": "published"})
    manifest = tiny.bundle.manifest
    with connect(settings, shared_redis_server.url) as redis:
        store = StateStore(redis, Keys(settings.namespace))
        publish(tiny.bundle, tiny.prepared, store)
        store.activate(manifest.version, manifest.fingerprint)
        with serving(settings) as client:
            yield client, store, OnnxScorer(tiny.bundle)


@examples(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.integers(0, 149),
    places=st.lists(st.integers(0, 130), min_size=1, max_size=60),
    context=st.fixed_dictionaries(
        {}, optional={"hour": st.integers(0, 30), "device": st.sampled_from(["?", "a"])}
    ),
    random=st.randoms(use_true_random=False),
)
def test_http_answers_what_the_scorer_gives(tiny, served, user, places, context, random):
    """For any user, candidates and context: HTTP = scorer with the state from Redis, permuted, split and merged."""
    client, store, scorer = served
    manifest = tiny.bundle.manifest
    user_id = tiny.user_ids[user]
    items = [tiny.item_ids[place] if place < len(tiny.item_ids) else f"new-{place}" for place in places]
    data = store.get_many(manifest.version, [user_id])[0]
    state = decode_state(data, manifest.state, manifest.fingerprint_bytes)
    codes = tiny.bundle.items.codes[tiny.bundle.items.rows(to_texts(items))]
    expected = scorer(state, codes, tiny.bundle.transforms.encode_values("context", context, "context"))

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
    merged = ask([*items, *tiny.item_ids[: random.randint(1, 90)]])
    np.testing.assert_allclose(merged[: len(items)], expected, atol=ROUNDING)
