"""Behavior Sequence Transformer (Chen et al., DLP-KDD 2019): the candidate is the sequence's last position.

So the whole sequence is encoded anew for every candidate. The paper's tower reads all positions of a sequence of
fixed length; ours, the candidate's position and the mean over the events', whose number varies.

Shapes: U users, L events of a history, C candidates, W code columns, D width, S = L + 1, X = U * C.
"""

import torch
from torch import Tensor, nn

from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.attention import Block
from srp4ctr.nn.baselines.parts import BaselineConfig, SequenceBaseline, mean_of_events
from srp4ctr.nn.ctr import tower
from srp4ctr.nn.dropout import Dropout


class Bst(SequenceBaseline):
    """BST; the tower reads the candidate before and after the blocks, the events after them, user and context."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(config, fields, max_events)
        width = config.width
        # They count back from the candidate, so that padding moves none.
        self.positions = nn.Parameter(0.05 * torch.randn(max_events + 1, width))
        self.norm_input = nn.LayerNorm(width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, 4 * width, config.dropout) for _ in range(config.layers)
        )
        self.norm_output = nn.LayerNorm(width)
        self.tower = tower(config, 5 * width)

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
        users, candidates, width = e_UCD.shape
        length = x_ULD.shape[1]
        # What is the same for all candidates of a user is computed before the copies are made.
        x_ULD = self.norm_input(x_ULD + self.positions[1 : length + 1].flip(0))
        last_UCD = self.norm_input(e_UCD + self.positions[0])
        copies_UCLD = x_ULD[:, None].expand(-1, candidates, -1, -1)
        x_XSD = self.dropout(torch.cat([copies_UCLD, last_UCD[:, :, None]], dim=2).flatten(0, 1))
        bias_UL = torch.zeros_like(here_UL, dtype=x_XSD.dtype).masked_fill(~here_UL, float("-inf"))
        bias_US = torch.cat([bias_UL, bias_UL.new_zeros(users, 1)], dim=1)
        bias_XS = bias_US.repeat_interleave(candidates, dim=0)
        for block in self.blocks:
            x_XSD = block(x_XSD, bias_XS)
        z_UCSD = self.norm_output(x_XSD).view(users, candidates, length + 1, width)
        pooled_UCD = mean_of_events(z_UCSD[:, :, :-1], here_UL[:, None, :])
        beside = self.beside(e_UCD, user_codes_UW, context_codes_UCW)
        features = torch.cat([e_UCD, z_UCSD[:, :, -1], pooled_UCD, *beside], dim=-1)
        logit_UC: Tensor = self.tower(features).squeeze(-1)
        return logit_UC
