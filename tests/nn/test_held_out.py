"""What is taken out of a history leaves no trace in it, and the objective's other switches do what they say."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN

STATES = {
    "tokens": {},
    "every layer read": {"query_reads": "every", "query_layers": 2},
    "mean": {"query_layers": 0},
    "no cross-attention": {"cross_layers": 0},
    "sequence": {"state": "sequence"},
    "recent events": {"recent_events": 5},
}
LENGTHS = [12, 1, 0, 5, 9]


def held_out(batch, outcome) -> torch.Tensor:
    """Which events [U, L] were taken out of the histories."""
    return (outcome.given["items"][..., 0] == PADDING) & (batch.items[..., 0] != PADDING)


@pytest.fixture(params=STATES)
def one_state(request, sizes):
    """Sizes of a model with each kind of state, of two layers where it has a choice."""
    options = {"layers": 2, "cross_layers": 2} | STATES[request.param]
    return type(sizes).model_validate(sizes.model_dump() | options)


def test_a_held_out_event_leaves_no_trace(make_batch, recover, one_state) -> None:
    """Neither the item nor the behaviour nor the label of a held-out event changes what its item then attends to."""
    batch, other = make_batch(LENGTHS), make_batch(LENGTHS, seed=1)
    options = {
        "sizes": one_state,
        "held_out_rate": 0.3,
        "item_rate": 0.3,
        "next_item_rate": 0.5,
        "attribute_matches": 2,
    }
    true = recover(batch, **options)
    held = held_out(batch, true)
    assert held.any()
    behaviours = torch.where(held[..., None], other.behaviours, batch.behaviours)
    labels = torch.where(held, 1 - batch.labels, batch.labels)
    items = torch.where(held[..., None], other.items, batch.items)
    spoilt = recover(dataclasses.replace(batch, items=items, behaviours=behaviours, labels=labels), **options)
    assert torch.equal(true.given["items"], spoilt.given["items"])
    assert torch.equal(true.matched[0], spoilt.matched[0])
    shown = F.pad(~held, (0, 1), value=True)
    for name in ("history", "bias", "read.history"):
        assert torch.equal(true.given[name][shown], spoilt.given[name][shown]), name
    states = [name for name in true.given if name.startswith("state.")]
    assert len(states) == len(true.model.state_layout.arrays) >= 2
    for name in states:
        mine, other = (
            # What stands beside a place without an item is read by nobody.
            one.given[name][one.given["state.recent_ids"] != PADDING]
            if name == "state.recent_behaviours"
            else one.given[name]
            for one in (true, spoilt)
        )
        assert torch.equal(mine, other), name
    for name, loss in true.losses.items():
        assert (loss != spoilt.losses[name]) == name.startswith(("candidate.", "total")), name
    # The same candidates find the same in both, which is all that the tower has of the history.
    told = recover(dataclasses.replace(batch, behaviours=behaviours, labels=labels), **options)
    for name in ("candidates", "z", "logit"):
        assert torch.equal(true.given[name], told.given[name]), name


def test_held_out_events_are_the_candidates(make_batch, recover, whereabouts) -> None:
    """held_out_rate of a history's events, rounded up, are the candidates, and each is asked for its own outcome."""
    batch = make_batch([*LENGTHS, 40])
    batch.labels[0, -6:] = -1
    outcome = recover(batch, held_out_rate=0.3, unknown_rate=0.0)
    held, given = held_out(batch, outcome), outcome.given
    assert held.sum(1).tolist() == [math.ceil(0.3 * length) for length in (*LENGTHS, 40)]
    assert (given["items"][batch.items[..., 0] == PADDING] == PADDING).all()
    logloss = []
    for index, field in enumerate(outcome.model.fields.behaviour):
        vectors, targets = outcome.asked[f"candidate.{field.name}"]
        assert len(vectors) == held.sum()
        for vector, target in zip(vectors, targets, strict=True):
            user, candidate = whereabouts(vector, given["z"])
            (event,) = whereabouts(given["candidates"][user, candidate], batch.items[user])
            assert held[user, event]
            assert target.tolist() == [batch.behaviours[user, event, index]]
            if not index and (label := batch.labels[user, event].item()) >= 0:
                logloss.append(F.softplus((-1) ** label * given["logit"][user, candidate]).item())
    assert 0 < len(logloss) < held.sum()
    assert outcome.losses["candidate.label"].item() == pytest.approx(sum(logloss) / len(logloss), rel=1e-5)


def test_what_is_held_out_is_not_recovered_from_the_history(make_batch, recover) -> None:
    """Held-out events are neither hidden items nor hidden behaviours: those are drawn from the events that remain."""
    batch = make_batch([*LENGTHS, 40])
    outcome = recover(batch, held_out_rate=0.3, item_rate=0.4, whole_item_rate=1.0, behaviour_rate=0.5)
    held = held_out(batch, outcome)
    left = ((batch.items[..., 0] != PADDING) & ~held).sum(1)
    assert outcome.hidden_behaviours().sum(1).tolist() == [math.ceil(0.5 * n) for n in left.tolist()]
    hidden = outcome.hidden_items()[..., 0]
    assert hidden.any()
    assert not (held & (hidden | outcome.hidden_behaviours())).any()
    assert torch.equal(outcome.asked["item.id"][1], batch.items[hidden][:, :1])
    assert len(outcome.asked["behaviour.event_type"][1]) == outcome.hidden_behaviours().sum()


def test_every_event_is_held_out_now_and_then(make_batch, recover) -> None:
    """An event is held out wherever it stands, and only held-out labels are asked for."""
    batch = make_batch([8] * 500)
    outcome = recover(batch, held_out_rate=0.25)
    held = held_out(batch, outcome)
    assert held.float().mean(0).tolist() == pytest.approx([0.25] * 8, abs=0.08)
    labels = torch.where(held, batch.labels, 1 - batch.labels)
    spoilt = recover(dataclasses.replace(batch, labels=labels), held_out_rate=0.25)
    assert {name: loss.item() for name, loss in outcome.losses.items()} == {
        name: loss.item() for name, loss in spoilt.losses.items()
    }


@pytest.mark.parametrize("attributes", [True, False])
@pytest.mark.parametrize("held_out_rate", [0.0, 0.3])
def test_the_newest_item_is_hidden(make_batch, recover, attributes, held_out_rate) -> None:
    """With next_item_rate 1 the newest event that a history shows is hidden, all of it, and with it nothing else."""
    batch = make_batch([*LENGTHS, 40])
    options = {"item_rate": 1e-9, "attributes": attributes, "held_out_rate": held_out_rate}
    outcome = recover(batch, next_item_rate=1.0, **options)
    shown = (batch.items[..., 0] != PADDING) & ~held_out(batch, outcome)
    newest = shown & (shown.flip(1).cumsum(1).flip(1) == 1)
    assert newest.sum() == (shown.any(1)).sum() > 3
    hidden = outcome.hidden_items()
    assert torch.equal(hidden[..., 0], newest)
    assert torch.equal(hidden[..., 1:], newest[..., None].expand_as(hidden[..., 1:]))
    assert torch.equal(outcome.asked["item.id"][1], batch.items[newest][:, :1])
    assert not recover(batch, **options).hidden_items().any()


def test_newest_items_are_hidden_at_their_rate(make_batch, recover) -> None:
    """next_item_rate is a share of the histories, and item_rate goes on beside it."""
    batch = make_batch([10] * 800)
    hidden = recover(batch, next_item_rate=0.4, item_rate=0.1, whole_item_rate=1.0).hidden_items()[..., 0]
    share = hidden.float().mean(0)
    assert share[-1] == pytest.approx(1 - 0.6 * 0.9, abs=0.05)
    assert share[:-1].mean() == pytest.approx(0.1, abs=0.01)


def test_ids_alone(make_batch, recover) -> None:
    """Without attributes a hidden item is hidden whole, and its id alone is asked beside the candidates' outcomes."""
    batch = make_batch([*LENGTHS, 40])
    outcome = recover(batch, attributes=False, item_rate=0.4, unknown_rate=0.0)
    asked = {"item.id", "candidate.event_type", "candidate.dwell", "candidate.label"}
    assert set(outcome.losses) == {*asked, "total"}
    assert all(loss > 0 for loss in outcome.losses.values())
    hidden = outcome.hidden_items()
    assert hidden[..., 0].any()
    assert torch.equal(hidden, hidden[..., :1].expand_as(hidden))
    assert torch.equal(outcome.given["items"][~hidden[..., 0]], batch.items[~hidden[..., 0]])
    assert outcome.losses["total"].item() == pytest.approx(
        sum(outcome.losses[name].item() for name in asked), rel=1e-5
    )


def test_items_may_be_compared_with_all_that_is_known_of_them(make_batch, recover) -> None:
    """With item_target "item" a hidden id is compared with id and attribute embeddings, which then all learn."""
    batch = make_batch([12, 8])
    outcome = recover(batch, item_target="item", item_rate=0.5, whole_item_rate=1.0)
    vectors, codes = outcome.asked["item.id"]
    model, objective = outcome.model, outcome.objective
    logits = F.gelu(objective.item_head.transform(vectors)) @ model.items(objective.catalogue_VW).T
    by_hand = F.cross_entropy(logits, codes[:, 0].long() - FIRST_VALUE)
    assert outcome.losses["item.id"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    ids = recover(batch, item_rate=0.5, whole_item_rate=1.0)
    assert ids.losses["item.id"] != outcome.losses["item.id"]
    for one, learns in ((outcome, True), (ids, False)):
        one.losses["item.id"].backward()
        shown = set(one.given["items"][..., -1].flatten().tolist())
        absent = [code for code in range(FIRST_VALUE, one.model.fields.item[-1].size) if code not in shown]
        grad = one.model.items.tables[-1].weight.grad
        assert bool(grad[absent].any()) == (learns and bool(absent))


@pytest.mark.parametrize("item_target", ["id", "item"])
def test_a_sample_of_the_catalogue_teaches_it(make_batch, recover, item_target) -> None:
    """Where the catalogue has more items than are drawn a step, the loss is close to the full one, and is learnt."""
    batch = make_batch([40] * 50)
    options = {"item_target": item_target, "item_rate": 0.3, "whole_item_rate": 1.0}
    full = recover(batch, **options)
    sampled = recover(batch, sampled_items=37, **options)
    assert sampled.losses["item.id"] != full.losses["item.id"]
    assert sampled.losses["item.id"].item() == pytest.approx(full.losses["item.id"].item(), abs=0.3)
    assert sampled.gradients()["items.tables.0.weight"].any()


@pytest.mark.parametrize("masking", [{"held_out_rate": 0.5}, {"next_item_rate": 1.0}, {"sampled_items": 5}])
def test_padding_and_unknowns_are_harmless(make_batch, recover, masking) -> None:
    """Empty histories and such without a single known value cost nothing, and give finite gradients."""
    nothing = make_batch([6, 2, 0])
    nothing = dataclasses.replace(
        nothing,
        items=nothing.items.clamp(max=UNKNOWN),
        behaviours=nothing.behaviours.clamp(max=UNKNOWN),
        labels=torch.full_like(nothing.labels, -1),
    )
    for batch in (nothing, make_batch([0, 0])):
        outcome = recover(batch, **masking)
        assert {loss.item() for loss in outcome.losses.values()} == {0.0}
        assert all(gradient.isfinite().all() for gradient in outcome.gradients().values())
