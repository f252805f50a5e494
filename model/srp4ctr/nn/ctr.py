"""What every click model of this package is: the jobs train, validate, calibrate and predict any of them alike."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from srp4ctr.contract.transforms import Fields


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
