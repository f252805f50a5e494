"""The whole model: encoder, querying transformer, uni cross-attention, CTR tower.

`encode_user` gives the state that is cached; `score` needs nothing of the user but that state; `forward` is both.
A candidate attends to the state and never to another candidate, and the state never depends on a candidate.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from srp4ctr.contract.schema import Strict
from srp4ctr.contract.state import ArraySpec, StateLayout
from srp4ctr.contract.transforms import Fields
from srp4ctr.contract.vocabulary import PADDING
from srp4ctr.nn.attention import Block
from srp4ctr.nn.embedding import FieldEmbeddings
from srp4ctr.nn.encoder import HistoryEncoder
from srp4ctr.nn.querying import QueryingTransformer

State = dict[str, Tensor]
"""User state arrays by name, each [U, ...]: what `StateLayout` declares."""

Count = Annotated[int, Option(ge=1)]


class ModelConfig(Strict):
    """Sizes of the network; `[model]` of a run's TOML file."""

    state: Literal["tokens"] = Option(default="tokens", description="what is cached of a user")
    state_dtype: Literal["float16", "float32"] = Option(
        default="float16", description="how states are stored"
    )
    width: Count = Option(default=64, description="D")
    heads: Count = Option(default=4, description="N; divides width")
    layers: Count = Option(default=2, description="of the history encoder")
    query_tokens: Count = Option(default=16, description="Q")
    query_layers: Count = Option(default=1, description="of the querying transformer")
    cross_layers: Count = Option(default=2, description="uni cross-attention blocks of a candidate")
    tower: tuple[Count, ...] = Option(default=(128, 64), description="hidden widths of the CTR tower")
    dropout: float = Option(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self


class Srp4Ctr(nn.Module):
    """SRP4CTR with the `tokens` state."""

    def __init__(self, config: ModelConfig, fields: Fields, max_events: int) -> None:
        super().__init__()
        self.config, self.fields, self.max_events = config, fields, max_events
        width, heads, dropout = config.width, config.heads, config.dropout
        self.items = FieldEmbeddings(fields.item, width)
        self.users = FieldEmbeddings(fields.user, width)
        self.contexts = FieldEmbeddings(fields.context, width)
        self.encoder = HistoryEncoder(fields, max_events, width, heads, config.layers, dropout)
        self.querying = QueryingTransformer(config.query_tokens, width, heads, config.query_layers, dropout)
        self.norm_candidate = nn.LayerNorm(width)
        self.cross = nn.ModuleList(Block(width, heads, dropout) for _ in range(config.cross_layers))
        self.norm_cross = nn.LayerNorm(width)
        self.tower = _tower(5 * width, config.tower, dropout)
        # Platt scaling, fitted on validation rows after fine-tuning.
        self.calibration_scale: Tensor
        self.calibration_bias: Tensor
        self.register_buffer("calibration_scale", torch.ones(()))
        self.register_buffer("calibration_bias", torch.zeros(()))
        # The candidate reads the user with the keys and values that the encoder began with; untied from then on.
        for mine, encoders in zip(self.cross, self.encoder.blocks, strict=False):
            assert isinstance(mine, Block)
            assert isinstance(encoders, Block)
            mine.attention.key.load_state_dict(encoders.attention.key.state_dict())
            mine.attention.value.load_state_dict(encoders.attention.value.state_dict())

    @property
    def state_layout(self) -> StateLayout:
        """What a cached state of this model consists of."""
        config = self.config
        arrays = [
            ArraySpec(name="tokens", dtype=config.state_dtype, shape=(config.query_tokens, config.width)),
        ]
        if self.fields.user:
            user_width = Fields.width(self.fields.user)
            arrays.append(ArraySpec(name="user_codes", dtype="int32", shape=(user_width,)))
        return StateLayout(kind=config.state, arrays=tuple(arrays))

    def encode_user(
        self, event_items_ULW: Tensor, event_behaviours_ULW: Tensor, user_codes_UW: Tensor
    ) -> State:
        """The users' states; histories are padded on the left with 0, L is 1 to max_events."""
        history_USD, bias_US = self.encode_history(event_items_ULW, event_behaviours_ULW)
        return self.read_state(history_USD, bias_US, user_codes_UW)

    def encode_history(self, event_items_ULW: Tensor, event_behaviours_ULW: Tensor) -> tuple[Tensor, Tensor]:
        """One vector an event [U, S, D], the start token first, and the bias [U, S] that hides padding."""
        padding_UL = event_items_ULW[..., 0] == PADDING
        encoded: tuple[Tensor, Tensor] = self.encoder(
            self.items(event_items_ULW), event_behaviours_ULW, padding_UL
        )
        return encoded

    def read_state(self, history_USD: Tensor, bias_US: Tensor, user_codes_UW: Tensor) -> State:
        """The states of histories that are encoded already."""
        tokens_UQD = self.querying(history_USD, bias_US, self.users(user_codes_UW))
        return {"tokens": tokens_UQD, "user_codes": user_codes_UW}

    def cross_attend(self, state: State, item_codes_UCW: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates' own vectors and what they found in the user's state, each [U, C, D]."""
        e_UCD = self.norm_candidate(self.items(item_codes_UCW))
        z_UCD = e_UCD
        for block in self.cross:
            z_UCD = block(z_UCD, memory_UYD=state["tokens"])
        return e_UCD, self.norm_cross(z_UCD)

    def logit(self, state: State, e_UCD: Tensor, z_UCD: Tensor, context_codes_UCW: Tensor) -> Tensor:
        """Uncalibrated logits [U, C] of candidates that have cross-attended; a context for each or one for all."""
        user_UCD = self.users(state["user_codes"])[:, None, :].expand_as(e_UCD)
        context_UCD = self.contexts(context_codes_UCW).expand_as(e_UCD)
        features = torch.cat([e_UCD, z_UCD, e_UCD * z_UCD, user_UCD, context_UCD], dim=-1)
        logit_UC: Tensor = self.tower(features).squeeze(-1)
        return logit_UC

    def score(self, state: State, item_codes_UCW: Tensor, context_codes_UCW: Tensor) -> Tensor:
        """Uncalibrated logits [U, C] of candidates [U, C, W] under contexts [U, C or 1, W]."""
        e_UCD, z_UCD = self.cross_attend(state, item_codes_UCW)
        return self.logit(state, e_UCD, z_UCD, context_codes_UCW)

    def calibrate(self, logit: Tensor) -> Tensor:
        """Click probabilities of logits of any shape."""
        return torch.sigmoid(self.calibration_scale * logit + self.calibration_bias)

    def forward(
        self,
        event_items_ULW: Tensor,
        event_behaviours_ULW: Tensor,
        user_codes_UW: Tensor,
        item_codes_UCW: Tensor,
        context_codes_UCW: Tensor,
    ) -> Tensor:
        """Uncalibrated logits [U, C]: the state encoded and scored at once."""
        state = self.encode_user(event_items_ULW, event_behaviours_ULW, user_codes_UW)
        return self.score(state, item_codes_UCW, context_codes_UCW)


def _tower(width: int, hidden: tuple[int, ...], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))
