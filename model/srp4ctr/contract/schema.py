"""The feature schema: what a row, an event, an item and a user are made of.

It is written in a run's TOML file under `[schema]`, travels in every bundle as `schema.json`, and decides the
vocabularies, the embedding tables and what a request may contain.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


class Strict(BaseModel):
    """An unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SingleValued(Strict):
    """What features of one value share: their `reference` is written only where there is one.

    Schemas that use none are thus the same bytes as before there were references, and so are their fingerprints.
    """

    @model_serializer(mode="wrap")
    def _without_no_reference(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = write(self)
        if content.get("reference") is None:
            content.pop("reference", None)
        return content


class CategoricalFeature(SingleValued):
    """A text, an integer or a boolean: one code of a vocabulary."""

    name: Name = Field(description="column")
    type: Literal["categorical"]
    min_count: int = Field(default=1, ge=1, description="rarer values share the code of the unknown")
    reference: str | int | bool | None = Field(
        default=None,
        description="context_features: trained with the logged value, held at this one when serving",
    )
    width: ClassVar[int] = 1

    @field_validator("reference", mode="before")
    @classmethod
    def _is_a_category(cls, value: object) -> object:
        if value is not None and not isinstance(value, str | int):
            raise ValueError("must be a text, an integer or a boolean")
        if isinstance(value, str) and (value == "" or "\0" in value):
            raise ValueError("must be a text that is not empty and does not hold the character NUL")
        return value


class MultiValuedFeature(Strict):
    """A list of such values: up to `max_values` codes of a vocabulary, the rest 0."""

    name: Name = Field(description="column; only item_attributes may have this type")
    type: Literal["multi_valued"]
    min_count: int = Field(default=1, ge=1, description="rarer values share the code of the unknown")
    max_values: int = Field(default=8, ge=1, le=256, description="values kept of a list")
    reference: ClassVar[None] = None

    @property
    def width(self) -> int:
        """Number of code columns."""
        return self.max_values


class NumericFeature(SingleValued):
    """A number: the code of its quantile bucket."""

    name: Name = Field(description="column")
    type: Literal["numeric"]
    buckets: int = Field(default=16, ge=2, le=4096, description="quantile buckets, at most")
    reference: Annotated[float, Field(strict=True, allow_inf_nan=False)] | None = Field(
        default=None,
        description="context_features: trained with the logged value, held at this one when serving",
    )
    width: ClassVar[int] = 1


Feature = Annotated[CategoricalFeature | MultiValuedFeature | NumericFeature, Field(discriminator="type")]
"""One column of a table, and how its values become integer codes."""


class FeatureSchema(Strict):
    """Column names and features of the four tables: events, rows, items, users."""

    user_id: Name = Field(default="user_id", description="events, rows and users: column of the user's id")
    item_id: Name = Field(default="item_id", description="events, rows and items: column of the item's id")
    order: Name = Field(default="order", description="events and rows: what a user did earlier has less")
    timestamp: Name | None = Field(default=None, description="events: Unix seconds; informs, never orders")
    label: Name = Field(default="label", description="rows: 1 for a click, 0 for none")
    event_label: Name | None = Field(
        default=None, description="events: the label that the event had as a row"
    )
    item_title: Name | None = Field(default=None, description="items: a text to show to people")
    max_events: int = Field(default=64, ge=2, le=4096, description="latest events that a history keeps")
    item_min_count: int = Field(
        default=1,
        ge=1,
        description="items that fewer training rows, and fewer events, name share one id code",
    )

    item_attributes: tuple[Feature, ...] = Field(default=(), description="items: what an item is")
    behaviour_features: tuple[Feature, ...] = Field(
        default=(), description="events: how the user behaved; predicted in pre-training"
    )
    user_features: tuple[Feature, ...] = Field(default=(), description="users: who the user is")
    context_features: tuple[Feature, ...] = Field(
        default=(), description="rows: when and where an item was shown; requests may give them"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for group in ("item_attributes", "behaviour_features", "user_features", "context_features"):
            features: tuple[Feature, ...] = getattr(self, group)
            names = [feature.name for feature in features]
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"{group}: {sorted(twice)} is declared twice")
            for feature in features:
                if feature.type == "multi_valued" and group != "item_attributes":
                    raise ValueError(
                        f"{group}: {feature.name!r} is multi_valued, which only item_attributes may be"
                    )
                if feature.reference is not None and group != "context_features":
                    raise ValueError(
                        f"{group}: {feature.name!r} has a reference, which only context_features may have"
                    )
        for name in (self.item_id, "id"):
            if name in [feature.name for feature in self.item_attributes]:
                raise ValueError(f"item_attributes: {name!r} is the item id, which is always a feature")
        for feature in self.context_features:
            if feature.name in (self.label, self.event_label):
                raise ValueError(f"context_features: {feature.name!r} is the label")
        return self
