"""DeepFM (Guo et al., IJCAI 2017): linear terms, all pairs of field vectors, and a network on the same vectors.

The fields are those of the candidate, the user and the context, and the mean over the history's events as one more.

Shapes: U users, L events of a history, C candidates, W code columns, D width, F fields.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.contract.vocabulary import PADDING
from srp4ctr.nn.baselines.parts import Baseline, BaselineConfig, mean_of_events
from srp4ctr.nn.ctr import tower
from srp4ctr.nn.embedding import FieldEmbeddings


class DeepFm(Baseline):
    """DeepFM: which events have to do with the candidate, it can only tell from the mean of them all."""

    def __init__(self, config: BaselineConfig, fields: Fields, max_events: int) -> None:
        super().__init__(config, fields, max_events)
        width = config.width
        self.item_fields = _one_by_one(fields.item, width)
        self.user_fields = _one_by_one(fields.user, width)
        self.context_fields = _one_by_one(fields.context, width)
        self.behaviours = FieldEmbeddings(fields.behaviour, width)
        self.item_terms = FieldEmbeddings(fields.item, 1)
        self.user_terms = FieldEmbeddings(fields.user, 1)
        self.context_terms = FieldEmbeddings(fields.context, 1)
        self.history_term = nn.Linear(width, 1)
        count = len(fields.item) + len(fields.user) + len(fields.context) + 1
        self.tower = tower(config, count * width)

    def forward(
        self,
        event_items_ULW: Tensor,
        event_behaviours_ULW: Tensor,
        user_codes_UW: Tensor,
        item_codes_UCW: Tensor,
        context_codes_UCW: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [U, C]."""
        user_codes_U1W = user_codes_UW[:, None]
        x_ULD = torch.stack(_vectors(self.item_fields, event_items_ULW)).sum(0)
        x_ULD = x_ULD + self.behaviours(event_behaviours_ULW)
        history_U1D = mean_of_events(x_ULD, event_items_ULW[..., 0] != PADDING)[:, None]
        vectors = _vectors(self.item_fields, item_codes_UCW)
        shape = vectors[0].shape
        vectors += [
            vector.expand(shape)
            for vector in (
                *_vectors(self.user_fields, user_codes_U1W),
                *_vectors(self.context_fields, context_codes_UCW),
                history_U1D,
            )
        ]
        v_UCFD = torch.stack(vectors, dim=2)
        # All pairs at once: half of the squared sum without the squares.
        pairs_UC = 0.5 * (v_UCFD.sum(2).square() - v_UCFD.square().sum(2)).sum(-1)
        linear_UC1 = (
            self.item_terms(item_codes_UCW)
            + self.user_terms(user_codes_U1W)
            + self.context_terms(context_codes_UCW)
            + self.history_term(history_U1D)
        )
        logit_UC: Tensor = linear_UC1.squeeze(-1) + pairs_UC + self.tower(v_UCFD.flatten(2)).squeeze(-1)
        return logit_UC


def _one_by_one(fields: tuple[Field, ...], width: int) -> nn.ModuleList:
    return nn.ModuleList(FieldEmbeddings((field,), width) for field in fields)


def _vectors(embeddings: Iterable[nn.Module], codes_XW: Tensor) -> list[Tensor]:
    return [embedding(codes_XW) for embedding in embeddings]
