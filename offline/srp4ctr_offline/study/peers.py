"""Our DIN and our pre-training beside public implementations of the same: `python -m srp4ctr_offline.study.peers`.

`install` makes the peers' environment `.venv-peers`, apart from ours, since they need other versions of what we need.
`din` compares our DIN with FuxiCTR's: first its answers and gradients under the same weights, then the speed of
training. `bert4rec` compares the speed of our pre-training with that of RecBole's BERT4Rec.

Every time is CPU time of one thread, which a busy machine changes less than the clock's; ours and theirs take turns.

Shapes: T batches, B rows of a batch, U histories, C candidates, L events, W code columns, F features, D width.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from srp4ctr.contract.errors import DataError
from srp4ctr.nn.baselines import Din
from srp4ctr.runtime.command import exit_code
from srp4ctr_offline.batches import folded, windows
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepared import TRAIN, Prepared
from srp4ctr_offline.pretrain import pretrain
from srp4ctr_offline.run import resolve
from srp4ctr_offline.study.peers_din import (
    LEARNING_RATE,
    MAX_GRADIENT_NORM,
    Arrays,
    DinBatch,
    as_peers_rows,
    as_peers_weights,
    din_batch,
    din_config,
    din_inputs,
    din_options,
    without_product,
)

HERE = Path(__file__).parent
FOLDER = Path(".venv-peers")
INSTALLED = "installed"
"""Left in the peers' environment when it is complete."""
REQUIREMENTS = HERE / "peers-requirements.txt"
ROWS = 1024
WARM_UP = 3


def install(folder: Path) -> None:
    """Make the peers' environment: torch as constraints.txt has it, the peers and what they need as pinned here."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # git and ruff then pass over it.
    (folder / ".gitignore").write_text("*\n")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", "constraints.txt", "torch"], check=True)
    # Without dependencies: RecBole asks for versions of ray and of colorlog that nothing else can live with.
    subprocess.run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)], check=True)
    (folder / INSTALLED).touch()


def ask(peers: Path, task: str, given: Arrays, options: dict[str, Any]) -> Arrays:
    """Have `peers_worker` do a task in the peers' environment."""
    if not (peers / INSTALLED).exists():
        raise DataError(
            f"{peers} is not the peers' environment; run: python -m srp4ctr_offline.study.peers install"
        )
    with tempfile.TemporaryDirectory(prefix="srp4ctr-peers-") as name:
        folder = Path(name)
        np.savez(folder / "input.npz", allow_pickle=False, **given)
        (folder / "options.json").write_text(json.dumps(options))
        command = [str((peers / "bin" / "python").absolute()), str(HERE / "peers_worker.py"), task, name]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"{task} failed in {peers}:\n{done.stderr[-2000:]}")
        with np.load(folder / "output.npz") as answer:
            return dict(answer)


def din_agreement(config: RunConfig, prepared: Prepared, peers: Path) -> dict[str, float]:
    """Largest differences between ours and FuxiCTR's in float64, under the same weights and on the same rows."""
    inputs = din_inputs(prepared)
    torch.manual_seed(config.seed)
    model = Din(din_config(config), inputs.fields, prepared.max_events)
    without_product(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # With fresh embeddings all answers would be much the same.
            weight.mul_(10.0 if ".tables." in name else 2.0)
    model = model.double().eval()
    rows = np.random.default_rng(config.seed).permutation(prepared.rows.of(TRAIN))[:ROWS, None]
    batch = din_batch(prepared, inputs, rows, prepared.rows.cut[rows[:, 0]])
    logit_UC = model(*batch.inputs)
    F.binary_cross_entropy_with_logits(logit_UC, batch.labels.double()).backward()  # type: ignore[no-untyped-call]
    table = model.items.tables[0].weight
    assert isinstance(table, nn.Parameter)
    assert table.grad is not None
    given = {**as_peers_weights(model), **as_peers_rows(batch)}
    answer = ask(peers, "din_agreement", given, din_options(model.config, inputs.fields))
    probability = torch.sigmoid(logit_UC[:, 0]).detach().numpy()
    return {
        "rows": len(rows),
        "probability_spread": float(probability.std()),
        "largest_probability_difference": float(np.abs(answer["probability"] - probability).max()),
        "largest_item_gradient": float(np.abs(answer["gradient"]).max()),
        "largest_item_gradient_difference": float(np.abs(answer["gradient"] - table.grad.numpy()).max()),
    }


def din_seconds(model: Din, batches: Sequence[DinBatch]) -> NDArray[np.float64]:
    """CPU seconds [T] of training steps as FuxiCTR's are: logloss, backward, clipped gradient, Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    model.train()
    seconds = []
    for batch in batches:
        began = time.process_time()
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(*batch.inputs), batch.labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        seconds.append(time.process_time() - began)
    return np.array(seconds)


def din_speed(
    config: RunConfig, prepared: Prepared, peers: Path, repeats: int, steps: int
) -> dict[str, list[float]]:
    """Rows per second by run, of ours and FuxiCTR's: 1,024 rows a step, made into tensors before the clock starts."""
    inputs, sizes = din_inputs(prepared), din_config(config)
    share = config.finetune.rows_per_history
    groups, _ = folded(prepared, share, np.random.default_rng(config.seed))
    full = groups[(groups >= 0).all(1)]
    need = -(-ROWS // share)
    if len(full) < need:
        raise DataError(f"{len(full)} users have {share} training rows in a row; the comparison needs {need}")
    together, apart = [], []
    for step in range(WARM_UP + steps):
        rows_UC = np.roll(full, -step * need, axis=0)[:need]
        rows_B1 = rows_UC.reshape(-1, 1)
        together.append(din_batch(prepared, inputs, rows_UC, prepared.rows.cut[rows_UC[:, 0]]))
        apart.append(din_batch(prepared, inputs, rows_B1, prepared.rows.cut[rows_B1[:, 0]]))
    rows = [as_peers_rows(batch) for batch in apart]
    given = {name: np.stack([one[name] for one in rows]) for name in rows[0]}

    def ours(batches: Sequence[DinBatch]) -> NDArray[np.float64]:
        torch.manual_seed(config.seed)
        return din_seconds(Din(sizes, inputs.fields, prepared.max_events), batches)

    def theirs() -> NDArray[np.float64]:
        return ask(peers, "din_speed", given, din_options(sizes, inputs.fields))["seconds"]

    runs: dict[str, Callable[[], NDArray[np.float64]]] = {
        "FuxiCTR": theirs,
        "ours, a history a row": lambda: ours(apart),
        f"ours, a history for {share} rows": lambda: ours(together),
    }
    return in_turn(runs, repeats, lambda seconds: need * share / float(np.median(seconds[WARM_UP:])))


def ids_alone(prepared: Prepared) -> Prepared:
    """The same events and rows as if item ids were all that is known: what BERT4Rec sees."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("item_attributes", "behaviour_features", "user_features", "context_features"), ()
    )
    transforms = prepared.transforms
    return dataclasses.replace(
        prepared,
        transforms=dataclasses.replace(transforms, schema=transforms.schema.model_copy(update=nothing)),
        items=dataclasses.replace(prepared.items, codes=prepared.items.codes[:, :1]),
        events=dataclasses.replace(prepared.events, behaviours=prepared.events.behaviours[:, :0]),
        users=dataclasses.replace(prepared.users, codes=prepared.users.codes[:, :0]),
        rows=dataclasses.replace(prepared.rows, contexts=prepared.rows.contexts[:, :0]),
    )


def bert4rec_speed(
    config: RunConfig, prepared: Prepared, peers: Path, repeats: int, batch: int
) -> dict[str, list[float]]:
    """Sequences per second by run: one epoch over the same training events, loading and masking included.

    The same task is what BERT4Rec learns: hidden items, by their ids, from an encoder that nothing reads.
    """
    users, ends = windows(prepared, np.random.default_rng(config.seed))
    sequences = prepared.histories(users, ends).items[..., 0].astype(np.int64)
    sizes = config.model
    options = {
        "MAX_ITEM_LIST_LENGTH": prepared.max_events,
        "train_batch_size": batch,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "hidden_size": sizes.width,
        "inner_size": sizes.feed_forward * sizes.width,
        "hidden_dropout_prob": sizes.dropout,
        "attn_dropout_prob": sizes.dropout,
        "mask_ratio": config.pretrain.masking.item_rate,
        "learning_rate": config.pretrain.learning_rate,
        "seed": config.seed,
    }
    given = {"sequences": sequences, "codes": np.array(prepared.transforms.fields.item[0].size)}
    epoch = config.pretrain.model_copy(update={"epochs": 1, "batch_size": batch, "prefix_rate": 0.0})
    once = config.model_copy(update={"threads": 1, "pretrain": epoch})
    unread = epoch.masking.model_copy(update={"candidate_weight": 0.0, "held_out_rate": 0.0})
    encoder_alone = once.model_copy(update={"pretrain": epoch.model_copy(update={"masking": unread})})

    def ours(config: RunConfig, data: Prepared) -> NDArray[np.float64]:
        began = time.process_time()
        pretrain(config, data)
        return np.array([time.process_time() - began])

    def theirs() -> NDArray[np.float64]:
        answer = ask(peers, "bert4rec_speed", given, {"config": options})
        # RecBole counts its padding among the items; of our codes, 0 and 1 are none.
        assert int(answer["sequences"]) == len(users)
        assert int(answer["items"]) - 1 == int(given["codes"]) - 2
        return answer["seconds"]

    runs: dict[str, Callable[[], NDArray[np.float64]]] = {
        "RecBole's BERT4Rec": theirs,
        "ours, the same task": lambda: ours(encoder_alone, ids_alone(prepared)),
        "ours, with side information and candidates": lambda: ours(once, prepared),
    }
    return in_turn(runs, repeats, lambda seconds: len(users) / float(seconds[0]))


def in_turn(
    runs: Mapping[str, Callable[[], NDArray[np.float64]]],
    repeats: int,
    rate: Callable[[NDArray[np.float64]], float],
) -> dict[str, list[float]]:
    """Rates by name, one a repeat; each repeat runs all, one after the other."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            rates[name].append(round(rate(run()), 1))
    return rates


def speed_table(rates: Mapping[str, Sequence[float]], unit: str) -> tuple[list[str], dict[str, float]]:
    """Lines of a table, and each median as a multiple of the first, which is the peer's."""
    base = float(np.median(next(iter(rates.values()))))
    ratio = {name: round(float(np.median(runs)) / base, 2) for name, runs in rates.items()}
    lines = [f"| {unit} per second | median | ratio | runs |", "|---|---|---|---|"]
    for name, runs in rates.items():
        each = ", ".join(f"{value:,.0f}" for value in runs)
        lines.append(f"| {name} | {np.median(runs):,.0f} | {ratio[name]:.2f} | {each} |")
    return lines, ratio


def compare_din(arguments: argparse.Namespace, config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """Agreement and speed of DIN."""
    agreement = din_agreement(config, prepared, arguments.peers)
    print("FuxiCTR's DIN with our weights, float64, largest absolute difference")
    print(
        f"  of {agreement['rows']} click probabilities: {agreement['largest_probability_difference']:.1e}\n"
        f"  of the item embeddings' gradient: {agreement['largest_item_gradient_difference']:.1e}, "
        f"where its largest entry is {agreement['largest_item_gradient']:.1e}\n"
    )
    rates = din_speed(config, prepared, arguments.peers, arguments.repeats, arguments.steps)
    lines, ratio = speed_table(rates, "training rows")
    print("\n".join(lines))
    return {"agreement": agreement, "rows_per_second": rates, "ratio": ratio}


def compare_bert4rec(arguments: argparse.Namespace, config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """Speed of pre-training."""
    asked = {"layers": arguments.layers, "feed_forward": arguments.feed_forward}
    sizes = config.model.model_copy(update={name: size for name, size in asked.items() if size is not None})
    config = config.model_copy(update={"model": sizes})
    rates = bert4rec_speed(config, prepared, arguments.peers, arguments.repeats, arguments.batch)
    lines, ratio = speed_table(rates, "sequences")
    print("\n".join(lines))
    return {
        "layers": sizes.layers,
        "feed_forward": sizes.feed_forward,
        "sequences_per_second": rates,
        "ratio": ratio,
    }


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one comparison; its last line is the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m srp4ctr_offline.study.peers", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = {"din": compare_din, "bert4rec": compare_bert4rec}
    for name, what in (
        ("install", "make the peers' environment"),
        ("din", "our DIN against FuxiCTR's"),
        ("bert4rec", "our pre-training against RecBole's BERT4Rec"),
    ):
        command = commands.add_parser(name, help=what)
        command.add_argument("--peers", type=Path, default=FOLDER, help=f"their environment ({FOLDER})")
        if name in compare:
            command.add_argument(
                "--config", type=Path, required=True, help="a run's TOML file; the run is prepared"
            )
            command.add_argument("--run", type=Path, help="the run's folder, where it is not the usual one")
            command.add_argument("--repeats", type=_count, default=3, help="runs of each, in turn (3)")
        if name == "din":
            command.add_argument("--steps", type=_count, default=10, help="timed steps a run (10)")
        if name == "bert4rec":
            command.add_argument("--batch", type=_count, default=64, help="sequences a step (64)")
            command.add_argument(
                "--layers", type=_count, help="of the encoder, on both sides (default: the configuration's)"
            )
            command.add_argument(
                "--feed-forward", type=_count, help="its feed-forward layers' width, in widths; likewise"
            )
    arguments = parser.parse_args(argv)

    def run() -> int:
        if arguments.command == "install":
            install(arguments.peers)
            return 0
        torch.set_num_threads(1)
        config, folder = resolve(arguments)
        prepared = Prepared.load(folder / "prepared")
        result = compare[arguments.command](arguments, config, prepared)
        print(json.dumps({"comparison": arguments.command, "data": config.name, **result}))
        return 0

    return exit_code(f"peers {arguments.command}", run)


if __name__ == "__main__":
    sys.exit(main())
