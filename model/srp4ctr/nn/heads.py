"""What pre-training asks of an encoded event: the codes of a hidden field, by a loss of the field's own type.

Shapes: M hidden positions, D width, V values of a vocabulary, K drawn negatives.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE
from srp4ctr.nn.matches import Matched

Vectors = Callable[[Tensor | None], Tensor]
"""Embeddings [K, D] of the values given, or [V, D] of all."""


class FieldHead(nn.Module):
    """Recovers one field's codes; what is unknown or missing is no target."""

    def __init__(self, field: Field, width: int, *, tied: bool) -> None:
        super().__init__()
        self.field = field
        self.values = field.size - FIRST_VALUE
        self.transform = nn.Linear(width, width) if tied else None
        self.bias = nn.Parameter(torch.zeros(self.values))
        self.weight = None if tied else nn.Parameter(torch.randn(self.values, width) / math.sqrt(width))

    def forward(self, h_MD: Tensor, codes_MV: Tensor, tied_weight: Tensor | None = None) -> Tensor:
        """Mean loss of M positions: softmax over the values, or one logistic a value where there are several."""
        weight: Tensor | None = self.weight
        if self.transform is not None:
            assert tied_weight is not None
            h_MD, weight = F.gelu(self.transform(h_MD)), tied_weight
        assert weight is not None
        has_target = (codes_MV >= FIRST_VALUE).any(-1)
        if not self.values or not has_target.any():
            return h_MD.sum() * 0.0
        logits_MS = h_MD[has_target] @ weight.T + self.bias
        target_MV = codes_MV[has_target].long()
        if self.field.type != "multi_valued":
            return F.cross_entropy(logits_MS, target_MV[:, 0] - FIRST_VALUE)
        present_MS = torch.zeros(len(target_MV), self.field.size, device=logits_MS.device)
        present_MS = present_MS.scatter(1, target_MV, 1.0)[:, FIRST_VALUE:]
        return F.binary_cross_entropy_with_logits(logits_MS, present_MS)


class ItemHead(nn.Module):
    """Recovers the item id by softmax over the catalogue, or over a sample of it where the catalogue is large.

    The sample is drawn from a mixture of the items' popularity and the uniform distribution, and each logit is
    corrected by the log of how often it is drawn (Bengio and Senecal, 2008): the sum over the sample is then an unbiased
    estimate of the sum over all items. The target is not drawn but added, so that its own logit stays as it is.
    """

    def __init__(self, counts_V: Tensor, width: int, sample: int, *, linear: bool = False) -> None:
        """`counts_V` are the items' training events; with more than `sample` items that many are drawn a step.

        What is compared with the items is linear in the encoding, or goes through a GELU as in BERT.
        """
        super().__init__()
        self.linear = linear
        self.values = len(counts_V)
        self.sample = sample
        self.transform = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(self.values))
        chance_V = counts_V.double() / counts_V.sum().clamp(min=1) + 1 / max(1, self.values)
        chance_V = chance_V / chance_V.sum()
        self.log_chance_V: Tensor
        self.cumulative_V: Tensor
        self.register_buffer("log_chance_V", chance_V.log().float())
        self.register_buffer("cumulative_V", chance_V.cumsum(0))

    def forward(
        self, h_MD: Tensor, codes_M: Tensor, vectors: Vectors, matched: Matched | None = None
    ) -> Tensor:
        """Mean loss of M positions; what `matched` says of items is added to their logits."""
        has_target = codes_M >= FIRST_VALUE
        if not has_target.any():
            return h_MD.sum() * 0.0
        target_M = codes_M[has_target].long() - FIRST_VALUE
        h_MD = h_MD[has_target]
        matched = matched.select(has_target) if matched is not None else None
        if self.values <= self.sample:
            logits_MV = self.logits(h_MD, vectors)
            if matched is not None:
                logits_MV = logits_MV + matched.item_logits()
            return F.cross_entropy(logits_MV, target_M)
        lottery_K = torch.rand(self.sample, dtype=torch.float64, device=h_MD.device)
        drawn_K = torch.searchsorted(self.cumulative_V, lottery_K).clamp(max=self.values - 1)
        query_MD = self._query(h_MD)
        own_M = (query_MD * vectors(target_M)).sum(-1) + self.bias[target_M]
        times_drawn_K = self.log_chance_V[drawn_K] + math.log(self.sample)
        others_MK = query_MD @ vectors(drawn_K).T + self.bias[drawn_K] - times_drawn_K
        if matched is not None:
            own_M = own_M + matched.target_logits(target_M)
            others_MK = others_MK + matched.item_logits(drawn_K)
        # A negative that happens to be the target would be told to be right and wrong at once.
        others_MK = others_MK.masked_fill(drawn_K == target_M[:, None], float("-inf"))
        logits_MK = torch.cat([own_M[:, None], others_MK], dim=1)
        return F.cross_entropy(logits_MK, torch.zeros_like(target_M))

    def logits(self, h_MD: Tensor, vectors: Vectors) -> Tensor:
        """Logits [M, V] of all items."""
        logits_MV: Tensor = self._query(h_MD) @ vectors(None).T + self.bias
        return logits_MV

    def _query(self, h_MD: Tensor) -> Tensor:
        query_MD: Tensor = self.transform(h_MD)
        return query_MD if self.linear else F.gelu(query_MD)
