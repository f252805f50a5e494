"""`srp4ctr pretrain`: FG-BERT over the whole served path, on training events only."""

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.vocabulary import FIRST_VALUE
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.nn.objectives import PretrainObjective
from srp4ctr_offline.batches import by_length, data_of_epoch, windows
from srp4ctr_offline.checkpoint import new_model, save_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.plots import plot_epochs
from srp4ctr_offline.prepared import Ints, Prepared
from srp4ctr_offline.run import job_arguments, seed_everything, start_stage, training_device
from srp4ctr_offline.training import History, Trainer, autocast, tensors, write_metrics


class Pretrained(NamedTuple):
    """A pre-trained model, the heads that taught it, and its losses by epoch."""

    model: Srp4Ctr
    objective: PretrainObjective
    history: History


def new_objective(config: RunConfig, prepared: Prepared) -> PretrainObjective:
    """An objective with fresh heads for the prepared data."""
    fields, codes = prepared.transforms.fields, prepared.items.codes
    own_id = codes[:, 0] >= FIRST_VALUE
    catalogue = np.empty((int(own_id.sum()), codes.shape[1]), np.int32)
    catalogue[codes[own_id, 0] - FIRST_VALUE] = codes[own_id]
    trained = prepared.events.item[prepared.in_training()]
    counts = np.bincount(codes[trained, 0], minlength=fields.item[0].size)[FIRST_VALUE:]
    return PretrainObjective(
        fields,
        config.model.width,
        config.pretrain.masking,
        torch.from_numpy(catalogue),
        torch.from_numpy(counts),
    )


def pretrain(config: RunConfig, prepared: Prepared) -> Pretrained:
    """Train a new model on the training events.

    Where candidates had no part in it, they end with the trained encoder's keys and values to read with (the paper's
    uni cross-attention, claim 4).
    """
    if not prepared.users.train_events.any():
        raise DataError(
            "there are no training events to pre-train on; run srp4ctr finetune CONFIG --from-scratch"
        )
    options = config.pretrain
    generator, device = seed_everything(config), training_device(config)
    model = new_model(config, prepared).train().to(device)
    objective = new_objective(config, prepared).to(device)

    def draw() -> tuple[Prepared, Ints, Ints]:
        epoch_data = data_of_epoch(prepared, options, generator)
        return epoch_data, *windows(epoch_data, generator, options.prefix_rate)

    epoch_data, users, ends = draw()
    history: History = []
    with Trainer(
        "pre-training", [([*model.parameters(), *objective.parameters()], 1.0)], options, len(users)
    ) as trainer:
        for epoch in range(options.epochs):
            if epoch:
                epoch_data, users, ends = draw()
            lengths = epoch_data.lengths(ends)
            seen: defaultdict[str, list[float]] = defaultdict(list)
            slots = 0
            for batch in by_length(lengths, options.batch_size, generator):
                items, behaviours, labels = epoch_data.histories(users[batch], ends[batch])
                inputs = tensors(device, items, behaviours, labels, prepared.users.codes[users[batch]])
                with autocast(config, device):
                    losses = objective(model, *inputs)
                trainer.step(losses["total"])
                for name, loss in losses.items():
                    seen[name].append(loss.item())
                slots += labels.size
            means = {name: float(np.mean(values)) for name, values in seen.items()}
            history.append({"epoch": epoch + 1, **means, "padding_share": 1 - float(lengths.sum()) / slots})
            trainer.show({"loss": means["total"]})
    if not options.masking.candidate_weight:
        # What reads the state has learnt nothing, and began with the keys and values of a random encoder.
        model.copy_keys_and_values()
    return Pretrained(model.eval().cpu(), objective.eval().cpu(), history)


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    config, folder = job_arguments(
        "pretrain",
        argv,
        reads="the run's prepared/",
        writes="pretrain/ with model.pt, metrics.json, loss.png",
    )
    prepared = Prepared.load(folder / "prepared")
    stage = start_stage(folder / "pretrain", config)
    began = time.monotonic()
    model, _, history = pretrain(config, prepared)
    save_model(model, prepared.transforms, stage)
    write_metrics(stage, history, time.monotonic() - began)
    last = history[-1]
    panels = [[name] for name in last if name not in ("epoch", "padding_share")]
    plot_epochs(history, panels, stage / "loss.png", "Pre-training: mean losses")
    print("  ".join(f"{name} {value:.3f}" for name, value in last.items() if name != "epoch"))
    print(f"written to {stage}")
    return 0
