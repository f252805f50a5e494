"""`srp4ctr pretrain`: FG-BERT over the whole served path, on training events only."""

import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from srp4ctr.contract.errors import DataError
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.nn.objectives import PretrainObjective
from srp4ctr_offline.batches import by_length, windows
from srp4ctr_offline.checkpoint import new_model, save_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.plots import plot_epochs
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import job_arguments, seed_everything, start_stage
from srp4ctr_offline.training import History, Trainer, write_metrics


def pretrain(config: RunConfig, prepared: Prepared) -> tuple[Srp4Ctr, History]:
    """Train a new model on the training events; gives it with its losses by epoch."""
    if not prepared.users.train_events.any():
        raise DataError(
            "there are no training events to pre-train on; run srp4ctr finetune CONFIG --from-scratch"
        )
    options = config.pretrain
    generator = seed_everything(config)
    model = new_model(config, prepared).train()
    objective = PretrainObjective(model.fields, config.model.width, options.masking)
    parameters = [*model.parameters(), *objective.parameters()]
    steps = -(-len(windows(prepared, np.random.default_rng(0))[0]) // options.batch_size)
    history: History = []
    with Trainer("pre-training", [(parameters, 1.0)], options, steps) as trainer:
        for epoch in range(options.epochs):
            users, ends = windows(prepared, generator)
            lengths = prepared.lengths(ends)
            seen: defaultdict[str, list[float]] = defaultdict(list)
            slots = 0
            for batch in by_length(lengths, options.batch_size, generator):
                items, behaviours, labels = prepared.histories(users[batch], ends[batch])
                losses = objective(
                    model,
                    torch.from_numpy(items),
                    torch.from_numpy(behaviours),
                    torch.from_numpy(labels),
                    torch.from_numpy(prepared.users.codes[users[batch]]),
                )
                trainer.step(losses["total"])
                for name, loss in losses.items():
                    seen[name].append(loss.item())
                slots += labels.size
            means = {name: float(np.mean(values)) for name, values in seen.items()}
            history.append({"epoch": epoch + 1, **means, "padding_share": 1 - float(lengths.sum()) / slots})
            trainer.show({"loss": means["total"]})
    return model.eval(), history


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
    model, history = pretrain(config, prepared)
    save_model(model, prepared.transforms, stage)
    write_metrics(stage, history, time.monotonic() - began)
    last = history[-1]
    panels = [[name] for name in last if name not in ("epoch", "padding_share")]
    plot_epochs(history, panels, stage / "loss.png", "Pre-training: mean losses")
    print("  ".join(f"{name} {value:.3f}" for name, value in last.items() if name != "epoch"))
    print(f"written to {stage}")
    return 0
