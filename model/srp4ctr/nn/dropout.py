"""Dropout whose masks are cheap to draw."""

import torch
from torch import Tensor, nn

_LEVELS = 256


class Dropout(nn.Module):
    """Dropout at a rate that is a multiple of 1/256, the nearest to the one asked for.

    A random byte decides each number: on a CPU, torch's own mask, a float drawn for each number, took a tenth of a
    training step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.below = round(rate * _LEVELS)

    def forward(self, x: Tensor) -> Tensor:
        """The tensor, in training with numbers set to 0 at the rate and the others scaled up."""
        if not self.training or not self.below:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        drawn = words.random_(torch.iinfo(torch.int64).min, None).view(torch.uint8)[: x.numel()].view(x.shape)
        return x * ((drawn >= self.below).to(x.dtype) * (_LEVELS / (_LEVELS - self.below)))
