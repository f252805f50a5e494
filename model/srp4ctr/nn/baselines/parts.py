"""What the baselines share: their sizes, the embeddings that they begin with, the tower that they end in.

Shapes: U users, L events of a history, C candidates, W code columns, D width.
"""

import torch
from pydantic import Field as Option
from torch import Tensor

from srp4ctr.contract.transforms import Fields
from srp4ctr.contract.vocabulary import PADDING
from srp4ctr.nn.ctr import Count, CtrModel, Sizes
from srp4ctr.nn.embedding import FieldEmbeddings


class BaselineConfig(Sizes):
    """Sizes of a baseline; what a model does not have, it does not read."""

    attention: tuple[Count, ...] = Option(
        default=(64,), min_length=1, description="hidden widths of DIN's attention unit"
    )
    layers: Count = Option(default=1, description="BST's blocks")


class Baseline(CtrModel):
    """A click model that is made of its configuration and the code layout."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(fields, max_events)
        self.config = config


class SequenceBaseline(Baseline):
    """With the embeddings of events, candidates, users and contexts, a sum over fields each, as our model has them."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(config, fields, max_events)
        self.items = FieldEmbeddings(fields.item, config.width)
        self.behaviours = FieldEmbeddings(fields.behaviour, config.width)
        self.users = FieldEmbeddings(fields.user, config.width)
        self.contexts = FieldEmbeddings(fields.context, config.width)

    def embed_events(self, items_ULW: Tensor, behaviours_ULW: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [U, L, D] of the events, zero where there is none, and a boolean [U, L] of where there is one."""
        x_ULD = self.items(items_ULW) + self.behaviours(behaviours_ULW)
        return x_ULD, items_ULW[..., 0] != PADDING

    def beside(self, e_UCD: Tensor, user_codes_UW: Tensor, context_codes_UCW: Tensor) -> list[Tensor]:
        """Vectors of the user and of the context, each [U, C, D] like those of the candidates."""
        user_U1D = self.users(user_codes_UW)[:, None, :]
        return [user_U1D.expand_as(e_UCD), self.contexts(context_codes_UCW).expand_as(e_UCD)]


def mean_of_events(x_ULD: Tensor, here_UL: Tensor) -> Tensor:
    """Means [..., D] of the events' vectors [..., L, D]; zero where there is none."""
    weight_UL = here_UL.to(x_ULD.dtype)
    weight_UL = weight_UL / weight_UL.sum(-1, keepdim=True).clamp(min=1)
    return torch.matmul(weight_UL[..., None, :], x_ULD).squeeze(-2)
