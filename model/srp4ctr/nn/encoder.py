"""FG-BERT's encoder: histories with side information to one vector an event (SRP4CTR, CIKM 2024, claim 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.attention import Block
from srp4ctr.nn.dropout import Dropout
from srp4ctr.nn.embedding import FieldEmbeddings


class Encoded(NamedTuple):
    """Encoded histories: S positions, the events' on the left of the start token's, which comes last.

    `read_USD` holds what each layer's keys and values are computed from, `output_USD` what the last layer gives, and
    `bias_US` hides padding from attention.
    """

    output_USD: Tensor
    read_USD: tuple[Tensor, ...]
    bias_US: Tensor


class HistoryEncoder(nn.Module):
    """Bidirectional transformer over a user's latest events.

    Histories are padded on the left and positions count back from the newest event, so that neither padding nor
    older events move an event's position. A learned start token stands at the end and is never hidden: an empty
    history is an ordinary input, and attention always has something to attend to.
    """

    def __init__(
        self,
        fields: Fields,
        max_events: int,
        width: int,
        heads: int,
        layers: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.behaviours = FieldEmbeddings(fields.behaviour, width)
        self.positions = nn.Parameter(0.05 * torch.randn(max_events, width))
        self.start = nn.Parameter(0.05 * torch.randn(width))
        self.norm_input = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(layers))
        self.norm_output = nn.LayerNorm(width)

    def forward(self, items_ULD: Tensor, behaviours_ULW: Tensor, padding_UL: Tensor) -> Encoded:
        """Encodings of S = L + 1 positions.

        Takes the events' item vectors, their behaviour codes, and a boolean that is true where there is no event.
        """
        users, length = padding_UL.shape
        x_ULD = items_ULD + self.behaviours(behaviours_ULW) + self.positions[:length].flip(0)
        x_USD = torch.cat([x_ULD, self.start.expand(users, 1, -1)], dim=1)
        bias_UL = torch.zeros_like(padding_UL, dtype=x_USD.dtype).masked_fill(padding_UL, float("-inf"))
        bias_US = torch.cat([bias_UL, bias_UL.new_zeros(users, 1)], dim=1)
        x_USD = self.dropout(self.norm_input(x_USD))
        read = []
        for block in self.blocks:
            assert isinstance(block, Block)
            read.append(block.norm_attention(x_USD))
            x_USD = block.attend(x_USD, read[-1], read[-1], bias_US)
        return Encoded(self.norm_output(x_USD), tuple(read), bias_US)
