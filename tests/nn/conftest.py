"""What tests of the pre-training objective share: made-up sequences, and a model that notes what it is given."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch

from srp4ctr.contract.transforms import Field, Fields
from srp4ctr.contract.vocabulary import FIRST_VALUE, PADDING
from srp4ctr.nn.encoder import Encoded
from srp4ctr.nn.model import ModelConfig, Srp4Ctr
from srp4ctr.nn.objectives import MaskingConfig, PretrainObjective

FIELDS = Fields(
    item=(
        Field("id", "categorical", 0, 1, 40),
        Field("tags", "multi_valued", 1, 3, 9),
        Field("price", "numeric", 4, 1, 7),
    ),
    behaviour=(Field("event_type", "categorical", 0, 1, 6), Field("dwell", "numeric", 1, 1, 8)),
    user=(Field("age", "numeric", 0, 1, 6), Field("region", "categorical", 1, 1, 9)),
    context=(Field("hour", "categorical", 0, 1, 5), Field("device", "categorical", 1, 1, 4)),
)
SIZES = ModelConfig(
    width=8, heads=2, layers=1, query_tokens=2, cross_layers=1, tower=(8,), dropout=0.0, state_dtype="float32"
)


def noted(prefix: str, encoded: Encoded) -> dict[str, torch.Tensor]:
    """An encoder's view by the names of its parts."""
    return {
        f"{prefix}history": encoded.output_USD,
        f"{prefix}layers": torch.stack(encoded.read_USD),
        f"{prefix}bias": encoded.bias_US,
    }


class Spy(Srp4Ctr):
    """The model, noting every tensor that it is given."""

    def __init__(self, sizes: ModelConfig, fields: Fields, max_events: int) -> None:
        super().__init__(sizes, fields, max_events)
        self.given: dict[str, torch.Tensor] = {}

    def encode_history(self, event_items, event_behaviours):
        """Note the masked histories, and what the encoder makes of them."""
        encoded = super().encode_history(event_items, event_behaviours)
        self.given |= {"items": event_items, "behaviours": event_behaviours, **noted("", encoded)}
        return encoded

    def read_state(self, encoded, user_codes, event_items, event_behaviours):
        """Note what the state is made of."""
        self.given |= {"users": user_codes, **noted("read.", encoded)}
        self.given |= {"read.items": event_items, "read.behaviours": event_behaviours}
        return super().read_state(encoded, user_codes, event_items, event_behaviours)

    def cross_attend(self, state, item_codes):
        """Note the candidates."""
        e, z = super().cross_attend(state, item_codes)
        self.given |= {f"state.{name}": array for name, array in state.items()}
        self.given |= {"candidates": item_codes, "z": z}
        return e, z

    def logit(self, state, e, z, context_codes):
        """Note what the tower sees, and what it says."""
        logit = super().logit(state, e, z, context_codes)
        self.given |= {"tower.e": e, "tower.z": z, "contexts": context_codes, "logit": logit}
        return logit


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices are so small here that several threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Batch:
    """What the objective takes."""

    items: torch.Tensor
    behaviours: torch.Tensor
    labels: torch.Tensor
    users: torch.Tensor


def known_codes(fields, shape, generator) -> torch.Tensor:
    """Random codes of known values; a list holds one or more."""
    columns = [torch.empty(*shape, 0, dtype=torch.int64)]
    for field in fields:
        codes = torch.randint(FIRST_VALUE, field.size, (*shape, field.width), generator=generator)
        columns.append(codes)
        if field.width > 1:
            codes[..., 1:] *= torch.randint(2, (*shape, field.width - 1), generator=generator)
    return torch.cat(columns, dim=-1).int()


def make_batch(lengths, fields: Fields = FIELDS, seed: int = 0) -> Batch:
    """Sequences of these many events, padded on the left; nothing in them is unknown and each has its label."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(*lengths, 1)
    padding = torch.arange(longest)[None] < longest - torch.tensor(lengths)[:, None]
    shape = padding.shape
    return Batch(
        known_codes(fields.item, shape, generator).masked_fill(padding[..., None], PADDING),
        known_codes(fields.behaviour, shape, generator).masked_fill(padding[..., None], PADDING),
        torch.randint(2, shape, generator=generator).masked_fill(padding, -1).to(torch.int8),
        known_codes(fields.user, shape[:1], generator),
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One call of the objective; `asked` holds the vectors [M, D] and the codes [M, V] that each head was given.

    `matched` is what attribute matches added to the items' logits, where there are any.
    """

    model: Spy
    objective: PretrainObjective
    losses: dict[str, torch.Tensor]
    asked: dict[str, tuple[torch.Tensor, torch.Tensor]]
    matched: list[torch.Tensor]

    @property
    def given(self) -> dict[str, torch.Tensor]:
        """What the model was given."""
        return self.model.given

    def hidden_items(self) -> torch.Tensor:
        """Which columns of the history's items were hidden."""
        return torch.cat(
            [
                (self.given["items"][..., field.start, None] == field.size).expand(-1, -1, field.width)
                for field in self.model.fields.item
            ],
            dim=-1,
        )

    def hidden_behaviours(self) -> torch.Tensor:
        """At which events all of the behaviour was hidden."""
        sizes = torch.tensor([field.size for field in self.model.fields.behaviour])
        return (self.given["behaviours"] == sizes).all(-1)

    def gradients(self) -> dict[str, torch.Tensor]:
        """The gradients of the total loss, by parameter; those that it does not reach are left out."""
        self.losses["total"].backward()
        parameters = [*self.model.named_parameters(), *self.objective.named_parameters()]
        return {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}


def apply_objective(
    batch: Batch, fields: Fields = FIELDS, *, seed: int = 0, sizes: ModelConfig = SIZES, **masking
) -> Outcome:
    """Apply the objective of fixed weights, its draws decided by `seed`."""
    generator = torch.Generator().manual_seed(7)
    values = fields.item[0].size - FIRST_VALUE
    catalogue = known_codes(fields.item, (values,), generator)
    catalogue[:, 0] = torch.arange(FIRST_VALUE, fields.item[0].size)
    counts = torch.randint(20, (values,), generator=generator)
    torch.manual_seed(11)
    model = Spy(sizes, fields, batch.items.shape[1])
    objective = PretrainObjective(fields, sizes.width, MaskingConfig(**masking), catalogue, counts)
    asked: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    matched: list[torch.Tensor] = []

    def note_items(_, args, __) -> None:
        encodings, codes, _, of_history = args
        asked["item.id"] = (encodings, codes[:, None])
        if of_history is not None:
            matched.append(of_history.item_logits())

    objective.item_head.register_forward_hook(note_items)
    for kind, heads in (
        ("item", objective.attribute_heads),
        ("behaviour", objective.behaviour_heads),
        ("candidate", objective.candidate_heads),
    ):
        for head in heads:
            name = f"{kind}.{head.field.name}"
            head.register_forward_hook(lambda _, args, __, name=name: asked.update({name: args[:2]}))
    torch.manual_seed(seed)
    losses = objective(model, batch.items, batch.behaviours, batch.labels, batch.users)
    return Outcome(model, objective, losses, asked, matched)


def place_of(row: torch.Tensor, rows: torch.Tensor) -> tuple[int, ...]:
    """Where `rows` hold a row, which they must do once."""
    (place,) = (rows == row).all(-1).nonzero().tolist()
    return tuple(place)


@pytest.fixture(name="fields")
def _fields() -> Fields:
    """The features of the made-up sequences."""
    return FIELDS


@pytest.fixture(name="make_batch")
def _make_batch() -> Callable[..., Batch]:
    """Make sequences of the lengths given."""
    return make_batch


@pytest.fixture(name="recover")
def _recover() -> Callable[..., Outcome]:
    """Apply the objective to sequences."""
    return apply_objective


@pytest.fixture(name="sizes")
def _sizes() -> ModelConfig:
    """Sizes of the model that the objective is applied to."""
    return SIZES


@pytest.fixture(name="whereabouts")
def _whereabouts() -> Callable[..., tuple[int, ...]]:
    """Find a row among rows."""
    return place_of
