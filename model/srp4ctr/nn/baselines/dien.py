"""Deep Interest Evolution Network (Zhou et al., AAAI 2019): interests by a GRU, their evolution by one a candidate.

Left out: the auxiliary loss, by which the interests also learn to tell the next event from a random one. All models
here are trained by the rows' log loss alone.

Shapes: U users, L events of a history, C candidates, W code columns, D width.
"""

import torch
from torch import Tensor, nn

from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.baselines.parts import BaselineConfig, SequenceBaseline
from srp4ctr.nn.ctr import tower


class AttentionalUpdateGru(nn.Module):
    """A GRU whose update gate is scaled by the attention (AUGRU): what weighs nothing leaves the state as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(width, 3 * width)
        self.of_state = nn.Linear(width, 3 * width)

    def forward(self, x_ULD: Tensor, weight_UCL: Tensor) -> Tensor:
        """Last states [U, C, D] after inputs that all candidates share, under weights of their own."""
        state_UCD = x_ULD.new_zeros(*weight_UCL.shape[:2], x_ULD.shape[-1])
        # Once an event; what depends on the state is once an event and candidate.
        inputs_ULX = self.of_input(x_ULD)
        for x_U1X, weight_UC in zip(inputs_ULX[:, :, None].unbind(1), weight_UCL.unbind(-1), strict=True):
            of_state_UCX = self.of_state(state_UCD)
            x_reset, x_update, x_new = x_U1X.chunk(3, dim=-1)
            state_reset, state_update, state_new = of_state_UCX.chunk(3, dim=-1)
            reset_UCD = torch.sigmoid(x_reset + state_reset)
            update_UCD = weight_UC[..., None] * torch.sigmoid(x_update + state_update)
            new_UCD = torch.tanh(x_new + reset_UCD * state_new)
            state_UCD = torch.lerp(state_UCD, new_UCD, update_UCD)
        return state_UCD


class Dien(SequenceBaseline):
    """DIEN; the tower reads the candidate, the evolved interest, their product, the user and the context."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(config, fields, max_events)
        self.extractor = nn.GRU(config.width, config.width, batch_first=True)
        self.attention = nn.Linear(config.width, config.width, bias=False)
        self.evolution = AttentionalUpdateGru(config.width)
        self.tower = tower(config, 5 * config.width)

    def forward(
        self,
        event_items_ULW: Tensor,
        event_behaviours_ULW: Tensor,
        user_codes_UW: Tensor,
        item_codes_UCW: Tensor,
        context_codes_UCW: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [U, C]."""
        x_ULD, here_UL = self.embed_events(event_items_ULW, event_behaviours_ULW)
        e_UCD = self.items(item_codes_UCW)
        h_ULD = self.interests(x_ULD, here_UL)
        score_UCL = self.attention(e_UCD) @ h_ULD.transpose(1, 2)
        gone_U1L = ~here_UL[:, None, :]
        # The least number rather than -inf: a history without events has no softmax, and then weighs nothing.
        weight_UCL = score_UCL.masked_fill(gone_U1L, torch.finfo(score_UCL.dtype).min).softmax(-1)
        z_UCD = self.evolution(h_ULD, weight_UCL.masked_fill(gone_U1L, 0.0))
        beside = self.beside(e_UCD, user_codes_UW, context_codes_UCW)
        logit_UC: Tensor = self.tower(torch.cat([e_UCD, z_UCD, e_UCD * z_UCD, *beside], dim=-1)).squeeze(-1)
        return logit_UC

    def interests(self, x_ULD: Tensor, here_UL: Tensor) -> Tensor:
        """The GRU's states [U, L, D]: it begins with a history's first event, however far that is padded."""
        length = here_UL.shape[1]
        padding_U1 = (~here_UL).sum(1, keepdim=True)
        place_UL = torch.arange(length, device=x_ULD.device)[None, :]
        begun_ULD = _take(x_ULD, (place_UL + padding_U1) % length)
        h_ULD, _ = self.extractor(begun_ULD)
        return _take(h_ULD, (place_UL - padding_U1) % length)


def _take(x_ULD: Tensor, place_UL: Tensor) -> Tensor:
    return x_ULD.gather(1, place_UL[..., None].expand_as(x_ULD))
