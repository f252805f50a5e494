"""Multi-head attention and the transformer block that every part of the network is built of."""

import math

import torch
from torch import Tensor, nn

from srp4ctr.nn.dropout import Dropout


class Projection(nn.Linear):
    """A linear layer of any number of dimensions that is one product of two: exported, it has its bias inside."""

    def forward(self, x_XD: Tensor) -> Tensor:
        """[..., outputs] of [..., D]."""
        y_XD: Tensor
        if x_XD.dim() == 2:
            y_XD = super().forward(x_XD)
        else:
            y_XD = super().forward(x_XD.flatten(0, -2)).view(*x_XD.shape[:-1], self.out_features)
        return y_XD


class Attention(nn.Module):
    """Attention of X positions to Y positions, written out in plain operations so that it exports as it is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(width // heads)
        self.query = Projection(width, width)
        self.key = Projection(width, width)
        self.value = Projection(width, width)
        self.out = Projection(width, width)

    def forward(self, x_UXD: Tensor, y_UYD: Tensor, bias_UY: Tensor | None = None) -> Tensor:
        """[U, X, D]; `bias_UY` is added to the scores of all heads: 0 keeps a position, -inf hides it.

        At least one position of each row must be kept.
        """
        q_UNXH = self._split(self.scaled_query(x_UXD))
        k_UNYH = self._split(self.key(y_UYD))
        v_UNYH = self._split(self.value(y_UYD))
        scores_UNXY = q_UNXH @ k_UNYH.transpose(-1, -2)
        if bias_UY is not None:
            scores_UNXY = scores_UNXY + bias_UY[:, None, None, :]
        mixed_UNXH = torch.softmax(scores_UNXY, dim=-1) @ v_UNYH
        out_UXD: Tensor = self.out(mixed_UNXH.transpose(1, 2).flatten(2))
        return out_UXD

    def scaled_query(self, x_XD: Tensor) -> Tensor:
        """Queries [..., D]. They are scaled rather than the scores, of which there are many more."""
        q_XD: Tensor = self.query(x_XD) * self.scale
        return q_XD

    def of_one(self, q_XD: Tensor, y_YD: Tensor, bias_Y: Tensor | None = None) -> Tensor:
        """[X, D]: what `forward` gives for one row of a batch, with its scaled queries [X, D] at hand.

        Two dimensions less, with which an exported graph adds each bias inside the product that it belongs to.
        """
        q_NXH, k_NYH, v_NYH = (
            x_XD.view(x_XD.shape[0], self.heads, -1).transpose(0, 1)
            for x_XD in (q_XD, self.key(y_YD), self.value(y_YD))
        )
        scores_NXY = q_NXH @ k_NYH.transpose(-1, -2)
        if bias_Y is not None:
            scores_NXY = scores_NXY + bias_Y
        mixed_NXH = torch.softmax(scores_NXY, dim=-1) @ v_NYH
        out_XD: Tensor = self.out(mixed_NXH.transpose(0, 1).flatten(1))
        return out_XD

    def _split(self, x_UXD: Tensor) -> Tensor:
        users, positions, width = x_UXD.shape
        return x_UXD.view(users, positions, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them.

    No dropout inside: on a CPU, drawing its mask for the wide layer cost a fifth of a training step.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(Projection(width, hidden), nn.GELU(), Projection(hidden, width))


class Block(nn.Module):
    """A pre-norm transformer block.

    Without `memory` the positions attend to one another. With it they attend to the memory alone, so that no
    position sees another: the candidate's side of uni cross-attention.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        """`hidden` is the width inside the feed-forward layer."""
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feed_forward = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_UXD: Tensor, bias_UY: Tensor | None = None, memory_UYD: Tensor | None = None
    ) -> Tensor:
        """[U, X, D]; `bias_UY` hides positions of what is attended to."""
        normed_UXD = self.norm_attention(x_UXD)
        return self.attend(x_UXD, normed_UXD, normed_UXD if memory_UYD is None else memory_UYD, bias_UY)

    def attend(self, x_UXD: Tensor, normed_UXD: Tensor, memory_UYD: Tensor, bias_UY: Tensor | None) -> Tensor:
        """The same, where the normed input is at hand."""
        x_UXD = x_UXD + self.dropout(self.attention(normed_UXD, memory_UYD, bias_UY))
        refined_UXD: Tensor = x_UXD + self.dropout(self.feed_forward(self.norm_feed_forward(x_UXD)))
        return refined_UXD
