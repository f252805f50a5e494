"""What both training jobs share: optimizer, schedule, progress, and the stage's metrics file."""

import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from srp4ctr_offline.config import OptimizerConfig, RunConfig
from srp4ctr_offline.run import write_json

Numbers = NDArray[np.generic]

History = list[dict[str, float]]
"""Values by name, an epoch each."""

MAX_GRADIENT_NORM = 1.0


def tensors(device: torch.device, *arrays: Numbers) -> list[Tensor]:
    """The arrays as tensors on the device."""
    return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]


def autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """A context whose products are computed in the configuration's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


class Trainer:
    """AdamW with linear warm-up and cosine decay over all epochs, and a progress bar of steps while entered.

    `groups` are parameters with the factor of the learning rate that each takes. `examples` are those of the first
    epoch; what later ones have more, or a partial batch of each length, is stepped at the least rate, which is 0.
    """

    def __init__(
        self,
        name: str,
        groups: Iterable[tuple[Iterable[nn.Parameter], float]],
        config: OptimizerConfig,
        examples: int,
    ) -> None:
        self._parameters: list[nn.Parameter] = []
        options: list[dict[str, Any]] = []
        for parameters, factor in groups:
            options.append({"params": list(parameters), "lr": factor * config.learning_rate})
            self._parameters += options[-1]["params"]
        self._optimizer = torch.optim.AdamW(options, weight_decay=config.weight_decay, fused=True)
        steps = config.epochs * (-(-examples // config.batch_size) + 1)
        warm = max(1, int(steps * config.warmup))

        def factor_at(step: int) -> float:
            return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))

        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, factor_at)
        self._progress = tqdm(total=steps, desc=name, unit="step")

    def __enter__(self) -> Self:
        """Show the bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar, at its end where training reached it."""
        if kind is None:
            self._progress.total = self._progress.n
            self._progress.refresh()
        self._progress.close()

    def step(self, loss: Tensor) -> None:
        """One step down the loss."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        self._optimizer.step()
        self._schedule.step()
        self._progress.update()

    def show(self, values: dict[str, float]) -> None:
        """Show values beside the bar."""
        self._progress.set_postfix({name: f"{value:.4f}" for name, value in values.items()})


def write_metrics(stage: Path, history: History, seconds: float) -> None:
    """Write a training stage's `metrics.json`."""
    write_json(stage / "metrics.json", {"seconds": round(seconds, 1), "epochs": history})
