"""The baselines keep the promises that make a comparison fair: same inputs, exact masks, and they do learn."""

import dataclasses

import numpy as np
import pytest
import torch

from srp4ctr.nn.baselines import BASELINES, Baseline, BaselineConfig
from srp4ctr.nn.baselines.din import AttentionUnit
from srp4ctr.runtime.metrics import auc
from srp4ctr_offline.finetune import finetune
from srp4ctr_offline.predict import predict
from srp4ctr_offline.prepared import TEST

# float32 sums of at most a few hundred terms of about 1, in another order.
ROUNDING = 2e-5
SIZES = BaselineConfig(width=16, tower=(16,), attention=(16,), heads=2)
ITEMS = np.arange(2, 22)


@pytest.fixture(params=BASELINES)
def model(request, tiny) -> Baseline:
    """A model of each kind with fresh weights, large enough that everything shows in the scores."""
    torch.manual_seed(4)
    model = BASELINES[request.param](SIZES, tiny.prepared.transforms.fields, tiny.prepared.max_events)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".tables." in name:
                weight.mul_(10.0)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a model takes."""

    items: torch.Tensor
    behaviours: torch.Tensor
    users: torch.Tensor
    candidates: torch.Tensor
    contexts: torch.Tensor

    def scores(self, model: Baseline) -> np.ndarray:
        """Logits [U, C]."""
        with torch.no_grad():
            return model(self.items, self.behaviours, self.users, self.candidates, self.contexts).numpy()

    def padded(self, events: int) -> "Inputs":
        """The same with more padding on the left."""
        items, behaviours = (
            torch.cat([part.new_zeros(len(part), events, part.shape[2]), part], dim=1)
            for part in (self.items, self.behaviours)
        )
        return dataclasses.replace(self, items=items, behaviours=behaviours)

    def without_history(self) -> "Inputs":
        """The same users before their first event."""
        return dataclasses.replace(self, items=self.items * 0, behaviours=self.behaviours * 0)


def inputs(tiny, users=(0, 1, 2, 3), longest: int = 12) -> Inputs:
    """Users with histories of different lengths, and the same candidates for all, each in a context of its own."""
    users = np.array(users)
    prepared = tiny.prepared
    ends = np.minimum(prepared.event_counts()[users], longest - np.arange(len(users)))
    items, behaviours, _ = prepared.histories(users, ends)
    candidates = np.repeat(prepared.items.codes[ITEMS][None], len(users), axis=0)
    contexts = prepared.rows.contexts[: len(users) * len(ITEMS)].reshape(len(users), len(ITEMS), -1)
    arrays = (items, behaviours, prepared.users.codes[users], candidates, contexts)
    return Inputs(*(torch.from_numpy(np.array(array)) for array in arrays))


def test_a_candidates_score_is_its_own(tiny, model) -> None:
    """A score depends neither on the other candidates, nor on their order, nor on the other users of the batch."""
    given = inputs(tiny)
    whole = given.scores(model)
    order = np.random.default_rng(0).permutation(len(ITEMS))
    shuffled = dataclasses.replace(
        given, candidates=given.candidates[:, order], contexts=given.contexts[:, order]
    )
    np.testing.assert_allclose(shuffled.scores(model), whole[:, order], atol=ROUNDING)
    for place in (0, 7, len(ITEMS) - 1):
        at = slice(place, place + 1)
        one = dataclasses.replace(given, candidates=given.candidates[:, at], contexts=given.contexts[:, at])
        np.testing.assert_allclose(one.scores(model), whole[:, at], atol=ROUNDING)
    for user in range(len(whole)):
        parts = (part[user : user + 1] for part in vars(given).values())
        np.testing.assert_allclose(Inputs(*parts).scores(model), whole[user : user + 1], atol=ROUNDING)


def test_one_context_serves_all_candidates(tiny, model) -> None:
    """A context [U, 1, W] scores as its copies for every candidate do."""
    given = inputs(tiny)
    one = dataclasses.replace(given, contexts=given.contexts[:, :1])
    copies = dataclasses.replace(one, contexts=one.contexts.expand_as(given.contexts))
    np.testing.assert_allclose(one.scores(model), copies.scores(model), atol=ROUNDING)


@pytest.mark.parametrize("events", [1, 5])
def test_padding_does_not_leak(tiny, model, events) -> None:
    """Scores do not depend on how far histories are padded, those of empty histories neither."""
    given = inputs(tiny, longest=6)
    for one in (given, given.without_history()):
        np.testing.assert_allclose(one.padded(events).scores(model), one.scores(model), atol=ROUNDING)


def test_everything_is_read(tiny, model) -> None:
    """Candidates, histories, behaviours, users and contexts all matter."""
    given = inputs(tiny)
    whole = given.scores(model)
    assert whole.std(axis=1).min() > 1e-3
    flipped = {
        "items": given.items.roll(1, 0),
        "behaviours": given.behaviours.roll(1, 0),
        "users": torch.ones_like(given.users),
        "contexts": torch.ones_like(given.contexts),
    }
    for name, tensor in flipped.items():
        moved = dataclasses.replace(given, **{name: tensor}).scores(model)
        assert np.abs(moved - whole).max() > 1e-3, name
    assert np.abs(given.without_history().scores(model) - whole).max() > 1e-3


def test_an_empty_history_is_an_ordinary_input(tiny, model) -> None:
    """Scores and gradients are finite where there is no event, and the tower learns."""
    given = inputs(tiny).without_history()
    assert np.isfinite(given.scores(model)).all()
    logits = model(given.items, given.behaviours, given.users, given.candidates, given.contexts)
    logits.sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["tower.0.weight"].any()


@pytest.mark.parametrize("name", BASELINES)
def test_it_learns(tiny, name) -> None:
    """Trained as our model is fine-tuned, each ranks held-out rows better than chance, and ends calibrated."""
    torch.manual_seed(2)
    prepared = tiny.prepared
    model = BASELINES[name](SIZES, prepared.transforms.fields, prepared.max_events)
    history = finetune(tiny.config, prepared, model)
    assert min(epoch["valid"] for epoch in history[1:]) < history[0]["valid"]
    rows = prepared.rows.of(TEST)
    assert auc(prepared.rows.label[rows], predict(model, prepared, rows)) > 0.55


@pytest.mark.parametrize("hidden", [(8,), (8, 4)])
def test_the_attention_unit_is_the_textbooks(hidden) -> None:
    """The decomposed unit equals the MLP on [q, k, q - k, q * k] pair by pair, in value and gradient."""
    torch.manual_seed(0)
    unit = AttentionUnit(BaselineConfig(width=4, heads=1, attention=hidden)).double()
    q, k = torch.randn(3, 5, 4).double().requires_grad_(), torch.randn(3, 7, 4).double().requires_grad_()
    here = torch.arange(7) >= torch.tensor([[0], [3], [7]])
    weights = unit(q, k, here)
    expected = torch.zeros(3, 5, 7).double()
    for user in range(3):
        for candidate in range(5):
            one, events = q[user, candidate], k[user, here[user]]
            if not len(events):
                continue
            pairs = torch.cat([one.expand_as(events), events, one - events, one * events], dim=-1)
            expected[user, candidate, here[user]] = unit.rest(unit.first(pairs).relu())[:, 0]
    torch.testing.assert_close(weights, expected)
    direction = torch.randn_like(weights)
    weighed = [*unit.parameters(), q, k]
    for mine, wanted in zip(
        torch.autograd.grad((weights * direction).sum(), weighed),
        torch.autograd.grad((expected * direction).sum(), weighed),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_the_gru_begins_with_the_first_event(tiny) -> None:
    """DIEN's interests are the states of a GRU that saw the events alone, and never the padding before them."""
    torch.manual_seed(0)
    model = BASELINES["dien"](SIZES, tiny.prepared.transforms.fields, tiny.prepared.max_events)
    x = torch.randn(3, 6, SIZES.width)
    here = torch.arange(6) >= torch.tensor([[0], [2], [6]])
    with torch.no_grad():
        states = model.interests(x, here)
        for user, padding in enumerate((0, 2)):
            alone, _ = model.extractor(x[user : user + 1, padding:])
            torch.testing.assert_close(states[user, padding:], alone[0])


def test_the_evolution_is_a_gru_where_attention_is_full(tiny) -> None:
    """AUGRU with weight 1 is torch's GRU of the same weights; with weight 0 the state does not move."""
    torch.manual_seed(0)
    model = BASELINES["dien"](SIZES, tiny.prepared.transforms.fields, tiny.prepared.max_events)
    augru, reference = model.evolution, torch.nn.GRU(SIZES.width, SIZES.width, batch_first=True)
    with torch.no_grad():
        # Torch's update gate says how much of the old state is kept; DIEN's, how much of the new one is taken.
        sign = torch.ones(3 * SIZES.width)
        sign[SIZES.width : 2 * SIZES.width] = -1
        for mine, weight, bias in (
            (augru.of_input, reference.weight_ih_l0, reference.bias_ih_l0),
            (augru.of_state, reference.weight_hh_l0, reference.bias_hh_l0),
        ):
            weight.copy_(sign[:, None] * mine.weight)
            bias.copy_(sign * mine.bias)
        x = torch.randn(2, 5, SIZES.width)
        _, last = reference(x)
        torch.testing.assert_close(augru(x, torch.ones(2, 3, 5)), last[0][:, None].expand(-1, 3, -1))
        assert not augru(x, torch.zeros(2, 3, 5)).any()


def test_pairs_of_fields_are_counted_once(tiny) -> None:
    """DeepFM's second-order term is the sum of the products of all pairs of field vectors."""
    fields = tiny.prepared.transforms.fields
    torch.manual_seed(0)
    model = BASELINES["deepfm"](SIZES, fields, tiny.prepared.max_events).eval()
    given = inputs(tiny)
    seen = {}
    model.tower.register_forward_hook(lambda _module, args, out: seen.update(v=args[0], deep=out))
    logits = torch.from_numpy(given.scores(model))
    vectors = seen["v"].unflatten(-1, (-1, SIZES.width)).double()
    count = len(fields.item) + len(fields.user) + len(fields.context) + 1
    assert vectors.shape[2] == count
    pairs = sum((vectors[:, :, i] * vectors[:, :, j]).sum(-1) for i in range(count) for j in range(i))
    with torch.no_grad():
        linear = (
            model.item_terms(given.candidates)
            + model.user_terms(given.users[:, None])
            + model.context_terms(given.contexts)
            + model.history_term(seen["v"][..., -SIZES.width :])
        )[..., 0]
    torch.testing.assert_close(
        logits, (pairs + linear + seen["deep"][..., 0]).float(), atol=ROUNDING, rtol=ROUNDING
    )


def test_heads_must_divide_the_width() -> None:
    """A configuration that no block can have is refused when it is made."""
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 16"):
        BaselineConfig(width=16, heads=3)
