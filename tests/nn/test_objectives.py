"""The masked objective: what is hidden stays hidden, and what is recovered is what was hidden."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.model import ModelConfig, Srp4Ctr
from srp4ctr.nn.objectives import FieldHead, MaskingConfig, PretrainObjective, drop_to_unknown

FIELDS = Fields(
    item=(
        Field("id", "categorical", 0, 1, 40),
        Field("tags", "multi_valued", 1, 3, 9),
        Field("price", "numeric", 4, 1, 7),
    ),
    behaviour=(Field("event_type", "categorical", 0, 1, 6), Field("dwell", "numeric", 1, 1, 8)),
    user=(Field("age", "numeric", 0, 1, 6), Field("region", "categorical", 1, 1, 9)),
    context=(Field("hour", "categorical", 0, 1, 5), Field("device", "categorical", 1, 1, 4)),
)
BARE = Fields(item=FIELDS.item[:1], behaviour=(), user=(), context=())
SIZES = ModelConfig(
    width=8, heads=2, layers=1, query_tokens=2, cross_layers=1, tower=(8,), dropout=0.0, state_dtype="float32"
)


class Spy(Srp4Ctr):
    """The model, noting every tensor that it is given."""

    def __init__(self, fields: Fields, max_events: int) -> None:
        super().__init__(SIZES, fields, max_events)
        self.given: dict[str, torch.Tensor] = {}

    def encode_history(self, event_items, event_behaviours):
        """Note the masked histories, and what the encoder makes of them."""
        history, bias = super().encode_history(event_items, event_behaviours)
        self.given |= {"items": event_items, "behaviours": event_behaviours, "history": history, "bias": bias}
        return history, bias

    def read_state(self, history, bias, user_codes):
        """Note what the state is made of."""
        self.given |= {"read.history": history, "read.bias": bias, "users": user_codes}
        return super().read_state(history, bias, user_codes)

    def cross_attend(self, state, item_codes):
        """Note the candidates."""
        e, z = super().cross_attend(state, item_codes)
        self.given |= {f"state.{name}": array for name, array in state.items()}
        self.given |= {"candidates": item_codes, "z": z}
        return e, z

    def logit(self, state, e, z, context_codes):
        """Note what the tower sees, and what it says."""
        logit = super().logit(state, e, z, context_codes)
        self.given |= {"tower.e": e, "tower.z": z, "contexts": context_codes, "logit": logit}
        return logit


@pytest.fixture(autouse=True)
def _one_thread():
    """Matrices are so small here that several threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the objective takes."""

    items: torch.Tensor
    behaviours: torch.Tensor
    labels: torch.Tensor
    users: torch.Tensor


def known_codes(fields, shape, generator) -> torch.Tensor:
    """Random codes of known values; a list holds one or more."""
    columns = [torch.empty(*shape, 0, dtype=torch.int64)]
    for field in fields:
        codes = torch.randint(FIRST_VALUE, field.size, (*shape, field.width), generator=generator)
        columns.append(codes)
        if field.width > 1:
            codes[..., 1:] *= torch.randint(2, (*shape, field.width - 1), generator=generator)
    return torch.cat(columns, dim=-1).int()


def make_batch(lengths, fields: Fields = FIELDS, seed: int = 0) -> Batch:
    """Sequences of these many events, padded on the left; nothing in them is unknown and each has its label."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(*lengths, 1)
    padding = torch.arange(longest)[None] < longest - torch.tensor(lengths)[:, None]
    shape = padding.shape
    return Batch(
        known_codes(fields.item, shape, generator).masked_fill(padding[..., None], PADDING),
        known_codes(fields.behaviour, shape, generator).masked_fill(padding[..., None], PADDING),
        torch.randint(2, shape, generator=generator).masked_fill(padding, -1).to(torch.int8),
        known_codes(fields.user, shape[:1], generator),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One call of the objective; `asked` holds the vectors [M, D] and the codes [M, V] that each head was given."""

    model: Spy
    objective: PretrainObjective
    losses: dict[str, torch.Tensor]
    asked: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def given(self) -> dict[str, torch.Tensor]:
        """What the model was given."""
        return self.model.given

    def hidden_items(self) -> torch.Tensor:
        """Which columns of the history's items were hidden."""
        return torch.cat(
            [
                (self.given["items"][..., field.start, None] == field.size).expand(-1, -1, field.width)
                for field in self.model.fields.item
            ],
            dim=-1,
        )

    def hidden_behaviours(self) -> torch.Tensor:
        """At which events all of the behaviour was hidden."""
        sizes = torch.tensor([field.size for field in self.model.fields.behaviour])
        return (self.given["behaviours"] == sizes).all(-1)


def recover(batch: Batch, fields: Fields = FIELDS, *, seed: int = 0, **masking) -> Outcome:
    """Apply the objective of fixed weights, its draws decided by `seed`."""
    torch.manual_seed(11)
    model = Spy(fields, batch.items.shape[1])
    objective = PretrainObjective(fields, SIZES.width, MaskingConfig(**masking))
    asked: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for kind in ("item", "behaviour", "candidate"):
        for head in getattr(objective, f"{kind}_heads"):
            name = f"{kind}.{head.field.name}"
            head.register_forward_hook(lambda _, args, __, name=name: asked.update({name: args[:2]}))
    torch.manual_seed(seed)
    losses = objective(model, batch.items, batch.behaviours, batch.labels, batch.users)
    return Outcome(model, objective, losses, asked)


def gradients(outcome: Outcome) -> dict[str, torch.Tensor]:
    """The gradients of the total loss, by parameter; those that it does not reach are left out."""
    outcome.losses["total"].backward()
    parameters = [*outcome.model.named_parameters(), *outcome.objective.named_parameters()]
    return {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}


@pytest.mark.parametrize("whole_item_rate", [1.0, 0.0])
def test_a_hidden_item_cannot_be_seen(whole_item_rate) -> None:
    """What is hidden of an item changes the targets alone: neither the encoder's input nor any vector it gives."""
    batch, other = make_batch([12, 5, 9]), make_batch([12, 5, 9], seed=1)
    options = {"item_rate": 0.4, "whole_item_rate": whole_item_rate}
    true = recover(batch, **options)
    hidden = true.hidden_items()
    assert hidden.any()
    spoilt = recover(
        dataclasses.replace(batch, items=torch.where(hidden, other.items, batch.items)), **options
    )
    for name in ("items", "behaviours", "history", "bias"):
        assert torch.equal(true.given[name], spoilt.given[name]), name
    for field in FIELDS.item:
        assert true.losses[f"item.{field.name}"] != spoilt.losses[f"item.{field.name}"]
    shown = recover(
        dataclasses.replace(batch, items=torch.where(hidden, batch.items, other.items)), **options
    )
    assert not torch.equal(true.given["history"], shown.given["history"])


def test_a_hidden_behaviour_cannot_be_seen() -> None:
    """A hidden event's behaviour and label change the targets alone: no tensor that reaches the model."""
    batch, other = make_batch([12, 5, 9]), make_batch([12, 5, 9], seed=1)
    true = recover(batch)
    hidden = true.hidden_behaviours()
    assert hidden.any()
    spoilt = recover(
        dataclasses.replace(
            batch,
            behaviours=torch.where(hidden[..., None], other.behaviours, batch.behaviours),
            labels=torch.where(hidden, 1 - batch.labels, batch.labels),
        )
    )
    assert set(true.given) == set(spoilt.given)
    for name, tensor in true.given.items():
        assert torch.equal(tensor, spoilt.given[name]), name
    changed = {name for name in true.losses if true.losses[name] != spoilt.losses[name]}
    assert changed == {
        "behaviour.event_type",
        "behaviour.dwell",
        "candidate.event_type",
        "candidate.dwell",
        "candidate.label",
        "total",
    }


def test_labels_of_shown_behaviours_are_not_asked_for() -> None:
    """The label of an event whose behaviour is shown is no target, which that behaviour could give away."""
    batch = make_batch([12, 1, 0, 9])
    true = recover(batch)
    shown = (batch.items[..., 0] != PADDING) & ~true.hidden_behaviours()
    assert shown.any()
    labels = torch.where(shown, 1 - batch.labels, batch.labels)
    spoilt = recover(dataclasses.replace(batch, labels=labels))
    assert {name: loss.item() for name, loss in true.losses.items()} == {
        name: loss.item() for name, loss in spoilt.losses.items()
    }


def test_candidates_are_the_events_whose_behaviour_is_hidden() -> None:
    """What attends to the state is the items of just those events whose behaviour the history lacks."""
    batch = make_batch([12, 12, 12])
    outcome = recover(batch, unknown_rate=0.0, behaviour_rate=0.25)
    for items, hidden, candidates in zip(
        batch.items, outcome.hidden_behaviours(), outcome.given["candidates"], strict=True
    ):
        assert sorted(candidates.tolist()) == sorted(items[hidden].tolist())


def place_of(row, rows) -> tuple[int, ...]:
    """Where `rows` hold a row, which they must do once."""
    (place,) = (rows == row).all(-1).nonzero().tolist()
    return tuple(place)


def test_what_is_asked_is_the_hidden_events_own() -> None:
    """A target is of the event whose vector must recover it, or of the event whose item is the candidate."""
    batch = make_batch([12, 5, 0, 9])
    batch.labels[3, -4:] = -1
    outcome = recover(batch, unknown_rate=0.0, item_rate=0.4, behaviour_rate=0.5)
    given, hidden = outcome.given, outcome.hidden_behaviours()
    for head in (*outcome.objective.item_heads, *outcome.objective.behaviour_heads):
        field = head.field
        kind, codes = ("item", batch.items) if field in FIELDS.item else ("behaviour", batch.behaviours)
        vectors, targets = outcome.asked[f"{kind}.{field.name}"]
        assert len(vectors)
        for vector, target in zip(vectors, targets, strict=True):
            place = place_of(vector, given["history"][:, 1:])
            assert target.tolist() == codes[place][field.start : field.start + field.width].tolist()
    logloss = []
    for field in FIELDS.behaviour:
        vectors, targets = outcome.asked[f"candidate.{field.name}"]
        assert len(vectors) == hidden.sum()
        for vector, target in zip(vectors, targets, strict=True):
            user, candidate = place_of(vector, given["z"])
            (event,) = place_of(given["candidates"][user, candidate], batch.items[user])
            assert hidden[user, event]
            assert target.tolist() == [batch.behaviours[user, event, field.start]]
            if (label := batch.labels[user, event].item()) >= 0:
                logloss.append(F.softplus((-1) ** label * given["logit"][user, candidate]).item())
    assert len(logloss) < 2 * hidden.sum()
    assert outcome.losses["candidate.label"].item() == pytest.approx(sum(logloss) / len(logloss), rel=1e-5)


def test_padding_is_neither_hidden_nor_a_target() -> None:
    """However much is hidden, padding stays as it is, and the targets are the hidden events' own fields."""
    batch = make_batch([0, 1, 3, 8])
    padding = batch.items[..., 0] == PADDING
    for seed in range(5):
        outcome = recover(
            batch, seed=seed, item_rate=0.9, whole_item_rate=0.5, behaviour_rate=0.9, unknown_rate=0.5
        )
        assert (outcome.given["items"][padding] == PADDING).all()
        assert (outcome.given["behaviours"][padding] == PADDING).all()
        hidden = outcome.hidden_items()
        for field in FIELDS.item:
            at = slice(field.start, field.start + field.width)
            mine = batch.items[hidden[..., field.start]][:, at]
            assert torch.equal(outcome.asked[f"item.{field.name}"][1], mine)
        for field in FIELDS.behaviour:
            mine = batch.behaviours[outcome.hidden_behaviours()][:, field.start]
            for kind in ("behaviour", "candidate"):
                _, found = outcome.asked[f"{kind}.{field.name}"]
                assert sorted(found.flatten().tolist()) == sorted(mine.tolist())


def test_items_are_hidden_at_their_rate() -> None:
    """An item_rate of events is hidden: whole_item_rate of them in all fields, the rest in each by a toss."""
    batch = make_batch([40] * 250)
    for whole, share_id, share_all in ((1.0, 0.2, 0.2), (0.6, 0.16, 0.13), (0.0, 0.1, 0.025)):
        hidden = recover(batch, item_rate=0.2, whole_item_rate=whole).hidden_items()
        assert hidden[..., 0].float().mean() == pytest.approx(share_id, abs=0.01)
        assert hidden.all(-1).float().mean() == pytest.approx(share_all, abs=0.01)
        for field in FIELDS.item[1:]:
            assert hidden[..., field.start].float().mean() == pytest.approx(share_id, abs=0.01)


def test_behaviours_are_hidden_at_their_rate() -> None:
    """A sequence hides behaviour_rate of its own events, rounded up, whatever it shares a batch with."""
    lengths = [*range(41)] * 4
    batch = make_batch(lengths)
    outcome = recover(batch, behaviour_rate=0.25, item_rate=0.4, whole_item_rate=1.0)
    hidden = outcome.hidden_behaviours()
    assert hidden.sum(1).tolist() == [math.ceil(0.25 * length) for length in lengths]
    # A column that were hidden alone would not have been counted.
    sizes = torch.tensor([field.size for field in FIELDS.behaviour])
    assert torch.equal((outcome.given["behaviours"] == sizes).any(-1), hidden)
    # The maskings are drawn apart, and an event's behaviour is hidden wherever it stands.
    assert outcome.hidden_items()[hidden][:, 0].float().mean() == pytest.approx(0.4, abs=0.05)
    anywhere = recover(make_batch([8] * 500), behaviour_rate=0.25).hidden_behaviours()
    assert anywhere.float().mean(0).tolist() == pytest.approx([0.25] * 8, abs=0.08)


def head_of(kind: str, *, tied: bool = False) -> FieldHead:
    """A head of three values whose weights can be followed by hand."""
    head = FieldHead(Field("x", kind, 0, 3 if kind == "multi_valued" else 1, 5), 2, tied=tied)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
        (head.transform if tied else head).weight.copy_(
            torch.eye(2) if tied else torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        )
        if tied:
            head.transform.bias.zero_()
    return head


HIDDEN = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [9.0, 9.0]])
LOGITS = ((1.0, 2.5, 3.0), (-1.0, 0.5, -1.0))


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
def test_one_of_many_is_a_softmax(kind) -> None:
    """A field of one value has cross-entropy over its values; unknown values neither count nor can be chosen."""
    loss = head_of(kind)(HIDDEN, torch.tensor([[3], [2], [UNKNOWN]], dtype=torch.int32))
    by_hand = [math.log(sum(map(math.exp, row))) - row[at] for row, at in zip(LOGITS, (1, 0), strict=True)]
    assert loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_several_of_many_is_a_logistic_each() -> None:
    """A multi-valued field has binary cross-entropy over all values; unknowns and padding in a list do not count."""
    codes = torch.tensor([[4, 2, PADDING], [UNKNOWN, 3, 3], [UNKNOWN, PADDING, PADDING]], dtype=torch.int32)
    loss = head_of("multi_valued")(HIDDEN, codes)
    present = ((1, 0, 1), (0, 1, 0))
    by_hand = [
        math.log1p(math.exp(-logit if has else logit))
        for row, flags in zip(LOGITS, present, strict=True)
        for logit, has in zip(row, flags, strict=True)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 6, rel=1e-5)


def test_item_heads_are_tied_to_the_embeddings() -> None:
    """A tied head scores a value by its embedding, so that the embedding of the value itself learns."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], requires_grad=True)
    head = head_of("categorical", tied=True)
    loss = head(HIDDEN[:1], torch.tensor([[3]], dtype=torch.int32), embeddings)
    x, y = (value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in (1.0, 2.0))
    row = (x, y + 0.5, x + y)
    assert loss.item() == pytest.approx(math.log(sum(map(math.exp, row))) - row[1], rel=1e-5)
    loss.backward()
    assert (embeddings.grad != 0).any(1).all()
    batch = make_batch([6, 6])
    outcome = recover(batch, item_rate=0.5, whole_item_rate=1.0)
    outcome.losses["item.id"].backward()
    rows = outcome.model.items.tables[0].weight.grad.abs().sum(1)
    assert (rows[FIRST_VALUE : FIELDS.item[0].size] > 0).all()


def test_a_batch_without_targets_is_harmless() -> None:
    """Where all is unknown, missing or padding, the losses are zero and the gradients finite."""
    events = make_batch([6, 2, 0])
    nothing = dataclasses.replace(
        events,
        items=events.items.clamp(max=UNKNOWN),
        behaviours=events.behaviours.clamp(max=UNKNOWN),
        labels=torch.full_like(events.labels, -1),
    )
    for batch in (nothing, make_batch([0, 0])):
        outcome = recover(batch, item_rate=0.9, behaviour_rate=0.9)
        assert {loss.item() for loss in outcome.losses.values()} == {0.0}
        found = gradients(outcome)
        assert found
        assert all(gradient.isfinite().all() for gradient in found.values())


def test_only_event_labels_reach_the_tower() -> None:
    """Without event labels there is no such loss and the tower does not move; with them it learns."""
    batch = make_batch([8, 3])
    unlabelled = recover(dataclasses.replace(batch, labels=torch.full_like(batch.labels, -1)))
    assert "candidate.label" not in unlabelled.losses
    assert not any(grad.any() for name, grad in gradients(unlabelled).items() if name.startswith("tower."))
    labelled = recover(batch)
    assert labelled.losses["candidate.label"] > 0
    moved = gradients(labelled)
    assert all(moved[name].any() for name in ("tower.0.weight", "tower.3.weight"))


@pytest.mark.parametrize("columns", [slice(0, 1), slice(1, 3), slice(None)])
def test_drop_to_unknown(columns) -> None:
    """Whole rows of the columns become unknown at the rate; padding, other columns and the input stay."""
    generator = torch.Generator().manual_seed(0)
    codes = known_codes(FIELDS.item, (50, 80), generator)
    codes[:, :20] = PADDING
    before = codes.clone()
    torch.manual_seed(0)
    dropped = drop_to_unknown(codes, 0.3, columns)
    assert torch.equal(codes, before)
    changed = dropped != codes
    assert (dropped[changed] == UNKNOWN).all()
    assert not (changed & (codes == PADDING)).any()
    inside = torch.zeros(codes.shape[-1], dtype=torch.bool)
    inside[columns] = True
    assert not changed[..., ~inside].any()
    row_changed = changed.any(-1)
    assert torch.equal(changed, row_changed[..., None] & inside & (codes != PADDING))
    assert row_changed[:, 20:].float().mean() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drop_to_unknown(codes, 0.0, columns), codes)


def test_unknowns_are_shown_and_not_asked_for() -> None:
    """Ids and user features are shown as unknown at unknown_rate, attributes never, and the targets stay true."""
    batch = make_batch([40] * 100)
    outcome = recover(batch, unknown_rate=0.3, item_rate=0.2, whole_item_rate=1.0)
    hidden = outcome.hidden_items()
    events = outcome.given["items"][~hidden[..., 0]]
    candidates = outcome.given["candidates"].flatten(0, 1)
    for shown in (events, candidates):
        assert (shown[:, 0] == UNKNOWN).float().mean() == pytest.approx(0.3, abs=0.03)
        assert not (shown[:, 1:] == UNKNOWN).any()
    users = outcome.given["users"] == UNKNOWN
    assert users.float().mean() == pytest.approx(0.3, abs=0.1)
    assert torch.equal(users.any(1), users.all(1))
    assert torch.equal(outcome.given["state.user_codes"], outcome.given["users"])
    assert (outcome.given["contexts"] == UNKNOWN).all()
    assert torch.equal(outcome.asked["item.id"][1], batch.items[hidden[..., 0]][:, :1])


def test_total_is_the_weighted_sum() -> None:
    """Each loss counts with its own kind's weight, and one of weight 0 not at all."""
    batch = make_batch([8, 3])
    options = {"item_rate": 0.5, "whole_item_rate": 1.0}
    plain = recover(batch, **options).losses
    assert all(loss > 0 for loss in plain.values())
    for weights in ({"item": 2.0, "behaviour": 0.5, "candidate": 3.0}, {"item": 0.0}, {"candidate": 0.0}):
        weighed = recover(batch, **options, **{f"{kind}_weight": w for kind, w in weights.items()}).losses
        by_hand = sum(
            weights.get(name.split(".")[0], 1.0) * loss.item()
            for name, loss in plain.items()
            if name != "total"
        )
        assert weighed["total"].item() == pytest.approx(by_hand, rel=1e-5)


ATTRIBUTES = ["item.tags", "item.price"]
BEHAVIOURS = ["behaviour.event_type", "behaviour.dwell", "candidate.event_type", "candidate.dwell"]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (FIELDS, [*ATTRIBUTES, *BEHAVIOURS]),
        (dataclasses.replace(FIELDS, item=BARE.item), BEHAVIOURS),
        (dataclasses.replace(FIELDS, behaviour=()), ATTRIBUTES),
        (dataclasses.replace(FIELDS, user=(), context=()), [*ATTRIBUTES, *BEHAVIOURS]),
        (BARE, []),
    ],
    ids=["all", "no attributes", "no behaviour", "no user or context", "item ids alone"],
)
def test_any_group_may_be_empty(fields, names) -> None:
    """Without item attributes, behaviour, user or context features the rest is recovered, and all of it learns."""
    outcome = recover(make_batch([8, 3], fields), fields, item_rate=0.5, whole_item_rate=1.0)
    assert set(outcome.losses) == {"item.id", *names, "candidate.label", "total"}
    assert all(loss > 0 for loss in outcome.losses.values())
    found = gradients(outcome)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(found[name].any() for name in ("items.tables.0.weight", "encoder.start", "tower.0.weight"))
