"""What every click model of this package is: the jobs train, validate, calibrate and predict any of them alike."""

from collections.abc import Iterable
from typing import Annotated, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.dropout import Dropout

Count = Annotated[int, Option(ge=1)]


class Sizes(Strict):
    """What every model has a size of."""

    width: Count = Option(default=64, description="of every vector")
    heads: Count = Option(default=4, description="attention heads; divides width")
    tower: tuple[Count, ...] = Option(default=(128, 64), description="hidden widths of the CTR tower")
    dropout: float = Option(
        default=0.1,
        ge=0,
        lt=1,
        description="in training: of inputs, of what attention and feed-forward layers add, and in the tower",
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


def tower(sizes: Sizes, inputs: int) -> nn.Sequential:
    """The layers from `inputs` features to one logit."""
    layers: list[nn.Module] = []
    for hidden in sizes.tower:
        layers += [nn.Linear(inputs, hidden), nn.ReLU(), Dropout(sizes.dropout)]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, 1))


class CtrModel(nn.Module):
    """Histories, users, candidates and contexts to click logits, with Platt scaling to probabilities."""

    def __init__(self, fields: Fields, max_events: int) -> None:
        super().__init__()
        self.fields, self.max_events = fields, max_events
        # Platt scaling, fitted on validation rows after training.
        self.calibration_scale: Tensor
        self.calibration_bias: Tensor
        self.register_buffer("calibration_scale", torch.ones(()))
        self.register_buffer("calibration_bias", torch.zeros(()))

    def forward(
        self,
        event_items_ULW: Tensor,
        event_behaviours_ULW: Tensor,
        user_codes_UW: Tensor,
        item_codes_UCW: Tensor,
        context_codes_UCW: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [U, C]; histories are padded on the left with 0, L is 1 to max_events."""
        raise NotImplementedError

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that pre-training has taught and fine-tuning should move gently."""
        return ()

    def calibrate(self, logit: Tensor) -> Tensor:
        """Click probabilities of logits of any shape."""
        return torch.sigmoid(self.calibration_scale * logit + self.calibration_bias)
