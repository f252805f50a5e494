"""What a hidden item has in common with the events around it, for pre-training's item logits.

A product of two vectors of some dozen numbers cannot say of each of hundreds of brands whether the history had it. Attention over
the events' own attributes can: it points at values that are there, as pointer networks do at words (Vinyals et al., 2015).

Shapes: U users, L events, M hidden positions, D width, A attributes, H heads, E width of a key, V items, K some of them, W codes of an
item, S values of an attribute, C of them that one item has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srp4ctr.contract.transforms import Field
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING

KEY_WIDTH = 16


@dataclass(frozen=True, eq=False)
class Matched:
    """What the histories of M hidden positions say of items, to be added to these items' logits."""

    attributes: tuple[Field, ...]
    catalogue_VW: Tensor
    bags: tuple[Tensor, ...]
    """For each attribute, what each of its values adds [M, S]; an item gets the sum of its values'."""

    def item_logits(self, values_K: Tensor | None = None) -> Tensor:
        """What is added to the logits [M, K] of the items given, or [M, V] of all."""
        codes_KW = self.catalogue_VW if values_K is None else self.catalogue_VW[values_K]
        total_KM = torch.zeros(len(codes_KW), len(self.bags[0]), device=codes_KW.device)
        for field, bag_MS in zip(self.attributes, self.bags, strict=True):
            codes_KC = codes_KW[:, field.columns]
            total_KM = total_KM + F.embedding_bag(codes_KC.long(), bag_MS.T.contiguous(), mode="sum")
        return total_KM.T

    def target_logits(self, value_M: Tensor) -> Tensor:
        """What is added [M] to the logit of one item for each position."""
        codes_MW = self.catalogue_VW[value_M].long()
        parts = [
            bag_MS.gather(1, codes_MW[:, field.columns]).sum(1)
            for field, bag_MS in zip(self.attributes, self.bags, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def select(self, chosen_M: Tensor) -> "Matched":
        """The same of some of the positions."""
        return Matched(self.attributes, self.catalogue_VW, tuple(bag_MS[chosen_M] for bag_MS in self.bags))


class AttributeMatches(nn.Module):
    """For each item attribute, attention from a hidden position to the values that the history's events show.

    An item that is hidden by its id alone still shows its attributes to the encoder, and to this.
    """

    def __init__(self, attributes: Sequence[Field], width: int, heads: int, catalogue_VW: Tensor) -> None:
        """`catalogue_VW` are the items' codes, in the order of their ids."""
        super().__init__()
        self.attributes = tuple(attributes)
        self.heads = heads
        self.catalogue_VW: Tensor
        self.register_buffer("catalogue_VW", catalogue_VW, persistent=False)
        groups = len(self.attributes) * heads
        self.query = nn.Linear(width, groups * KEY_WIDTH)
        self.key = nn.Linear(width, groups * KEY_WIDTH)
        self.strength = nn.Linear(width, groups)
        # How much it says that a value is shared, learned for each value.
        self.worth = nn.ParameterList(
            nn.Parameter(torch.ones(heads, field.size)) for field in self.attributes
        )

    def forward(self, h_ULD: Tensor, shown_ULW: Tensor, hidden_UL: Tensor) -> Matched:
        """What is said of items for the M positions of `hidden_UL`, in their order.

        `shown_ULW` are the item codes as the encoder saw them: what is hidden or padding there is pointed at by none.
        """
        user_M, _ = hidden_UL.nonzero(as_tuple=True)
        h_MD = h_ULD[hidden_UL]
        split = (len(self.attributes), self.heads)
        query_MAHE = self.query(h_MD).view(*h_MD.shape[:-1], *split, KEY_WIDTH)
        key_ULAHE = self.key(h_ULD).view(*h_ULD.shape[:-1], *split, KEY_WIDTH)
        strength_MAH = F.softplus(self.strength(h_MD)).view(-1, *split)
        bags = []
        for index, (field, worth_HS) in enumerate(zip(self.attributes, self.worth, strict=True)):
            codes_MLC = shown_ULW[..., field.columns][user_M].long()
            there_MLC = (codes_MLC >= FIRST_VALUE) & (codes_MLC < field.size)
            logit_MHL = torch.einsum("mhe,mlhe->mhl", query_MAHE[:, index], key_ULAHE[:, :, index][user_M])
            logit_MHL = logit_MHL / math.sqrt(KEY_WIDTH)
            logit_MHL = logit_MHL.masked_fill(~there_MLC.any(-1)[:, None], float("-inf"))
            # Something else to attend to, so that a history without any such value is an ordinary one.
            weight_MHL = F.pad(logit_MHL, (0, 1)).softmax(-1)[..., :-1] * strength_MAH[:, index, :, None]
            # An event with many values says as much as one with few.
            share_MLC = there_MLC / there_MLC.sum(-1, keepdim=True).clamp(min=1)
            codes_MLC = codes_MLC.where(there_MLC, PADDING)
            worth_MLC = torch.stack(
                [
                    weight_ML[..., None] * worth_S[codes_MLC]
                    for weight_ML, worth_S in zip(weight_MHL.unbind(1), worth_HS, strict=True)
                ]
            ).sum(0)
            bag_MS = worth_MLC.new_zeros(len(h_MD), field.size)
            bags.append(bag_MS.scatter_add(1, codes_MLC.flatten(1), (worth_MLC * share_MLC).flatten(1)))
        return Matched(self.attributes, self.catalogue_VW, tuple(bags))
