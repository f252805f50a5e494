"""The querying transformer: an encoded history to Q tokens, the user state that is cached (claim 5)."""

import torch
from torch import Tensor, nn

from srp4ctr.nn.attention import Attention, Block
from srp4ctr.nn.dropout import Dropout


class QueryingBlock(nn.Module):
    """The tokens read the history, then one another."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.read = Attention(width, heads)
        self.dropout = Dropout(dropout)
        self.block = Block(width, heads, hidden, dropout)

    def forward(self, tokens_UQD: Tensor, history_USD: Tensor, bias_US: Tensor) -> Tensor:
        """Tokens [U, Q, D]."""
        read_UQD = self.read(self.norm(tokens_UQD), history_USD, bias_US)
        refined_UQD: Tensor = self.block(tokens_UQD + self.dropout(read_UQD))
        return refined_UQD


class QueryingTransformer(nn.Module):
    """Learned queries, moved by the user's features, that aggregate the history."""

    def __init__(self, tokens: int, width: int, heads: int, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.5 * torch.randn(tokens, width))
        self.from_user = nn.Linear(width, width)
        self.blocks = nn.ModuleList(QueryingBlock(width, heads, hidden, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, history_USD: Tensor, bias_US: Tensor, user_UD: Tensor) -> Tensor:
        """Tokens [U, Q, D] of the encoded history and the user's feature vector."""
        tokens_UQD = self.queries + self.from_user(user_UD)[:, None, :]
        for block in self.blocks:
            tokens_UQD = block(tokens_UQD, history_USD, bias_US)
        normed_UQD: Tensor = self.norm(tokens_UQD)
        return normed_UQD
