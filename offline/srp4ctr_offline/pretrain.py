"""`srp4ctr pretrain`: FG-BERT over the whole served path, on training events only."""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.nn.objectives import PretrainObjective
from srp4ctr_offline.batches import by_length, windows
from srp4ctr_offline.checkpoint import new_model, save_model
from srp4ctr_offline.config import OptimizerConfig, RunConfig
from srp4ctr_offline.plots import plot_losses
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import job_arguments, seed_everything, start_stage, write_json

History = list[dict[str, float]]


def optimizer_for(
    groups: list[dict[str, object]], config: OptimizerConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW and its schedule: linear warm-up, then cosine to zero. A group's `scale` multiplies its rate."""
    for group in groups:
        group["lr"] = config.learning_rate * float(group.pop("scale", 1.0))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    warm = max(1, int(steps * config.warmup))

    def rate(step: int) -> float:
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def pretrain(config: RunConfig, prepared: Prepared) -> tuple[Srp4Ctr, History]:
    """Train a new model on the training events; gives it with its losses by epoch."""
    options = config.pretrain
    generator = seed_everything(config)
    model = new_model(config, prepared).train()
    objective = PretrainObjective(model.fields, config.model.width, options.masking)
    parameters = [*model.parameters(), *objective.parameters()]
    per_epoch = -(-len(windows(prepared, np.random.default_rng(0))[0]) // options.batch_size)
    optimizer, schedule = optimizer_for([{"params": parameters}], options, options.epochs * (per_epoch + 1))
    history: History = []
    progress = tqdm(range(options.epochs), desc="pre-training", unit="epoch")
    for epoch in progress:
        sums: dict[str, float] = {}
        users, ends = windows(prepared, generator)
        lengths = prepared.lengths(ends)
        batches = by_length(lengths, options.batch_size, generator)
        slots = 0
        for batch in batches:
            items, behaviours, labels = prepared.histories(users[batch], ends[batch])
            slots += items.shape[0] * items.shape[1]
            losses = objective(
                model,
                torch.from_numpy(items),
                torch.from_numpy(behaviours),
                torch.from_numpy(labels),
                torch.from_numpy(prepared.users.codes[users[batch]]),
            )
            optimizer.zero_grad()
            losses["total"].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach())
        means = {name: value / len(batches) for name, value in sums.items()}
        history.append({"epoch": epoch + 1, **means, "padding_share": 1 - float(lengths.sum()) / slots})
        progress.set_postfix(loss=f"{means['total']:.3f}")
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
    save_model(model, stage)
    write_metrics(stage, history, time.monotonic() - began)
    plot_losses(history, stage / "loss.png", "Pre-training")
    last = history[-1]
    print("  ".join(f"{name} {value:.3f}" for name, value in last.items() if name != "epoch"))
    print(f"written to {stage}")
    return 0


def write_metrics(stage: Path, history: History, seconds: float) -> None:
    """Write a training stage's `metrics.json`."""
    write_json(stage / "metrics.json", {"seconds": round(seconds, 1), "epochs": history})
