"""What the baselines share: their sizes, the embeddings that they begin with, the tower that they end in.

Shapes: U users, L events of a history, C candidates, W code columns, D width.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.transforms import Fields
from srp4ctr.contract.vocabulary import PADDING
from srp4ctr.nn.ctr import CtrModel
from srp4ctr.nn.dropout import Dropout
from srp4ctr.nn.embedding import FieldEmbeddings

Count = Annotated[int, Option(ge=1)]


class BaselineConfig(Strict):
    """Sizes of a baseline; what a model does not have, it does not read."""

    width: Count = Option(default=64, description="D")
    tower: tuple[Count, ...] = Option(default=(128, 64), description="hidden widths of the CTR tower")
    dropout: float = Option(default=0.1, ge=0, lt=1, description="in the tower, and in BST's blocks")
    activation: Literal["relu", "prelu"] = Option(
        default="relu", description="of the tower and of DIN's attention unit"
    )
    attention: tuple[Count, ...] = Option(
        default=(64,), min_length=1, description="hidden widths of DIN's attention unit"
    )
    softmax: bool = Option(default=False, description="DIN's attention weights of a history sum to 1")
    heads: Count = Option(default=4, description="of BST's blocks; divides width")
    layers: Count = Option(default=1, description="BST's blocks")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


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


def tower(config: BaselineConfig, width: int) -> nn.Sequential:
    """The layers from `width` features to one logit."""
    layers: list[nn.Module] = []
    for size in config.tower:
        layers += [nn.Linear(width, size), activation(config), Dropout(config.dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


def activation(config: BaselineConfig) -> nn.Module:
    """A fresh activation; PReLU has a slope to learn."""
    return nn.PReLU() if config.activation == "prelu" else nn.ReLU()


def mean_of_events(x_ULD: Tensor, here_UL: Tensor) -> Tensor:
    """Means [..., D] of the events' vectors [..., L, D]; zero where there is none."""
    weight_UL = here_UL.to(x_ULD.dtype)
    weight_UL = weight_UL / weight_UL.sum(-1, keepdim=True).clamp(min=1)
    return torch.matmul(weight_UL[..., None, :], x_ULD).squeeze(-2)
