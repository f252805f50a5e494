"""The comparison with public implementations: both sides are given the same, and ours survives the translation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from srp4ctr.contract.errors import DataError
from srp4ctr.nn.baselines import BaselineConfig, Din
from srp4ctr_offline.prepared import TRAIN
from srp4ctr_offline.study import peers, peers_din
from srp4ctr_offline.study.peers_worker import write_sequences

PEERS = Path(__file__).parents[2] / peers.FOLDER
needs_peers = pytest.mark.skipif(
    not (PEERS / peers.INSTALLED).exists(),
    reason="the peers' environment is made by: python -m srp4ctr_offline.study.peers install",
)


@pytest.fixture
def din(tiny) -> Din:
    """Our DIN as it is compared."""
    torch.manual_seed(0)
    model = Din(
        BaselineConfig(width=8, tower=(6, 4), heads=2),
        peers_din.din_inputs(tiny.prepared).fields,
        tiny.prepared.max_events,
    )
    peers_din.without_product(model)
    return model.eval()


def rows_of(tiny, count: int) -> peers_din.DinBatch:
    """A batch of single rows."""
    rows = tiny.prepared.rows.of(TRAIN)[:count, None]
    cuts = tiny.prepared.rows.cut[rows[:, 0]]
    return peers_din.din_batch(tiny.prepared, peers_din.din_inputs(tiny.prepared), rows, cuts)


def test_the_peer_is_given_the_same_rows(tiny, din) -> None:
    """The textbook's DIN, written out on the peer's arrays and weights, answers as ours does on our own."""
    batch = rows_of(tiny, 50)
    given, weights = peers_din.as_peers_rows(batch), peers_din.as_peers_weights(din)
    events, candidates = (weights["weight.item"][given[name]] for name in ("events", "candidate"))
    query = np.broadcast_to(candidates[:, None], events.shape)
    x = np.concatenate([query, events, query - events, query * events], axis=-1)
    score = apply(weights, "attention", 2, x) * (given["events"] > 0)[..., None]
    side = [weights[f"weight.side{i}"][codes] for i, codes in enumerate(given["side"].T)]
    features = np.concatenate([*side, candidates, (score * events).sum(1)], axis=-1)
    with torch.no_grad():
        wanted = din(*batch.inputs)[:, 0].numpy()
    np.testing.assert_allclose(apply(weights, "tower", 3, features)[:, 0], wanted, atol=2e-5)
    fields = tiny.prepared.transforms.fields
    assert given["side"].shape == (50, len(fields.user) + len(fields.context))
    assert (given["events"] > 0).any(1).sum() > 25
    assert given["label"].tolist() == batch.labels[:, 0].tolist()


def apply(weights, name: str, layers: int, x: np.ndarray) -> np.ndarray:
    """Linear layers with ReLU between them."""
    for layer in range(layers):
        x = x @ weights[f"weight.{name}.{layer}.weight"].T + weights[f"weight.{name}.{layer}.bias"]
        x = np.maximum(x, 0) if layer < layers - 1 else x
    return x


def test_item_ids_alone(tiny) -> None:
    """Without all else, the same events and rows remain, and an item is its id."""
    bare = peers.ids_alone(tiny.prepared)
    fields = bare.transforms.fields
    assert fields.item == tiny.prepared.transforms.fields.item[:1]
    assert (fields.behaviour, fields.user, fields.context) == ((), (), ())
    users = np.arange(20)
    counts = tiny.prepared.event_counts()[users]
    whole, part = tiny.prepared.histories(users, counts), bare.histories(users, counts)
    np.testing.assert_array_equal(part.items, whole.items[..., :1])
    assert part.behaviours.shape == (*whole.labels.shape, 0)
    np.testing.assert_array_equal(part.labels, whole.labels)


def test_sequences_are_written_as_recbole_reads_them(tmp_path) -> None:
    """A sequence is a line without its padding, and the splits that are not used hold the whole catalogue."""
    write_sequences(tmp_path / "sequences", np.array([[0, 5, 3], [2, 3, 4], [0, 0, 6]]), 9)
    lines = (tmp_path / "sequences" / "sequences.train.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id_list:token_seq\titem_id:token"
    assert lines[1:] == ["train0\t5 3\t3", "train1\t2 3 4\t4", "train2\t6\t6"]
    for split in ("valid", "test"):
        lines = (tmp_path / "sequences" / f"sequences.{split}.inter").read_text().splitlines()[1:]
        assert " ".join(line.split("\t")[1] for line in lines) == "2 3 4 5 6 7 8"


def test_runs_take_turns() -> None:
    """Each repeat runs everything once, and a rate is kept for each."""
    order = []

    def run(name, seconds):
        def once():
            order.append(name)
            return np.array([seconds])

        return once

    rates = peers.in_turn({"a": run("a", 2.0), "b": run("b", 0.5)}, 2, lambda seconds: 10 / float(seconds[0]))
    assert order == ["a", "b", "a", "b"]
    assert rates == {"a": [5.0, 5.0], "b": [20.0, 20.0]}


def test_ratios_are_of_medians_to_the_peers() -> None:
    """The first row is the peer's, and the others are multiples of its median."""
    lines, ratio = peers.speed_table(
        {"theirs": [900.0, 1000.0, 5000.0], "ours": [2000.0, 2500.0, 100.0]}, "rows"
    )
    assert ratio == {"theirs": 1.0, "ours": 2.0}
    assert lines[2:] == [
        "| theirs | 1,000 | 1.00 | 900, 1,000, 5,000 |",
        "| ours | 2,000 | 2.00 | 2,000, 2,500, 100 |",
    ]


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_sizes_are_whole_numbers_above_0(text: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        peers.main(["bert4rec", "--config", "run.toml", "--layers", text])
    assert ended.value.code == 2
    assert f"argument --layers: {text!r} is no whole number of 1 or more" in capsys.readouterr().err


def test_without_the_peers_it_says_how_to_get_them(tiny, tmp_path, capsys) -> None:
    """A comparison without the peers' environment ends with the command that makes it."""
    with pytest.raises(DataError, match=r"run: python -m srp4ctr_offline\.study\.peers install"):
        peers.ask(tmp_path, "din_speed", {}, {})
    arguments = ["--config", str(tiny.config_path), "--run", str(tiny.run), "--peers", str(tmp_path)]
    assert peers.main(["bert4rec", *arguments]) == 1
    assert "peers install" in capsys.readouterr().err


@needs_peers
def test_din_agrees_with_fuxictr(tiny) -> None:
    """FuxiCTR's DIN with our weights gives our answers and our gradient, to the rounding of float64."""
    found = peers.din_agreement(tiny.config, tiny.prepared, PEERS)
    assert found["probability_spread"] > 0.01
    assert found["largest_probability_difference"] < 1e-12
    assert found["largest_item_gradient_difference"] < 1e-12 * found["largest_item_gradient"] + 1e-15


@needs_peers
def test_both_speeds_are_measured(tiny, capsys) -> None:
    """On small data, too, the comparison of pre-training ends with a table and a line of JSON."""
    arguments = ["--config", str(tiny.config_path), "--run", str(tiny.run), "--peers", str(PEERS)]
    assert peers.main(["bert4rec", *arguments, "--repeats", "1", "--batch", "16"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[0] == "| sequences per second | median | ratio | runs |"
    rates = json.loads(last)["sequences_per_second"]
    assert set(rates) == {
        "RecBole's BERT4Rec",
        "ours, the same task",
        "ours, with side information and candidates",
    }
    assert all(rate > 0 for runs in rates.values() for rate in runs)
