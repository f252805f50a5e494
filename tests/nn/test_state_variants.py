"""Every kind of user state keeps the promises of one model, with whatever weights: here with fresh ones."""

import dataclasses

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from srp4ctr.contract.manifest import ENCODER, ITEM, SCORER
from srp4ctr.nn.export import EncoderGraph, ItemGraph, ScorerGraph, export_graph
from srp4ctr.nn.folded import ItemVectors, UserScorer
from srp4ctr.nn.model import ModelConfig, Srp4Ctr
from srp4ctr_offline.parity import CANDIDATES, LENGTHS, TOLERANCE, USERS, compare

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5
VARIANTS = {
    "tokens": {},
    "every layer read": {"query_reads": "every", "query_layers": 2},
    "mean": {"query_layers": 0},
    "no cross-attention": {"cross_layers": 0},
    "mean of the history alone": {"query_layers": 0, "cross_layers": 0},
    "sequence": {"state": "sequence"},
    "recent events": {"recent_events": 3},
    "wide feed-forward layers": {"feed_forward": 2, "cross_feed_forward": 4},
}
ROWS = np.arange(3, 33)
SIX = np.arange(6)


def fresh(tiny, **options) -> Srp4Ctr:
    """A model with fresh weights, large enough that everything shows in the scores."""
    sizes = {"width": 16, "heads": 2, "layers": 2, "query_tokens": 3, "cross_layers": 2, "tower": (16,)}
    torch.manual_seed(4)
    model = Srp4Ctr(
        ModelConfig(**(sizes | options)), tiny.prepared.transforms.fields, tiny.prepared.max_events
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".tables." in name:
                weight.mul_(10.0)
    return model.eval()


def test_a_sequence_has_a_layer_for_each_block() -> None:
    """Where the encoder's depth is not said, it is what the candidate's blocks read; one layer is enough for tokens."""
    assert ModelConfig().layers == 1
    assert ModelConfig(state="sequence").layers == ModelConfig().cross_layers == 2
    assert ModelConfig(state="sequence", cross_layers=3).layers == 3
    with pytest.raises(ValidationError, match="reads every layer"):
        ModelConfig(state="sequence", layers=1)


@pytest.fixture(params=VARIANTS)
def model(request, tiny) -> Srp4Ctr:
    """A model of each kind."""
    return fresh(tiny, **VARIANTS[request.param])


def batch(tiny, users=SIX, longest: int = 9) -> list[torch.Tensor]:
    """Histories of different lengths, the first of them empty, with their users' features."""
    counts = tiny.prepared.event_counts()[users]
    ends = np.minimum(counts, np.maximum(0, longest - 2 * np.arange(len(users))[::-1]))
    ends[0] = 0
    items, behaviours, _ = tiny.prepared.histories(users, ends)
    return [torch.from_numpy(array) for array in (items, behaviours, tiny.prepared.users.codes[users])]


def candidates(tiny, users: int) -> list[torch.Tensor]:
    """The same candidates for all, each in a context of its own."""
    items = np.repeat(tiny.prepared.items.codes[ROWS][None], users, axis=0)
    contexts = tiny.prepared.rows.contexts[: users * len(ROWS)].reshape(users, len(ROWS), -1)
    return [torch.from_numpy(np.array(array)) for array in (items, contexts)]


@torch.no_grad()
def scores(model: Srp4Ctr, history, asked) -> np.ndarray:
    """Logits [U, C] by way of the state."""
    return model.score(model.encode_user(*history), *asked).numpy()


def test_folded_equals_unfolded(tiny, model) -> None:
    """A candidate has the same score among others, in another order, alone, and encoded for itself."""
    history, asked = batch(tiny), candidates(tiny, len(SIX))
    whole = scores(model, history, asked)
    order = np.random.default_rng(0).permutation(len(ROWS))
    shuffled = scores(model, history, [part[:, order] for part in asked])
    np.testing.assert_allclose(shuffled, whole[:, order], atol=ROUNDING)
    for place in (0, 17, len(ROWS) - 1):
        one = [part[:, place : place + 1] for part in asked]
        with torch.no_grad():
            alone = model(*history, *one).numpy()
        np.testing.assert_allclose(alone, whole[:, place : place + 1], atol=ROUNDING)


@torch.no_grad()
def test_served_as_trained(tiny, model) -> None:
    """What is served, with items computed before and the user once, gives what training computes for every candidate."""
    history, asked = batch(tiny), candidates(tiny, len(SIX))
    contexts = asked[1][:, :1]
    model.calibration_scale.fill_(1.5)
    model.calibration_bias.fill_(-0.25)
    whole = model.calibrate(torch.from_numpy(scores(model, history, [asked[0], contexts]))).numpy()
    vectors = ItemVectors(model)(asked[0][0])
    arrays = {name: array.numpy() for name, array in model.encode_user(*history).items()}
    ends = (history[0][..., 0] != 0).sum(1).tolist()
    for user in SIX:
        found = model.state_layout.of_user(arrays, user, ends[user]).arrays
        state = {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
        one = UserScorer(model)(state, vectors, contexts[user])
        np.testing.assert_allclose(one.numpy(), whole[user], atol=ROUNDING)


def test_a_state_is_its_users_own(tiny, model) -> None:
    """A state depends neither on padding nor on the other users of the batch, an empty history's neither."""
    history = batch(tiny)
    items, behaviours, users = history
    padded = [torch.cat([part.new_zeros(len(part), 3, part.shape[2]), part], 1) for part in history[:2]]
    ends = (items[..., 0] != 0).sum(1)
    assert ends[0] == 0 < ends[-1]
    layout = model.state_layout
    with torch.no_grad():
        together, longer = (
            {name: array.numpy() for name, array in model.encode_user(*events, users).items()}
            for events in ((items, behaviours), padded)
        )
        for user, end in enumerate(ends.tolist()):
            one = slice(user, user + 1)
            own = [part[one, part.shape[1] - max(1, end) :] for part in (items, behaviours)]
            state = {name: array.numpy() for name, array in model.encode_user(*own, users[one]).items()}
            alone = layout.of_user(state, 0, end)
            for other in (together, longer):
                found = layout.of_user(other, user, end)
                assert found.length == alone.length == (end + 1 if layout.kind == "sequence" else 0)
                for spec in layout.arrays:
                    assert alone.arrays[spec.name].shape == spec.concrete(alone.length)
                    np.testing.assert_allclose(
                        found.arrays[spec.name], alone.arrays[spec.name], atol=ROUNDING
                    )
    asked = candidates(tiny, len(users))
    np.testing.assert_allclose(
        scores(model, [*padded, users], asked), scores(model, history, asked), atol=ROUNDING
    )


def test_everything_is_read(tiny, model) -> None:
    """Candidates, items and behaviours of the history, users and contexts all matter to the scores."""
    users = np.argsort(tiny.prepared.event_counts())[-6:]
    history, asked = batch(tiny, users), candidates(tiny, len(users))
    whole = scores(model, history, asked)
    assert whole.std(axis=1).min() > 1e-3
    for place in range(3):
        other = [part.roll(1, 0) if at == place else part for at, part in enumerate(history)]
        assert np.abs(scores(model, other, asked) - whole).max() > 1e-3
    assert np.abs(scores(model, history, [asked[0], torch.ones_like(asked[1])]) - whole).max() > 1e-3


def test_every_encoder_layer_can_be_read(tiny) -> None:
    """With query_reads "every" the tokens see what the first layer read, and with "last" only what comes out."""
    for reads, sees in (("every", True), ("last", False)):
        model = fresh(tiny, query_reads=reads)
        with torch.no_grad():
            items, behaviours, users = batch(tiny)
            encoded = model.encode_history(items, behaviours)
            spoilt = encoded._replace(read_USD=(-encoded.read_USD[0], *encoded.read_USD[1:]))
            tokens, other = (
                model.read_state(one, users, items, behaviours)["tokens"] for one in (encoded, spoilt)
            )
        assert torch.equal(tokens, other) != sees


def test_the_latest_events_are_kept_as_they_are(tiny) -> None:
    """With recent_events = 3 a state holds the codes of the latest three events, and 0 on the left of fewer."""
    model = fresh(tiny, recent_events=3)
    items, behaviours, users = batch(tiny)
    with torch.no_grad():
        state = model.encode_user(items, behaviours, users)
    ends = (items[..., 0] != 0).sum(1).tolist()
    assert ends[0] == 0
    assert ends[-1] > 3
    for user, end in enumerate(ends):
        kept = min(3, end)
        first = items.shape[1] - kept
        assert state["recent_ids"][user].tolist() == [0] * (3 - kept) + items[user, first:, 0].tolist()
        assert torch.equal(state["recent_behaviours"][user, 3 - kept :], behaviours[user, first:])
        assert not state["recent_behaviours"][user, : 3 - kept].any()


def test_the_mean_state_is_the_mean(tiny) -> None:
    """Without a querying transformer the token is the mean of the user's positions, the start token among them."""
    model = fresh(tiny, query_layers=0)
    items, behaviours, users = batch(tiny)
    with torch.no_grad():
        tokens = model.encode_user(items, behaviours, users)["tokens"]
        output = model.encode_history(items, behaviours).output_USD
    assert tokens.shape[1] == 1
    for user, end in enumerate((items[..., 0] != 0).sum(1).tolist()):
        torch.testing.assert_close(tokens[user, 0], output[user, output.shape[1] - end - 1 :].mean(0))


@pytest.mark.parametrize(
    "options",
    [
        {"query_reads": "every", "query_layers": 2, "layers": 1, "recent_events": 3},
        {"query_layers": 0, "cross_layers": 0, "layers": 1},
    ],
    ids=["every layer and recent events read", "mean of the history alone"],
)
def test_onnx_computes_the_same(tiny, tmp_path, options) -> None:
    """Exported graphs of what no trained run of these tests has compute what torch computes, at all shapes."""
    model = fresh(tiny, **options)
    for name, graph in ((ENCODER, EncoderGraph), (ITEM, ItemGraph), (SCORER, ScorerGraph)):
        export_graph(graph(model), tmp_path / name)
    parity = compare(tiny.prepared, model, tmp_path)
    assert max(parity.encoder_max_abs, parity.item_max_abs, parity.scorer_max_abs) <= TOLERANCE
    assert parity.shapes_compared == len(USERS) * (len(LENGTHS) + 1) * (1 + 2 * len(CANDIDATES))


def test_recent_events_without_behaviours(tiny) -> None:
    """A schema without behaviours has states of recent ids alone, and graphs that need nothing else."""
    fields = dataclasses.replace(tiny.prepared.transforms.fields, behaviour=())
    torch.manual_seed(0)
    model = Srp4Ctr(ModelConfig(width=8, heads=2, recent_events=3), fields, 6).eval()
    encoder, scorer = EncoderGraph(model), ScorerGraph(model)
    names = [array.name for array in model.state_layout.arrays]
    assert "recent_ids" in names
    assert "recent_behaviours" not in names
    items, _, users = batch(tiny)
    history = (items[:, -6:], items[:, -6:, :0], users)
    given = dict(zip([one.name for one in encoder.spec.inputs], (items[:, -6:], users), strict=True))
    asked = candidates(tiny, len(SIX))
    with torch.no_grad():
        computed = dict(
            zip([one.name for one in encoder.spec.outputs], encoder(*given.values()), strict=True)
        )
        wanted = model.calibrate(model(*history, asked[0], asked[1][:, :1]))
        for user in SIX:
            offered = {name: array[user] for name, array in (computed | {"user_codes": users}).items()}
            offered["item_vectors"] = ItemGraph(model)(asked[0][user])[0]
            offered["context_codes"] = asked[1][user, :1]
            found = scorer(*(offered[one.name] for one in scorer.spec.inputs))[0]
            torch.testing.assert_close(found, wanted[user], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "sequence", "layers": 2, "cross_layers": 1}, r"cross_layers = 1 must be layers = 2"),
        ({"state": "sequence", "recent_events": 1}, "recent_events needs"),
        ({"cross_layers": 1, "recent_events": 1}, "recent_events needs"),
        ({"query_layers": -1}, "query_layers"),
    ],
)
def test_impossible_sizes_are_refused(options, message) -> None:
    """What no network could be built of is an error of the configuration that names the option."""
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**options)
