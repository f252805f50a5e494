"""FG-BERT's pre-training objective, over the whole served path (SRP4CTR, claims 3 to 5).

Two maskings are drawn apart for every sequence. Item masking hides an event's item: the encoder recovers its id and
attributes from what surrounds them. Behaviour masking hides how the user behaved at an event: the encoder recovers
it, and so does the event's item when it attends to the user's state as a candidate, so that querying transformer,
cross-attention and tower learn before any fine-tuning what they will be asked for.
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.contract.vocabulary import PADDING, UNKNOWN
from srp4ctr.nn.embedding import mask_codes
from srp4ctr.nn.heads import FieldHead, ItemHead
from srp4ctr.nn.matches import AttributeMatches, Matched
from srp4ctr.nn.model import Srp4Ctr, State


class MaskingConfig(Strict):
    """How much is hidden, and what recovering it weighs; `[pretrain.masking]` of a run's TOML file."""

    attributes: bool = Option(
        default=True,
        description="recover side information, too; false: item ids alone, of all that is hidden",
    )
    item_target: Literal["id", "item"] = Option(
        default="id",
        description="what a hidden item is compared with: id embeddings, or those with attributes added",
    )
    item_query: Literal["gelu", "linear"] = Option(
        default="gelu", description="what of an encoding is compared with items: a GELU of it, or all of it"
    )
    attribute_matches: int = Option(
        default=0,
        ge=0,
        description="attention heads that point at the history's values of each item attribute: items that share them get "
        "higher logits; 0: none",
    )
    sampled_items: int = Option(
        default=20_000, ge=1, description="items that are drawn a step where the catalogue has more"
    )
    next_item_rate: float = Option(
        default=0.0, ge=0, le=1, description="histories whose newest item is hidden in any case"
    )
    item_rate: float = Option(default=0.12, gt=0, lt=1, description="events whose item is hidden")
    whole_item_rate: float = Option(
        default=0.8, ge=0, le=1, description="of those: all fields hidden; else each field by a toss"
    )
    behaviour_rate: float = Option(default=0.3, gt=0, lt=1, description="events whose behaviour is hidden")
    held_out_rate: float = Option(
        default=0.0, ge=0, lt=1, description="events taken out of the history and scored as candidates"
    )
    unknown_rate: float = Option(
        default=0.05,
        ge=0,
        lt=1,
        description="ids and user features shown as unknown, so that those learn too",
    )
    item_weight: float = Option(
        default=1.0, ge=0, description="of hidden items in the loss; 0: none are hidden"
    )
    behaviour_weight: float = Option(
        default=1.0, ge=0, description="of hidden behaviours that the encoder recovers; 0: it is not asked"
    )
    candidate_weight: float = Option(
        default=1.0, ge=0, description="of behaviours and labels of events as candidates; 0: there are none"
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if not (self.item_weight or self.recovers_behaviours or self.candidate_weight):
            raise ValueError(
                "all weights are 0; give item_weight, behaviour_weight or candidate_weight a value above 0"
            )
        return self

    @property
    def recovers_behaviours(self) -> bool:
        """Whether the encoder is asked for hidden behaviours."""
        return self.attributes and self.behaviour_weight > 0

    @property
    def hidden_behaviours(self) -> float:
        """The share of events whose behaviour is hidden: for the encoder to recover, or as candidates where none are held out."""
        as_candidates = self.candidate_weight > 0 and not self.held_out_rate
        return self.behaviour_rate if self.recovers_behaviours or as_candidates else 0.0


def drop_to_unknown(codes_XW: Tensor, rate: float, columns: slice = slice(None)) -> Tensor:
    """Codes with rows of `columns` set to unknown at `rate`; padding stays padding."""
    drop_X1 = torch.rand(codes_XW.shape[:-1], device=codes_XW.device)[..., None] < rate
    part = codes_XW[..., columns]
    dropped = codes_XW.clone()
    dropped[..., columns] = torch.where(drop_X1 & (part != PADDING), UNKNOWN, part)
    return dropped


class PretrainObjective(nn.Module):
    """The masked objective; its heads are left behind when pre-training ends."""

    def __init__(
        self, fields: Fields, width: int, masking: MaskingConfig, catalogue_VW: Tensor, counts_V: Tensor
    ) -> None:
        """`catalogue_VW` are the codes of the items that have an id of their own, in the order of their ids, and
        `counts_V` these items' training events.
        """
        super().__init__()
        self.masking = masking
        self.catalogue_VW: Tensor
        self.register_buffer("catalogue_VW", catalogue_VW)
        self.item_head = ItemHead(
            counts_V, width, masking.sampled_items, linear=masking.item_query == "linear"
        )
        self.matches: AttributeMatches | None = None
        if masking.attribute_matches and fields.item[1:]:
            self.matches = AttributeMatches(fields.item[1:], width, masking.attribute_matches, catalogue_VW)
        self.attribute_heads = nn.ModuleList(FieldHead(field, width, tied=True) for field in fields.item[1:])
        self.behaviour_heads = nn.ModuleList(
            FieldHead(field, width, tied=False) for field in fields.behaviour
        )
        self.candidate_heads = nn.ModuleList(
            FieldHead(field, width, tied=False) for field in fields.behaviour
        )

    def item_vectors(self, model: Srp4Ctr, values_K: Tensor | None) -> Tensor:
        """What the item head compares with: the items' embeddings as input, of the ids given or of all."""
        if self.masking.item_target == "id":
            ids_VD = model.items.values(0)
            return ids_VD if values_K is None else ids_VD[values_K]
        codes_KW = self.catalogue_VW if values_K is None else self.catalogue_VW[values_K]
        vectors_KD: Tensor = model.items(codes_KW)
        return vectors_KD

    def forward(
        self, model: Srp4Ctr, items_ULW: Tensor, behaviours_ULW: Tensor, labels_UL: Tensor, users_UW: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name, `total` weighted; `labels_UL` are event labels 0 or 1, and -1 where there is none."""
        masking, fields = self.masking, model.fields
        event_UL = items_ULW[..., 0] != PADDING
        users_UW = drop_to_unknown(users_UW, masking.unknown_rate)
        candidates_ULW = drop_to_unknown(items_ULW, masking.unknown_rate, slice(0, 1))
        candidate_place_UK, candidate_UK = _draw(event_UL, masking.held_out_rate)
        held_UL = torch.zeros_like(event_UL).scatter(1, candidate_place_UK, candidate_UK)
        event_UL = event_UL & ~held_UL
        shown_ULW = candidates_ULW.masked_fill(held_UL[..., None], PADDING)
        known_ULW = behaviours_ULW.masked_fill(held_UL[..., None], PADDING)
        masked_items_ULW = shown_ULW
        if masking.item_weight:
            hidden_ULF = self._draw_items(event_UL, len(fields.item))
            masked_items_ULW = _hide(fields.item, shown_ULW, hidden_ULF)
        place_UK, drawn_UK = _draw(event_UL, masking.hidden_behaviours)
        masked_behaviours_ULW = _hide_at(fields.behaviour, known_ULW, place_UK, drawn_UK)

        encoded = model.encode_history(masked_items_ULW, masked_behaviours_ULW)
        h_ULD = encoded.output_USD[:, :-1]
        losses: dict[str, Tensor] = {}
        if masking.item_weight:
            losses |= self._item_losses(model, h_ULD, items_ULW, masked_items_ULW, hidden_ULF)
        if masking.recovers_behaviours:
            losses |= self._behaviour_losses(fields, h_ULD, behaviours_ULW, place_UK, drawn_UK)
        if masking.candidate_weight and (fields.behaviour or (labels_UL >= 0).any()):
            if masking.held_out_rate:
                place_UK, drawn_UK = candidate_place_UK, candidate_UK
            state = model.read_state(encoded, users_UW, masked_items_ULW, masked_behaviours_ULW)
            items_UKW, behaviours_UKW = _take(candidates_ULW, place_UK), _take(behaviours_ULW, place_UK)
            label_UK = _take(labels_UL[..., None], place_UK)[..., 0]
            losses |= self._candidate_losses(model, state, items_UKW, behaviours_UKW, label_UK, drawn_UK)
        weights = {
            "item": masking.item_weight,
            "behaviour": masking.behaviour_weight,
            "candidate": masking.candidate_weight,
        }
        losses["total"] = torch.stack(
            [weights[name.split(".")[0]] * loss for name, loss in losses.items()]
        ).sum()
        return losses

    def item_logits(self, model: Srp4Ctr, h_ULD: Tensor, shown_ULW: Tensor, hidden_UL: Tensor) -> Tensor:
        """Logits [M, V] of all items, of the M positions of `hidden_UL`; `shown_ULW` are the codes that were encoded."""
        logits_MV = self.item_head.logits(
            h_ULD[hidden_UL], lambda values_K: self.item_vectors(model, values_K)
        )
        matched = self._matched(h_ULD, shown_ULW, hidden_UL)
        return logits_MV if matched is None else logits_MV + matched.item_logits()

    def _matched(self, h_ULD: Tensor, shown_ULW: Tensor, hidden_UL: Tensor) -> Matched | None:
        return None if self.matches is None else self.matches(h_ULD, shown_ULW, hidden_UL)

    def _item_losses(
        self, model: Srp4Ctr, h_ULD: Tensor, items_ULW: Tensor, shown_ULW: Tensor, hidden_ULF: Tensor
    ) -> dict[str, Tensor]:
        """Hidden ids, and hidden attributes where those are asked for, by the encoder's output."""
        hidden_UL = hidden_ULF[..., 0]
        losses = {
            "item.id": self.item_head(
                h_ULD[hidden_UL],
                items_ULW[hidden_UL][:, 0],
                lambda values_K: self.item_vectors(model, values_K),
                self._matched(h_ULD, shown_ULW, hidden_UL),
            )
        }
        if self.masking.attributes:
            for index, head in enumerate(self.attribute_heads, start=1):
                field, hidden_UL = model.fields.item[index], hidden_ULF[..., index]
                codes_MV = items_ULW[hidden_UL][:, field.columns]
                losses[f"item.{field.name}"] = head(h_ULD[hidden_UL], codes_MV, model.items.values(index))
        return losses

    def _behaviour_losses(
        self, fields: Fields, h_ULD: Tensor, behaviours_ULW: Tensor, place_UK: Tensor, drawn_UK: Tensor
    ) -> dict[str, Tensor]:
        """Hidden behaviours, by the encoder's output."""
        h_MD, codes_MW = _take(h_ULD, place_UK)[drawn_UK], _take(behaviours_ULW, place_UK)[drawn_UK]
        return {
            f"behaviour.{field.name}": head(h_MD, codes_MW[:, field.start, None])
            for field, head in zip(fields.behaviour, self.behaviour_heads, strict=True)
        }

    def _candidate_losses(
        self,
        model: Srp4Ctr,
        state: State,
        items_UKW: Tensor,
        behaviours_UKW: Tensor,
        label_UK: Tensor,
        drawn_UK: Tensor,
    ) -> dict[str, Tensor]:
        """Events as candidates: how the user behaved, and the event's label, by the user's state alone."""
        e_UKD, z_UKD = model.cross_attend(state, items_UKW)
        losses = {}
        for field, head in zip(model.fields.behaviour, self.candidate_heads, strict=True):
            codes_M1 = behaviours_UKW[drawn_UK][:, field.start, None]
            losses[f"candidate.{field.name}"] = head(z_UKD[drawn_UK], codes_M1)
        labelled_UK = drawn_UK & (label_UK >= 0)
        if labelled_UK.any():
            width = Fields.width(model.fields.context)
            context_U1W = items_UKW.new_full((len(items_UKW), 1, width), UNKNOWN)
            logit_UK = model.logit(state, e_UKD, z_UKD, context_U1W)
            losses["candidate.label"] = F.binary_cross_entropy_with_logits(
                logit_UK[labelled_UK], label_UK[labelled_UK].float()
            )
        return losses

    def _draw_items(self, event_UL: Tensor, fields: int) -> Tensor:
        """Which fields [U, L, F] of which events are hidden."""
        masking = self.masking
        lottery_UL, whole_UL = (torch.rand(event_UL.shape, device=event_UL.device) for _ in range(2))
        toss_ULF = torch.rand((*event_UL.shape, fields), device=event_UL.device) < 0.5
        newest_UL = event_UL & (event_UL.flip(1).cumsum(1).flip(1) == 1)
        next_U1 = torch.rand((len(event_UL), 1), device=event_UL.device) < masking.next_item_rate
        next_UL = newest_UL & next_U1
        chosen_UL = event_UL & (lottery_UL < masking.item_rate)
        if not masking.attributes:
            # Whole items: the attributes of the hidden one would give its id away.
            return (chosen_UL | next_UL)[..., None].expand(-1, -1, fields)
        whole_UL1 = (whole_UL < masking.whole_item_rate)[..., None]
        return (chosen_UL[..., None] & (whole_UL1 | toss_ULF)) | next_UL[..., None]


def _draw(event_UL: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Places [U, K] of a share of each sequence's events, and which of them count for that sequence."""
    wanted_U = torch.ceil(event_UL.sum(1).double() * rate)
    most = math.ceil(event_UL.shape[1] * rate)
    lottery_UL = torch.rand(event_UL.shape, device=event_UL.device).masked_fill(~event_UL, -1.0)
    place_UK = lottery_UL.topk(most, dim=1).indices
    return place_UK, torch.arange(most, device=event_UL.device)[None, :] < wanted_U[:, None]


def _take(x_ULX: Tensor, place_UK: Tensor) -> Tensor:
    return x_ULX.gather(1, place_UK[..., None].expand(-1, -1, x_ULX.shape[-1]))


def _hide(fields: tuple[Field, ...], codes_ULW: Tensor, hidden_ULF: Tensor) -> Tensor:
    width = torch.tensor([field.width for field in fields], device=codes_ULW.device)
    hidden_ULW = hidden_ULF.repeat_interleave(width, dim=-1)
    return torch.where(hidden_ULW, mask_codes(fields, codes_ULW), codes_ULW)


def _hide_at(fields: tuple[Field, ...], codes_ULW: Tensor, place_UK: Tensor, drawn_UK: Tensor) -> Tensor:
    hidden_UL = drawn_UK.new_zeros(codes_ULW.shape[:2]).scatter(1, place_UK, drawn_UK)
    return torch.where(hidden_UL[..., None], mask_codes(fields, codes_ULW), codes_ULW)
