"""The whole model: encoder, querying transformer, uni cross-attention, CTR tower.

`encode_user` gives the state that is cached; `score` needs nothing of the user but that state; `forward` is both.
A candidate attends to the state and never to another candidate, and the state never depends on a candidate.
"""

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field as Option
from pydantic import model_validator
from torch import Tensor, nn

from srp4ctr.contract.state import ArraySpec, StateLayout, code_dtype
from srp4ctr.contract.transforms import Fields
from srp4ctr.contract.vocabulary import PADDING
from srp4ctr.nn.attention import Attention, Block
from srp4ctr.nn.ctr import Count, CtrModel, Sizes, tower
from srp4ctr.nn.embedding import FieldEmbeddings
from srp4ctr.nn.encoder import Encoded, HistoryEncoder
from srp4ctr.nn.querying import QueryingTransformer
from srp4ctr.nn.recent import RecentEvents

State = dict[str, Tensor]
"""User state arrays by name, each [U, ...]: what `StateLayout` declares."""


class ModelConfig(Sizes):
    """Sizes of the network; `[model]` of a run's TOML file."""

    state: Literal["tokens", "sequence"] = Option(
        default="tokens",
        description="what is cached of a user: the querying transformer's output, or what every layer reads",
    )
    state_dtype: Literal["float32", "float16", "int8"] = Option(
        default="float16", description="how states are stored"
    )
    tower: tuple[Count, ...] = Option(default=(64, 32), description="hidden widths of the CTR tower")
    layers: Count = Option(
        default=1,
        description="of the history encoder; with state = 'sequence' by default as many as a candidate has blocks",
    )
    query_tokens: Count = Option(default=16, description="vectors that a state of tokens has")
    query_layers: Annotated[int, Option(ge=0)] = Option(
        default=1, description="of the querying transformer; 0: the mean of the history is the only token"
    )
    query_reads: Literal["last", "every"] = Option(
        default="last", description="the encoder layers whose output the queries read"
    )
    recent_events: Annotated[int, Option(ge=0)] = Option(
        default=0,
        description="latest events that a tokens state keeps as codes; a candidate's first block reads them",
    )
    cross_layers: Annotated[int, Option(ge=0)] = Option(
        default=2, description="uni cross-attention blocks of a candidate; 0: it sees the tokens' mean"
    )
    feed_forward: Count = Option(
        default=1,
        description="hidden width of the feed-forward layers of the encoder and the querying transformer, in widths",
    )
    cross_feed_forward: Count = Option(
        default=1, description="the same of a candidate's blocks, which is most of what a candidate costs"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_block_reads_a_layer(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("state") == "sequence" and "layers" not in given:
            blocks = given.get("cross_layers", cls.model_fields["cross_layers"].default)
            return given | {"layers": blocks}
        return given

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.recent_events and (self.state != "tokens" or self.cross_layers < 2):
            raise ValueError(
                "recent_events needs state = 'tokens' and a block of its own: cross_layers of 2 or more"
            )
        if self.state == "sequence" and self.cross_layers != self.layers:
            raise ValueError(
                f"state = 'sequence' reads every layer: cross_layers = {self.cross_layers} must be layers = {self.layers}"
            )
        return self


class Srp4Ctr(CtrModel):
    """SRP4CTR with the `tokens` or the `sequence` state."""

    def __init__(self, config: ModelConfig, fields: Fields, max_events: int) -> None:
        super().__init__(fields, max_events)
        self.config = config
        width, heads, dropout = config.width, config.heads, config.dropout
        self.items = FieldEmbeddings(fields.item, width)
        self.users = FieldEmbeddings(fields.user, width)
        self.contexts = FieldEmbeddings(fields.context, width)
        hidden = config.feed_forward * width
        self.encoder = HistoryEncoder(fields, max_events, width, heads, config.layers, hidden, dropout)
        self.querying: QueryingTransformer | None = None
        if config.state == "tokens" and config.query_layers:
            self.querying = QueryingTransformer(
                config.query_tokens, width, heads, config.query_layers, hidden, dropout
            )
        self.recent: RecentEvents | None = None
        if config.recent_events:
            self.recent = RecentEvents(config.recent_events, width)
        self.norm_candidate = nn.LayerNorm(width)
        self.cross = nn.ModuleList(
            Block(width, heads, config.cross_feed_forward * width, dropout)
            for _ in range(config.cross_layers)
        )
        self.norm_cross = nn.LayerNorm(width)
        self.tower = tower(config, 5 * width)
        for block, layer in zip(self.cross, self.encoder.blocks, strict=False):
            mine, encoders = _attention(block), _attention(layer)
            if config.state == "sequence":
                # A candidate reads a layer through that layer's own keys and values (claim 4).
                mine.key, mine.value = encoders.key, encoders.value
            else:
                _copy_keys_and_values(mine, encoders)

    def copy_keys_and_values(self) -> None:
        """Let candidates read with the keys and values that the encoder has now; untied from then on.

        A block beyond the encoder's layers takes the last one's. In a `sequence` model they are the encoder's own, and this changes
        nothing.
        """
        layers = self.encoder.blocks
        for place, mine in enumerate(self.cross):
            _copy_keys_and_values(_attention(mine), _attention(layers[min(place, len(layers) - 1)]))

    @property
    def state_layout(self) -> StateLayout:
        """What a cached state of this model consists of."""
        config = self.config
        shape: tuple[int | Literal["S"], ...]
        if config.state == "sequence":
            name, shape = "layers", ("S", config.layers * config.width)
        else:
            name, shape = "tokens", (config.query_tokens if config.query_layers else 1, config.width)
        arrays = [ArraySpec(name=name, dtype=config.state_dtype, shape=shape)]
        if config.recent_events:
            ids = code_dtype(self.fields.item[0].size)
            arrays.append(ArraySpec(name="recent_ids", dtype=ids, shape=(config.recent_events,)))
            if self.fields.behaviour:
                recent = (config.recent_events, Fields.width(self.fields.behaviour))
                behaviours = code_dtype(max(field.size for field in self.fields.behaviour))
                arrays.append(ArraySpec(name="recent_behaviours", dtype=behaviours, shape=recent))
        if self.fields.user:
            user_width = Fields.width(self.fields.user)
            arrays.append(ArraySpec(name="user_codes", dtype="int32", shape=(user_width,)))
        return StateLayout(kind=config.state, arrays=tuple(arrays))

    def encode_user(
        self, event_items_ULW: Tensor, event_behaviours_ULW: Tensor, user_codes_UW: Tensor
    ) -> State:
        """The users' states; histories are padded on the left with 0, L is 1 to max_events."""
        encoded = self.encode_history(event_items_ULW, event_behaviours_ULW)
        return self.read_state(encoded, user_codes_UW, event_items_ULW, event_behaviours_ULW)

    def encode_history(self, event_items_ULW: Tensor, event_behaviours_ULW: Tensor) -> Encoded:
        """The encoder's view of S = L + 1 positions, the start token last."""
        padding_UL = event_items_ULW[..., 0] == PADDING
        encoded: Encoded = self.encoder(self.items(event_items_ULW), event_behaviours_ULW, padding_UL)
        return encoded

    def read_state(
        self,
        encoded: Encoded,
        user_codes_UW: Tensor,
        event_items_ULW: Tensor,
        event_behaviours_ULW: Tensor,
    ) -> State:
        """The states of histories that are encoded already.

        In a `sequence` state a position whose numbers are all 0 is padding.
        """
        state: State = {"user_codes": user_codes_UW}
        if self.recent is not None:
            state["recent_ids"] = self.recent.latest(event_items_ULW[..., 0])
            state["recent_behaviours"] = self.recent.latest(event_behaviours_ULW)
        output_USD, read_USD, bias_US = encoded
        if self.config.state == "sequence":
            padding_US1 = (bias_US < 0)[..., None]
            layers_USX = torch.cat(read_USD, dim=-1).masked_fill(padding_US1, 0.0)
            return state | {"layers": layers_USX}
        if self.querying is None:
            kept_US1 = (bias_US >= 0)[..., None].to(output_USD.dtype)
            tokens_UQD = (output_USD * kept_US1).sum(1, keepdim=True) / kept_US1.sum(1, keepdim=True)
            return state | {"tokens": tokens_UQD}
        if self.config.query_reads == "every":
            output_USD = torch.cat([*read_USD, output_USD], dim=1)
            bias_US = bias_US.repeat(1, 1 + len(read_USD))
        return state | {"tokens": self.querying(output_USD, bias_US, self.users(user_codes_UW))}

    def cross_attend(self, state: State, item_codes_UCW: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates' own vectors and what they found in the user's state, each [U, C, D]."""
        e_UCD = self.norm_candidate(self.items(item_codes_UCW))
        if not len(self.cross):
            return e_UCD, state["tokens"].mean(1, keepdim=True).expand_as(e_UCD)
        z_UCD = e_UCD
        for block, (memory_UYD, bias_UY) in zip(self.cross, self.memories(state), strict=True):
            z_UCD = block(z_UCD, bias_UY, memory_UYD)
        return e_UCD, self.norm_cross(z_UCD)

    def memories(self, state: State) -> list[tuple[Tensor, Tensor | None]]:
        """What each of the candidate's blocks attends to [U, Y, D], and the bias [U, Y] that hides padding.

        The arrays of one state, without the dimension of users, give [Y, D] and [Y].
        """
        if self.config.state == "sequence":
            layers_USX = state["layers"]
            padding_US = (layers_USX == 0).all(-1)
            bias_US = torch.zeros_like(layers_USX[..., 0]).masked_fill(padding_US, float("-inf"))
            return [(layer_USD, bias_US) for layer_USD in torch.split(layers_USX, self.config.width, dim=-1)]
        memories: list[tuple[Tensor, Tensor | None]] = [(state["tokens"], None)] * len(self.cross)
        if self.recent is not None:
            memories[0] = self.recent(
                self.items.tables[0](state["recent_ids"]),
                self.encoder.behaviours(state["recent_behaviours"]),
                state["recent_ids"] == PADDING,
            )
        return memories

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

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """The encoder's and the item embeddings'."""
        return [*self.encoder.parameters(), *self.items.parameters()]

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


def _attention(block: nn.Module) -> Attention:
    assert isinstance(block, Block)
    return block.attention


def _copy_keys_and_values(mine: Attention, others: Attention) -> None:
    mine.key.load_state_dict(others.key.state_dict())
    mine.value.load_state_dict(others.value.state_dict())
