"""The latest events as they are, beside the tokens: what a candidate can be matched with one by one.

A state keeps them as codes, a few bytes an event, and the scorer looks their embeddings up in the tables that
the encoder reads: the first layer of the paper's uni cross-attention (claim 4) without its 128 bytes an event.
"""

import torch
from torch import Tensor, nn


class RecentEvents(nn.Module):
    """Codes of the latest K events, and the K + 1 positions that a candidate attends to.

    The last position is learned and always there: attention has something to attend to in an empty history.
    """

    def __init__(self, events: int, width: int) -> None:
        super().__init__()
        self.events = events
        self.positions = nn.Parameter(0.05 * torch.randn(events, width))
        self.nothing = nn.Parameter(0.05 * torch.randn(width))
        self.norm = nn.LayerNorm(width)

    def latest(self, codes_ULX: Tensor) -> Tensor:
        """The codes [U, K, ...] of the latest events, 0 on the left of fewer."""
        padding_UKX = codes_ULX.new_zeros((codes_ULX.shape[0], self.events, *codes_ULX.shape[2:]))
        return torch.cat([padding_UKX, codes_ULX], dim=1)[:, -self.events :]

    def forward(self, ids_UKD: Tensor, behaviours_UKD: Tensor, padding_UK: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [U, K + 1, D] and the bias [U, K + 1] that hides padding; for one user without the dimension of users, too."""
        users = padding_UK.shape[:-1]
        x_UKD = ids_UKD + behaviours_UKD + self.positions
        bias_UK = torch.zeros_like(padding_UK, dtype=x_UKD.dtype).masked_fill(padding_UK, float("-inf"))
        bias_UY = torch.cat([bias_UK, bias_UK.new_zeros(*users, 1)], dim=-1)
        return self.norm(torch.cat([x_UKD, self.nothing.expand(*users, 1, -1)], dim=-2)), bias_UY
