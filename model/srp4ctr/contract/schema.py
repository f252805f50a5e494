"""The feature schema: what a row, an event, an item and a user are made of.

It is written in a run's TOML file under `[schema]`, travels in every bundle as `schema.json`, and decides the
vocabularies, the embedding tables and what a request may contain.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FeatureType = Literal["categorical", "multi_valued", "numeric"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


class Strict(BaseModel):
    """An unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Feature(Strict):
    """One column of a table, and how its values become integer codes.

    - `categorical`: text, integer or boolean values; one code of a vocabulary.
    - `multi_valued`: a list of such values; up to `max_values` codes, the rest 0.
    - `numeric`: a number; the code of its quantile bucket, of which there are at most `buckets`.
    """

    name: Name
    type: FeatureType
    min_count: int = Field(default=1, ge=1, description="rarer values share the code of the unknown")
    max_values: int = Field(default=8, ge=1, le=256, description="multi_valued only: codes kept of a row")
    buckets: int = Field(default=16, ge=2, le=4096, description="numeric only: quantile buckets")

    @model_validator(mode="after")
    def _options_fit_the_type(self) -> Self:
        for option, of in (("max_values", "multi_valued"), ("buckets", "numeric")):
            if option in self.model_fields_set and self.type != of:
                raise ValueError(f"{option} belongs to type = '{of}', and {self.name!r} is '{self.type}'")
        if "min_count" in self.model_fields_set and self.type == "numeric":
            raise ValueError(f"min_count belongs to vocabularies, and {self.name!r} is numeric")
        return self

    @property
    def width(self) -> int:
        """Number of code columns that the feature takes."""
        return self.max_values if self.type == "multi_valued" else 1


class FeatureSchema(Strict):
    """Column names and features of the four tables: events, rows, items, users."""

    user_id: Name = "user_id"
    item_id: Name = "item_id"
    order: Name = Field(default="order", description="events and rows: what a user did earlier has less")
    timestamp: Name | None = Field(default=None, description="events: Unix seconds; informs, never orders")
    label: Name = Field(default="label", description="rows: 1 for a click, 0 for none")
    event_label: Name | None = Field(default=None, description="events: the label that the event had as a row")
    item_title: Name | None = Field(default=None, description="items: a text to show to people")
    max_events: int = Field(default=64, ge=1, le=4096, description="latest events that a history keeps")
    item_min_count: int = Field(default=1, ge=1, description="items with fewer training rows share one id code")

    item_attributes: tuple[Feature, ...] = ()
    behaviour_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()
    context_features: tuple[Feature, ...] = ()

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
        if self.item_id in [feature.name for feature in self.item_attributes]:
            raise ValueError(f"item_attributes: {self.item_id!r} is the item id, which is always a feature")
        if self.label in [feature.name for feature in self.context_features]:
            raise ValueError(f"context_features: {self.label!r} is the label")
        return self
