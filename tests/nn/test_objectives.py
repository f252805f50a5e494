"""The masked objective: what is hidden stays hidden, and what is recovered is what was hidden."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.objectives import MaskingConfig, drop_to_unknown


@pytest.mark.parametrize("whole_item_rate", [1.0, 0.0])
def test_a_hidden_item_cannot_be_seen(fields, make_batch, recover, whole_item_rate) -> None:
    """What is hidden of an item changes the targets alone: neither the encoder's input nor any vector it gives."""
    batch, other = make_batch([12, 5, 9]), make_batch([12, 5, 9], seed=1)
    options = {"item_rate": 0.4, "whole_item_rate": whole_item_rate, "attribute_matches": 2}
    true = recover(batch, **options)
    hidden = true.hidden_items()
    assert hidden.any()
    spoilt = recover(
        dataclasses.replace(batch, items=torch.where(hidden, other.items, batch.items)), **options
    )
    for name in ("items", "behaviours", "history", "layers", "bias"):
        assert torch.equal(true.given[name], spoilt.given[name]), name
    (matched,), (same,) = true.matched, spoilt.matched
    assert matched.any()
    assert torch.equal(matched, same)
    for field in fields.item:
        assert true.losses[f"item.{field.name}"] != spoilt.losses[f"item.{field.name}"]
    shown = recover(
        dataclasses.replace(batch, items=torch.where(hidden, batch.items, other.items)), **options
    )
    assert not torch.equal(true.given["history"], shown.given["history"])


def test_a_hidden_behaviour_cannot_be_seen(make_batch, recover) -> None:
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


def test_labels_of_shown_behaviours_are_not_asked_for(make_batch, recover) -> None:
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


def test_candidates_are_the_events_whose_behaviour_is_hidden(make_batch, recover) -> None:
    """What attends to the state is the items of just those events whose behaviour the history lacks."""
    batch = make_batch([12, 12, 12])
    outcome = recover(batch, unknown_rate=0.0, behaviour_rate=0.25)
    for items, hidden, candidates in zip(
        batch.items, outcome.hidden_behaviours(), outcome.given["candidates"], strict=True
    ):
        assert sorted(candidates.tolist()) == sorted(items[hidden].tolist())


def test_what_is_asked_is_the_hidden_events_own(fields, make_batch, recover, whereabouts) -> None:
    """A target is of the event whose vector must recover it, or of the event whose item is the candidate."""
    batch = make_batch([12, 5, 0, 9])
    batch.labels[3, -4:] = -1
    outcome = recover(batch, unknown_rate=0.0, item_rate=0.4, behaviour_rate=0.5)
    given, hidden = outcome.given, outcome.hidden_behaviours()
    for field in (*fields.item, *fields.behaviour):
        kind, codes = ("item", batch.items) if field in fields.item else ("behaviour", batch.behaviours)
        vectors, targets = outcome.asked[f"{kind}.{field.name}"]
        assert len(vectors)
        for vector, target in zip(vectors, targets, strict=True):
            place = whereabouts(vector, given["history"][:, :-1])
            assert target.tolist() == codes[place][field.columns].tolist()
    logloss = []
    for field in fields.behaviour:
        vectors, targets = outcome.asked[f"candidate.{field.name}"]
        assert len(vectors) == hidden.sum()
        for vector, target in zip(vectors, targets, strict=True):
            user, candidate = whereabouts(vector, given["z"])
            (event,) = whereabouts(given["candidates"][user, candidate], batch.items[user])
            assert hidden[user, event]
            assert target.tolist() == [batch.behaviours[user, event, field.start]]
            if (label := batch.labels[user, event].item()) >= 0:
                logloss.append(F.softplus((-1) ** label * given["logit"][user, candidate]).item())
    assert len(logloss) < 2 * hidden.sum()
    assert outcome.losses["candidate.label"].item() == pytest.approx(sum(logloss) / len(logloss), rel=1e-5)


def test_padding_is_neither_hidden_nor_a_target(fields, make_batch, recover) -> None:
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
        for field in fields.item:
            at = slice(field.start, field.start + field.width)
            mine = batch.items[hidden[..., field.start]][:, at]
            assert torch.equal(outcome.asked[f"item.{field.name}"][1], mine)
        for field in fields.behaviour:
            mine = batch.behaviours[outcome.hidden_behaviours()][:, field.start]
            for kind in ("behaviour", "candidate"):
                _, found = outcome.asked[f"{kind}.{field.name}"]
                assert sorted(found.flatten().tolist()) == sorted(mine.tolist())


def test_items_are_hidden_at_their_rate(fields, make_batch, recover) -> None:
    """An item_rate of events is hidden: whole_item_rate of them in all fields, the rest in each by a toss."""
    batch = make_batch([40] * 250)
    for whole, share_id, share_all in ((1.0, 0.2, 0.2), (0.6, 0.16, 0.13), (0.0, 0.1, 0.025)):
        hidden = recover(batch, item_rate=0.2, whole_item_rate=whole).hidden_items()
        assert hidden[..., 0].float().mean() == pytest.approx(share_id, abs=0.01)
        assert hidden.all(-1).float().mean() == pytest.approx(share_all, abs=0.01)
        for field in fields.item[1:]:
            assert hidden[..., field.start].float().mean() == pytest.approx(share_id, abs=0.01)


def test_behaviours_are_hidden_at_their_rate(fields, make_batch, recover) -> None:
    """A sequence hides behaviour_rate of its own events, rounded up, whatever it shares a batch with."""
    lengths = [*range(41)] * 4
    batch = make_batch(lengths)
    outcome = recover(batch, behaviour_rate=0.25, item_rate=0.4, whole_item_rate=1.0)
    hidden = outcome.hidden_behaviours()
    assert hidden.sum(1).tolist() == [math.ceil(0.25 * length) for length in lengths]
    # A column that were hidden alone would not have been counted.
    sizes = torch.tensor([field.size for field in fields.behaviour])
    assert torch.equal((outcome.given["behaviours"] == sizes).any(-1), hidden)
    # The maskings are drawn apart, and an event's behaviour is hidden wherever it stands.
    assert outcome.hidden_items()[hidden][:, 0].float().mean() == pytest.approx(0.4, abs=0.05)
    anywhere = recover(make_batch([8] * 500), behaviour_rate=0.25).hidden_behaviours()
    assert anywhere.float().mean(0).tolist() == pytest.approx([0.25] * 8, abs=0.08)


def test_hidden_ids_teach_all_embeddings(fields, make_batch, recover) -> None:
    """The softmax over the catalogue reaches the embedding of every item that has an id."""
    batch = make_batch([6, 6])
    outcome = recover(batch, item_rate=0.5, whole_item_rate=1.0)
    outcome.losses["item.id"].backward()
    rows = outcome.model.items.tables[0].weight.grad.abs().sum(1)
    assert (rows[FIRST_VALUE : fields.item[0].size] > 0).all()


@pytest.mark.parametrize("heads", [0, 2])
def test_a_batch_without_targets_is_harmless(make_batch, recover, heads) -> None:
    """Where all is unknown, missing or padding, the losses are zero and the gradients finite."""
    events = make_batch([6, 2, 0])
    nothing = dataclasses.replace(
        events,
        items=events.items.clamp(max=UNKNOWN),
        behaviours=events.behaviours.clamp(max=UNKNOWN),
        labels=torch.full_like(events.labels, -1),
    )
    for batch in (nothing, make_batch([0, 0])):
        outcome = recover(batch, item_rate=0.9, behaviour_rate=0.9, attribute_matches=heads)
        assert {loss.item() for loss in outcome.losses.values()} == {0.0}
        found = outcome.gradients()
        assert found
        assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("sampled", [20_000, 5], ids=["full", "sampled"])
def test_all_parts_of_matches_learn(make_batch, recover, sampled) -> None:
    """Where to look, how strongly, and what values are worth, by the full softmax and the sampled one."""
    outcome = recover(make_batch([12, 9]), item_rate=0.4, attribute_matches=2, sampled_items=sampled)
    found = {name: grad for name, grad in outcome.gradients().items() if name.startswith("matches.")}
    assert {name.split(".")[1] for name in found} == {"query", "key", "strength", "worth"}
    assert all(gradient.any() for name, gradient in found.items() if not name.startswith("matches.key.bias"))


def test_only_event_labels_reach_the_tower(make_batch, recover) -> None:
    """Without event labels there is no such loss and the tower does not move; with them it learns."""
    batch = make_batch([8, 3])
    unlabelled = recover(dataclasses.replace(batch, labels=torch.full_like(batch.labels, -1)))
    assert "candidate.label" not in unlabelled.losses
    assert not any(grad.any() for name, grad in unlabelled.gradients().items() if name.startswith("tower."))
    labelled = recover(batch)
    assert labelled.losses["candidate.label"] > 0
    moved = labelled.gradients()
    assert all(moved[name].any() for name in ("tower.0.weight", "tower.3.weight"))


@pytest.mark.parametrize("columns", [slice(0, 1), slice(1, 3), slice(None)])
def test_drop_to_unknown(make_batch, columns) -> None:
    """Whole rows of the columns become unknown at the rate; padding, other columns and the input stay."""
    codes = make_batch([*[60] * 50, 80]).items[:-1]
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


def test_unknowns_are_shown_and_not_asked_for(make_batch, recover) -> None:
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


def test_total_is_the_weighted_sum(make_batch, recover) -> None:
    """Each loss counts with its own kind's weight."""
    batch = make_batch([8, 3])
    options = {"item_rate": 0.5, "whole_item_rate": 1.0}
    plain = recover(batch, **options).losses
    assert all(loss > 0 for loss in plain.values())
    for weights in ({"item": 2.0, "behaviour": 0.5, "candidate": 3.0}, {"candidate": 0.0}):
        weighed = recover(batch, **options, **{f"{kind}_weight": w for kind, w in weights.items()}).losses
        by_hand = sum(
            weights.get(name.split(".")[0], 1.0) * loss.item()
            for name, loss in plain.items()
            if name != "total"
        )
        assert weighed["total"].item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "kinds", "hides_items", "hides_behaviours"),
    [
        ({"item_weight": 0.0}, {"behaviour", "candidate"}, False, True),
        ({"behaviour_weight": 0.0}, {"item", "candidate"}, True, True),
        ({"behaviour_weight": 0.0, "held_out_rate": 0.3}, {"item", "candidate"}, True, False),
        ({"behaviour_weight": 0.0, "candidate_weight": 0.0}, {"item"}, True, False),
        ({"item_weight": 0.0, "behaviour_weight": 0.0, "held_out_rate": 0.3}, {"candidate"}, False, False),
        ({"attributes": False, "held_out_rate": 0.3}, {"item", "candidate"}, True, False),
    ],
)
def test_what_is_not_asked_for_is_not_hidden(
    make_batch, recover, options, kinds, hides_items, hides_behaviours
) -> None:
    """Where nothing of a kind is to be recovered, the history keeps it: an ablation loses a target and no input."""
    outcome = recover(make_batch([12, 5, 9]), **options)
    assert {name.split(".")[0] for name in outcome.losses} == kinds | {"total"}
    assert outcome.hidden_items().any() == hides_items
    assert outcome.hidden_behaviours().any() == hides_behaviours


def test_something_must_be_asked_for() -> None:
    """Weights that are all 0 are refused, behaviours that ids-only masking leaves out among them."""
    with pytest.raises(ValidationError, match="all weights are 0"):
        MaskingConfig(item_weight=0, candidate_weight=0, attributes=False)


ATTRIBUTES = ["item.tags", "item.price"]
BEHAVIOURS = ["behaviour.event_type", "behaviour.dwell", "candidate.event_type", "candidate.dwell"]


@pytest.mark.parametrize(
    ("empty", "names"),
    [
        ((), [*ATTRIBUTES, *BEHAVIOURS]),
        (("item",), BEHAVIOURS),
        (("behaviour",), ATTRIBUTES),
        (("user", "context"), [*ATTRIBUTES, *BEHAVIOURS]),
        (("item", "behaviour", "user", "context"), []),
    ],
    ids=["all", "no attributes", "no behaviour", "no user or context", "item ids alone"],
)
def test_any_group_may_be_empty(fields, make_batch, recover, empty, names) -> None:
    """Without item attributes, behaviour, user or context features the rest is recovered, and all of it learns."""
    left = dataclasses.replace(
        fields, **{group: fields.item[:1] if group == "item" else () for group in empty}
    )
    outcome = recover(make_batch([8, 3], left), left, item_rate=0.5, whole_item_rate=1.0)
    assert set(outcome.losses) == {"item.id", *names, "candidate.label", "total"}
    assert all(loss > 0 for loss in outcome.losses.values())
    found = outcome.gradients()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(found[name].any() for name in ("items.tables.0.weight", "encoder.start", "tower.0.weight"))
