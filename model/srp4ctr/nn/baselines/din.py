"""Deep Interest Network (Zhou et al., KDD 2018): a candidate weighs the history by a small network of its own.

The weights are not normalised (section 4.3 of the paper: the strength of an interest is kept). Of the paper's training tricks,
Dice and mini-batch aware regularisation, there is none here.

Shapes: U users, L events of a history, C candidates, W code columns, D width, H hidden width of the attention unit.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.baselines.parts import BaselineConfig, SequenceBaseline
from srp4ctr.nn.ctr import tower


class AttentionUnit(nn.Module):
    """Weights [U, C, L] of events k for candidates q: an MLP on [q, k, q - k, q * k].

    The pairs' features are never laid out. With A, B, G, P for the first layer's weights of the four parts,
    A q + B k + G (q - k) + P (q * k) + b = (A + G) q + b + (B - G) k + P (q * k): once a candidate, once an event,
    and a quarter of the products once a pair.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.first = nn.Linear(4 * config.width, config.attention[0])
        rest: list[nn.Module] = []
        for before, size in pairwise(config.attention):
            rest += [nn.Linear(before, size), nn.ReLU()]
        self.rest = nn.Sequential(*rest, nn.Linear(config.attention[-1], 1))

    def forward(self, q_UCD: Tensor, k_ULD: Tensor, here_UL: Tensor) -> Tensor:
        """Weights [U, C, L]; 0 where `here_UL` says that there is no event."""
        a_HD, b_HD, g_HD, p_HD = self.first.weight.chunk(4, dim=1)
        of_q_UCH = F.linear(q_UCD, a_HD + g_HD, self.first.bias)
        of_k_ULH = F.linear(k_ULD, b_HD - g_HD)
        of_pair_UCLH = F.linear(q_UCD[:, :, None] * k_ULD[:, None], p_HD)
        hidden_UCLH = F.relu(of_pair_UCLH + of_q_UCH[:, :, None] + of_k_ULH[:, None])
        score_UCL: Tensor = self.rest(hidden_UCLH).squeeze(-1)
        return score_UCL.masked_fill(~here_UL[:, None, :], 0.0)


class Din(SequenceBaseline):
    """DIN; the tower reads the candidate, its interest, their product, the user and the context."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(config, fields, max_events)
        self.attention = AttentionUnit(config)
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
        k_ULD, here_UL = self.embed_events(event_items_ULW, event_behaviours_ULW)
        e_UCD = self.items(item_codes_UCW)
        interest_UCD = self.attention(e_UCD, k_ULD, here_UL) @ k_ULD
        beside = self.beside(e_UCD, user_codes_UW, context_codes_UCW)
        features = torch.cat([e_UCD, interest_UCD, e_UCD * interest_UCD, *beside], dim=-1)
        logit_UC: Tensor = self.tower(features).squeeze(-1)
        return logit_UC
