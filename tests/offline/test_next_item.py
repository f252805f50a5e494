"""Next-item ranking on made-up sequences, where what comes next is known."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch

from srp4ctr.contract.vocabulary import UNKNOWN
from srp4ctr_offline.checkpoint import new_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.pretrain import new_objective, pretrain
from srp4ctr_offline.study.next_item import NEGATIVES, hit_rate, ndcg, rank_next

ITEMS = 130
PER_BRAND = 10
EVENTS = 9


def made_up(folder, paths: list[list[int]]) -> tuple[RunConfig, Prepared]:
    """Users who go these ways through the catalogue; their last two events are of validation and test."""
    rows = pl.DataFrame(
        [
            {
                "user_id": f"u{user:03}",
                "item_id": f"i{item:03}",
                "order": order,
                "label": order % 2,
                "split": {len(path) - 1: "test", len(path) - 2: "valid"}.get(order, "train"),
            }
            for user, path in enumerate(paths)
            for order, item in enumerate(path)
        ]
    )
    rows.write_parquet(folder / "rows.parquet")
    pl.DataFrame(
        {
            "item_id": [f"i{item:03}" for item in range(ITEMS)],
            "brand": [f"b{item // PER_BRAND}" for item in range(ITEMS)],
        }
    ).write_parquet(folder / "items.parquet")
    rows.select(pl.col("user_id").unique()).write_parquet(folder / "users.parquet")
    config = RunConfig.model_validate(
        {
            "name": "next",
            "threads": 1,
            "tables": {"folder": folder, "events": "rows.parquet"},
            "schema": {"max_events": 8},
            "split": {"rule": "column"},
            "model": {
                "width": 32,
                "heads": 2,
                "layers": 1,
                "query_tokens": 2,
                "cross_layers": 1,
                "dropout": 0.0,
            },
            "pretrain": {
                "epochs": 40,
                "batch_size": 64,
                "learning_rate": 1e-2,
                "prefix_rate": 0.5,
                "masking": {
                    "attributes": False,
                    "next_item_rate": 1.0,
                    "item_rate": 0.1,
                    "unknown_rate": 0.0,
                    "candidate_weight": 0.0,
                },
            },
        }
    )
    return config, prepare(config)


@pytest.fixture(scope="module")
def ring(tmp_path_factory) -> tuple[RunConfig, Prepared]:
    """Users who walk round one ring of all items, each from a place of his own: an item tells the next one."""
    ways = np.random.default_rng(0).permutation(ITEMS)
    paths = [[int(ways[(start + step) % ITEMS]) for step in range(EVENTS)] for start in range(ITEMS)] * 2
    return made_up(tmp_path_factory.mktemp("ring"), paths)


def fresh(config: RunConfig, prepared: Prepared):
    """A model and an objective that nothing has taught."""
    torch.manual_seed(0)
    return new_model(config, prepared).eval(), new_objective(config, prepared).eval()


def test_a_rule_is_learnt_and_found(ring) -> None:
    """Where the next item follows from the last one, brief pre-training finds it among all, and a fresh model does not."""
    config, prepared = ring
    trained = pretrain(config, prepared)
    for back in (0, 1):
        ranks = rank_next(trained.model, trained.objective, prepared, back=back)
        assert len(ranks.sampled) == len(ranks.all) == 2 * ITEMS
        assert min(hit_rate(ranks.sampled), hit_rate(ranks.all)) > 0.95
        assert min(ndcg(ranks.sampled), ndcg(ranks.all)) > 0.9
        chance = rank_next(*fresh(config, prepared), prepared, back=back)
        assert hit_rate(chance.sampled) < 0.25
        assert hit_rate(chance.all) < 0.25
        assert hit_rate(chance.sampled) == pytest.approx(10 / (NEGATIVES + 1), abs=0.08)


def test_the_target_itself_is_not_seen(ring) -> None:
    """Ranks are made from what precedes the target: with other last events the same logits rank other targets."""
    config, prepared = ring
    model, objective = fresh(config, prepared)
    seen = []
    model.encoder.register_forward_hook(lambda _, args, out: seen.append((args[2], out.output_USD)))
    events = prepared.events
    last = events.start[1:] - 1
    item = events.item.copy()
    item[last] = item[last][::-1]
    other = dataclasses.replace(prepared, events=dataclasses.replace(events, item=item))
    rank_next(model, objective, prepared, back=0)
    mine = [output for _, output in seen]
    seen.clear()
    rank_next(model, objective, other, back=0)
    assert all(torch.equal(one, two) for one, (_, two) in zip(mine, seen, strict=True))
    # Eight events precede the target, a history holds eight, and one place is the hidden event's.
    assert {padding.shape[1] for padding, _ in seen} == {8}


def test_a_brand_that_the_history_has_is_pointed_at(tmp_path) -> None:
    """Users who keep to a brand, in no order: matches find their next item at once, and a model without does not."""
    drawn = np.random.default_rng(1)
    brands = list(range(ITEMS // PER_BRAND)) * 20
    paths = [(brand * PER_BRAND + drawn.permutation(PER_BRAND)[:EVENTS]).tolist() for brand in brands]
    config, _ = made_up(tmp_path, paths)
    raw = config.model_dump(mode="json", by_alias=True)
    raw["schema"]["item_attributes"] = [{"name": "brand", "type": "categorical"}]
    raw["pretrain"] |= {"epochs": 1, "learning_rate": 1e-4}
    hits = {}
    for heads in (0, 2):
        raw["pretrain"]["masking"]["attribute_matches"] = heads
        asked = RunConfig.model_validate(raw)
        prepared = prepare(asked)
        trained = pretrain(asked, prepared)
        hits[heads] = hit_rate(rank_next(trained.model, trained.objective, prepared, back=0).sampled)
    assert hits[2] > 0.9
    assert hits[0] < 0.5
    assert trained.objective.matches is not None
    assert all((worth != 1).any() for worth in trained.objective.matches.worth)


FIVE = 5
WALKS = [[(start + step) % ITEMS for step in range(EVENTS)] for start in range(0, ITEMS, 3)]
"""Short ways that together come by all items in training, so that each item has an id."""


@pytest.fixture
def ranked(tmp_path):
    """Ranks of five users who all have the items 0 to 8 in this order, by a head that says `bias` of every item to all."""
    config, prepared = made_up(tmp_path, [list(range(EVENTS))] * FIVE + WALKS)
    model, objective = fresh(config, prepared)

    def rank(bias, back: int = 0) -> tuple[list[float], list[float]]:
        with torch.no_grad():
            for weight in objective.item_head.transform.parameters():
                weight.zero_()
            objective.item_head.bias.copy_(torch.as_tensor(bias, dtype=torch.float32))
        ranks = rank_next(model, objective, prepared, back=back)
        return ranks.sampled[:FIVE].tolist(), ranks.all[:FIVE].tolist()

    return rank


@pytest.mark.parametrize("back", [0, 1, 3])
def test_a_users_own_items_are_no_negatives(ranked, back) -> None:
    """Of a user's own items none is drawn, earlier or later; among all, only those of the history are left out.

    The target is worse than any of the user's other items and better than all the rest: drawn ones would show.
    """
    bias = np.zeros(ITEMS)
    bias[:EVENTS] = 5.0
    bias[EVENTS - 1 - back] = 1.0
    sampled, among_all = ranked(bias, back)
    assert sampled == [0.0] * FIVE
    assert among_all == [float(back)] * FIVE


def test_ties_count_half(ranked) -> None:
    """A head that knows nothing puts the target in the middle, and not in front; one that is wrong, last."""
    for own, share in ((0.0, 0.5), (-1.0, 1.0)):
        bias = np.zeros(ITEMS)
        bias[EVENTS - 1] = own
        sampled, among_all = ranked(bias)
        assert sampled == [NEGATIVES * share] * FIVE
        assert among_all == [(ITEMS - EVENTS) * share] * FIVE


def test_measures_of_ranks() -> None:
    """HR@10 counts places 0 to 9, and NDCG@10 weighs them by 1 / log2(place + 2)."""
    ranks = np.array([0.0, 1.0, 9.0, 9.5, 10.0, 50.0])
    assert hit_rate(ranks) == pytest.approx(4 / 6)
    by_hand = 1 + 1 / np.log2(3) + 1 / np.log2(11) + 1 / np.log2(11.5)
    assert ndcg(ranks) == pytest.approx(by_hand / 6)


def test_draws_repeat(ring) -> None:
    """The same seed gives the same ranks, another one draws other negatives and leaves the ranks among all."""
    model, objective = fresh(*ring)
    first, again, other = (rank_next(model, objective, ring[1], back=0, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.sampled, again.sampled)
    assert not np.array_equal(first.sampled, other.sampled)
    assert np.array_equal(first.all, other.all)


def test_users_without_history_or_target_are_left_out(tmp_path) -> None:
    """A user needs an event before the target to be ranked, and the target an id."""
    config, prepared = made_up(tmp_path, [*WALKS, [1, 2, 3], [4, 5, 6]])
    model, objective = fresh(config, prepared)
    assert [len(rank_next(model, objective, prepared, back=back).all) for back in (0, 1, 2)] == [
        len(WALKS) + 2,
        len(WALKS) + 2,
        len(WALKS),
    ]
    codes = prepared.items.codes.copy()
    codes[prepared.events.item[prepared.events.start[1] - 1], 0] = UNKNOWN
    nameless = dataclasses.replace(prepared, items=dataclasses.replace(prepared.items, codes=codes))
    assert len(rank_next(model, objective, nameless, back=0).all) == len(WALKS) + 1
