"""FG-BERT's pre-training objective, over the whole served path (SRP4CTR, claims 3 to 5).

Two maskings are drawn apart for every sequence. Item masking hides an event's item: the encoder recovers its id and
attributes from what surrounds them. Behaviour masking hides how the user behaved at an event: the encoder recovers
it, and so does the event's item when it attends to the user's state as a candidate, so that querying transformer,
cross-attention and tower learn before any fine-tuning what they will be asked for.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field as Option
from torch import Tensor, nn

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING, UNKNOWN
from srp4ctr.nn.embedding import mask_codes
from srp4ctr.nn.model import Srp4Ctr


class MaskingConfig(Strict):
    """How much is hidden, and what recovering it weighs; `[pretrain.masking]` of a run's TOML file."""

    item_rate: float = Option(default=0.12, gt=0, lt=1, description="events whose item is hidden")
    whole_item_rate: float = Option(
        default=0.8, ge=0, le=1, description="of those: all fields hidden; else each field by a toss"
    )
    behaviour_rate: float = Option(default=0.3, gt=0, lt=1, description="events whose behaviour is hidden")
    unknown_rate: float = Option(
        default=0.05,
        ge=0,
        lt=1,
        description="ids and user features shown as unknown, so that those learn too",
    )
    item_weight: float = Option(default=1.0, ge=0)
    behaviour_weight: float = Option(default=1.0, ge=0)
    candidate_weight: float = Option(default=1.0, ge=0)


def drop_to_unknown(codes_XW: Tensor, rate: float, columns: slice = slice(None)) -> Tensor:
    """Codes with rows of `columns` set to unknown at `rate`; padding stays padding."""
    drop_X1 = torch.rand(codes_XW.shape[:-1], device=codes_XW.device)[..., None] < rate
    part = codes_XW[..., columns]
    dropped = codes_XW.clone()
    dropped[..., columns] = torch.where(drop_X1 & (part != PADDING), UNKNOWN, part)
    return dropped


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


class PretrainObjective(nn.Module):
    """The masked objective; its heads are left behind when pre-training ends."""

    def __init__(self, fields: Fields, width: int, masking: MaskingConfig) -> None:
        super().__init__()
        self.masking = masking
        self.item_heads = nn.ModuleList(FieldHead(field, width, tied=True) for field in fields.item)
        self.behaviour_heads = nn.ModuleList(
            FieldHead(field, width, tied=False) for field in fields.behaviour
        )
        self.candidate_heads = nn.ModuleList(
            FieldHead(field, width, tied=False) for field in fields.behaviour
        )

    def forward(
        self, model: Srp4Ctr, items_ULW: Tensor, behaviours_ULW: Tensor, labels_UL: Tensor, users_UW: Tensor
    ) -> dict[str, Tensor]:
        """Losses by name, `total` weighted; `labels_UL` are event labels 0 or 1, and -1 where there is none."""
        masking, fields = self.masking, model.fields
        shown_ULW = drop_to_unknown(items_ULW, masking.unknown_rate, slice(0, 1))
        users_UW = drop_to_unknown(users_UW, masking.unknown_rate)
        hidden_ULF = self._draw_items(items_ULW, len(fields.item))
        masked_items_ULW = _hide(fields.item, shown_ULW, hidden_ULF)
        place_UK, drawn_UK = self._draw_behaviours(items_ULW)
        masked_behaviours_ULW = _hide_at(fields.behaviour, behaviours_ULW, place_UK, drawn_UK)

        history_USD, bias_US = model.encode_history(masked_items_ULW, masked_behaviours_ULW)
        h_ULD = history_USD[:, 1:]
        losses: dict[str, Tensor] = {}
        for index, (field, head) in enumerate(zip(fields.item, self.item_heads, strict=True)):
            hidden_UL = hidden_ULF[..., index]
            codes_MV = items_ULW[hidden_UL][:, field.start : field.start + field.width]
            losses[f"item.{field.name}"] = head(h_ULD[hidden_UL], codes_MV, model.items.values(index))

        drawn_h_MD = _take(h_ULD, place_UK)[drawn_UK]
        drawn_codes_MW = _take(behaviours_ULW, place_UK)[drawn_UK]
        for field, head in zip(fields.behaviour, self.behaviour_heads, strict=True):
            losses[f"behaviour.{field.name}"] = head(drawn_h_MD, drawn_codes_MW[:, field.start, None])

        state = model.read_state(history_USD, bias_US, users_UW)
        e_UKD, z_UKD = model.cross_attend(state, _take(shown_ULW, place_UK))
        for field, head in zip(fields.behaviour, self.candidate_heads, strict=True):
            losses[f"candidate.{field.name}"] = head(z_UKD[drawn_UK], drawn_codes_MW[:, field.start, None])
        label_UK = _take(labels_UL[..., None], place_UK)[..., 0]
        labelled_UK = drawn_UK & (label_UK >= 0)
        if labelled_UK.any():
            context_U1W = users_UW.new_full((len(users_UW), 1, Fields.width(fields.context)), UNKNOWN)
            logit_UK = model.logit(state, e_UKD, z_UKD, context_U1W)
            losses["candidate.label"] = F.binary_cross_entropy_with_logits(
                logit_UK[labelled_UK], label_UK[labelled_UK].float()
            )
        weights = {
            "item": masking.item_weight,
            "behaviour": masking.behaviour_weight,
            "candidate": masking.candidate_weight,
        }
        losses["total"] = torch.stack(
            [weights[name.split(".")[0]] * loss for name, loss in losses.items()]
        ).sum()
        return losses

    def _draw_items(self, items_ULW: Tensor, fields: int) -> Tensor:
        event_UL = items_ULW[..., 0] != PADDING
        chosen_UL = event_UL & (torch.rand(event_UL.shape) < self.masking.item_rate)
        whole_UL1 = (torch.rand(event_UL.shape) < self.masking.whole_item_rate)[..., None]
        toss_ULF = torch.rand(*event_UL.shape, fields) < 0.5
        return chosen_UL[..., None] & (whole_UL1 | toss_ULF)

    def _draw_behaviours(self, items_ULW: Tensor) -> tuple[Tensor, Tensor]:
        """Places [U, K] of events whose behaviour is hidden, and which of them count for that sequence."""
        event_UL = items_ULW[..., 0] != PADDING
        wanted_U = torch.ceil(event_UL.sum(1).double() * self.masking.behaviour_rate)
        most = math.ceil(event_UL.shape[1] * self.masking.behaviour_rate)
        lottery_UL = torch.rand(event_UL.shape).masked_fill(~event_UL, -1.0)
        place_UK = lottery_UL.topk(most, dim=1).indices
        return place_UK, torch.arange(most)[None, :] < wanted_U[:, None]


def _take(x_ULX: Tensor, place_UK: Tensor) -> Tensor:
    return x_ULX.gather(1, place_UK[..., None].expand(-1, -1, x_ULX.shape[-1]))


def _hide(fields: tuple[Field, ...], codes_ULW: Tensor, hidden_ULF: Tensor) -> Tensor:
    width = torch.tensor([field.width for field in fields])
    hidden_ULW = hidden_ULF.repeat_interleave(width, dim=-1)
    return torch.where(hidden_ULW, mask_codes(fields, codes_ULW), codes_ULW)


def _hide_at(fields: tuple[Field, ...], codes_ULW: Tensor, place_UK: Tensor, drawn_UK: Tensor) -> Tensor:
    hidden_UL = torch.zeros(codes_ULW.shape[:2], dtype=torch.bool).scatter(1, place_UK, drawn_UK)
    return torch.where(hidden_UL[..., None], mask_codes(fields, codes_ULW), codes_ULW)
