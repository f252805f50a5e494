"""Raw values to integer codes: the one set of transforms, used by the offline jobs and by the service.

Every feature becomes one or more int32 code columns. Codes of one group (an item's id and attributes, an event's
behaviour features, a user's features, a request's context) stand side by side in one matrix [N, W], in the order
of the schema: an item's first column is its id. 0 pads, 1 is unknown or missing, values begin at 2.

A context feature with a `reference`, such as the position at which an item was shown, is known of logged rows alone:
tables give its logged value, to train with; requests, and logged rows `at_reference`, the reference.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import BundleError, InvalidRequest
from srp4ctr.contract.schema import (
    CategoricalFeature,
    Feature,
    FeatureSchema,
    MultiValuedFeature,
    NumericFeature,
)
from srp4ctr.contract.vocabulary import FIRST_VALUE, UNKNOWN, Codes, Texts, Vocabulary

ITEM_ID = "id"
"""The item id's feature name inside the item group."""

SCHEMA = "schema.json"
"""Of a bundle or of prepared data: the file that holds the schema."""

ITEM, BEHAVIOUR, USER, CONTEXT = GROUPS = ("item", "behaviour", "user", "context")

Boundaries = NDArray[np.float64]


def canonical_text(value: str | int | bool) -> str:
    """The text by which a categorical value is known everywhere: `true`, `42`, or the string itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def check_value(value: str | float | bool | None, path: str) -> None:
    """Raise InvalidRequest, which names `path`, where no feature of any schema could take the value."""
    if isinstance(value, str):
        _request_text(value, path)
    elif value is not None:
        _check_finite(value, path)


@dataclass(frozen=True)
class Field:
    """One feature's place in its group's code matrix: columns `start` to `start + width` hold codes < `size`."""

    name: str
    type: Literal["categorical", "multi_valued", "numeric"]
    start: int
    width: int
    size: int

    @property
    def columns(self) -> slice:
        """Its columns of the matrix."""
        return slice(self.start, self.start + self.width)


@dataclass(frozen=True)
class Fields:
    """The code layout of all groups; with a model configuration, all that the network needs to know of the data."""

    item: tuple[Field, ...]
    behaviour: tuple[Field, ...]
    user: tuple[Field, ...]
    context: tuple[Field, ...]

    @staticmethod
    def width(group: tuple[Field, ...]) -> int:
        """Number of code columns of a group."""
        return sum(field.width for field in group)


def fit_boundaries(numbers: NDArray[np.float64], buckets: int) -> Boundaries:
    """Inner quantile boundaries of the finite numbers; equal ones are merged, so there may be fewer buckets."""
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return np.empty(0, np.float64)
    quantiles = np.quantile(finite, np.arange(1, buckets) / buckets, method="higher")
    # A boundary at the minimum would leave the first bucket empty.
    return np.unique(quantiles[quantiles > finite.min()]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Transforms:
    """A schema with its fitted vocabularies and bucket boundaries, keyed by `group.feature`."""

    schema: FeatureSchema
    vocabularies: Mapping[str, Vocabulary]
    boundaries: Mapping[str, Boundaries]

    def features(self, group: str) -> tuple[Feature, ...]:
        """The group's features in the order of their code columns."""
        schema = self.schema
        if group == ITEM:
            item_id = CategoricalFeature(name=ITEM_ID, type="categorical", min_count=schema.item_min_count)
            return (item_id, *schema.item_attributes)
        return {
            BEHAVIOUR: schema.behaviour_features,
            USER: schema.user_features,
            CONTEXT: schema.context_features,
        }[group]

    @property
    def fields(self) -> Fields:
        """The code layout of all groups."""
        return Fields(**{group: self._layout(group) for group in GROUPS})

    def _layout(self, group: str) -> tuple[Field, ...]:
        layout, start = [], 0
        for feature in self.features(group):
            key = f"{group}.{feature.name}"
            if feature.type == "numeric":
                size = len(self.boundaries[key]) + 1 + FIRST_VALUE
            else:
                size = self.vocabularies[key].size
            layout.append(Field(feature.name, feature.type, start, feature.width, size))
            start += feature.width
        return tuple(layout)

    def encode_categorical(self, group: str, feature: CategoricalFeature, texts: Texts) -> Codes:
        """Codes [N, 1] of texts [N]; the empty text is a missing value."""
        return self.vocabularies[f"{group}.{feature.name}"].encode(texts)[:, None]

    def encode_numeric(self, group: str, feature: NumericFeature, numbers: NDArray[np.float64]) -> Codes:
        """Codes [N, 1] of numbers [N]; NaN is a missing value."""
        bucket = np.searchsorted(self.boundaries[f"{group}.{feature.name}"], numbers, side="right")
        return np.where(np.isnan(numbers), UNKNOWN, bucket + FIRST_VALUE).astype(np.int32)[:, None]

    def encode_multi_valued(
        self, group: str, feature: MultiValuedFeature, texts: Texts, lengths: NDArray[np.int64]
    ) -> Codes:
        """Codes [N, max_values] of N lists, given as their concatenated texts and their lengths [N].

        The first `max_values` values of a list are kept; what is left of the columns is padding.
        """
        codes = np.zeros((len(lengths), feature.max_values), np.int32)
        row = np.repeat(np.arange(len(lengths)), lengths)
        column = np.arange(len(texts)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keep = column < feature.max_values
        encoded = self.vocabularies[f"{group}.{feature.name}"].encode(texts)
        codes[row[keep], column[keep]] = encoded[keep]
        return codes

    def encode_values(self, group: str, values: Mapping[str, Any], field: str) -> Codes:
        """Codes [W] of one JSON object; what it lacks, or gives as null, is missing, or held at its reference.

        `field` is the object's path in the request, for errors: InvalidRequest names the key at fault.
        """
        features = self.features(group)
        if not features and not values:
            return np.empty(0, np.int32)
        by_name = {feature.name: feature for feature in features}
        for name, value in values.items():
            if value is not None or name not in by_name:
                _check_name(by_name, name, field)
        held = {feature.name: feature.reference for feature in features if feature.reference is not None}
        given = {**values, **held}
        codes: list[int] = []
        for feature in features:
            codes += self._encode_value(group, feature, given.get(feature.name), field)
        return np.array(codes, np.int32)

    def encode_columns(
        self, group: str, values: Mapping[str, list[Any]], field: str
    ) -> dict[int, NDArray[np.int32]]:
        """Codes [C] of the features given, by their column; C values of each of them, null where one is missing.

        Features of one value alone. `field` is the object's path in the request, for errors: InvalidRequest names the
        value at fault.
        """
        by_name = {feature.name: feature for feature in self.features(group)}
        columns = {name: column for column, name in enumerate(by_name)}
        found = {}
        for name, column_values in values.items():
            _check_name(by_name, name, field)
            feature, path = by_name[name], f"{field}.{name}"
            codes = [
                self._encode_single(group, feature, value, f"{path}[{place}]")
                for place, value in enumerate(column_values)
            ]
            found[columns[name]] = np.array(codes, np.int32)
        return found

    def at_reference(self, codes: Codes) -> Codes:
        """Context codes [..., W] of logged rows as serving would have them: features with a reference hold its code."""
        held = [feature.reference is not None for feature in self.features(CONTEXT)]
        if not any(held):
            return codes
        # Context features are one column each.
        return np.where(held, self.encode_values(CONTEXT, {}, CONTEXT), codes)

    def _encode_value(self, group: str, feature: Feature, value: Any, field: str) -> Sequence[int]:
        path = f"{field}.{feature.name}"
        if feature.type != "multi_valued":
            return (self._encode_single(group, feature, value, path),)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise InvalidRequest(path, f"must be a list, not {_json_type(value)}")
        texts = [_request_text(one, f"{path}[{i}]") for i, one in enumerate(value)]
        # As encode_multi_valued has it, whose arrays cost ten times as much for one list.
        code = self.vocabularies[f"{group}.{feature.name}"].code
        codes = [code(text) for text in texts[: feature.max_values]]
        return codes + [0] * (feature.max_values - len(codes))

    def _encode_single(self, group: str, feature: Feature, value: Any, path: str) -> int:
        """The code of one value, as `encode_categorical` and `encode_numeric` have it."""
        key = f"{group}.{feature.name}"
        if feature.type != "numeric":
            return self.vocabularies[key].code("" if value is None else _request_text(value, path))
        if value is None:
            return UNKNOWN
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(path, f"must be a number, not {_json_type(value)}")
        _check_finite(value, path)
        return int(np.searchsorted(self.boundaries[key], float(value), side="right")) + FIRST_VALUE

    def save(self, folder: Path) -> None:
        """Write `schema.json`, `boundaries.json` and `vocabularies/<group>.<feature>.npy` below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCHEMA).write_text(self.schema.model_dump_json(indent=1))
        boundaries = {key: list(value) for key, value in sorted(self.boundaries.items())}
        (folder / "boundaries.json").write_text(json.dumps(boundaries))
        (folder / "vocabularies").mkdir(exist_ok=True)
        for key, vocabulary in self.vocabularies.items():
            np.save(folder / "vocabularies" / f"{key}.npy", vocabulary.values)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; vocabularies are memory-mapped."""
        try:
            schema = FeatureSchema.model_validate_json((folder / SCHEMA).read_bytes())
            boundaries = json.loads((folder / "boundaries.json").read_bytes())
            files = sorted((folder / "vocabularies").glob("*.npy"))
            vocabularies = {path.stem: Vocabulary(np.load(path, mmap_mode="r")) for path in files}
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder} holds no usable schema and vocabularies: {error}") from error
        return cls(schema, vocabularies, {key: np.array(value) for key, value in boundaries.items()})

    def digest(self) -> bytes:
        """SHA-256 of the schema and everything fitted: two equal digests give equal codes for equal values."""
        sha = hashlib.sha256(self.schema.model_dump_json().encode())
        for key, vocabulary in sorted(self.vocabularies.items()):
            sha.update(f"{key} {len(vocabulary.values)}\n".encode())
            sha.update(b"\0".join(vocabulary.values.tolist()))
        for key, boundaries in sorted(self.boundaries.items()):
            sha.update(f"{key} {len(boundaries)}\n".encode())
            sha.update(boundaries.astype("<f8").tobytes())
        return sha.digest()


def _check_name(features: Mapping[str, Feature], name: str, field: str) -> None:
    """Whether a request may give a feature of that name; raises InvalidRequest."""
    if name not in features:
        known = sorted(one.name for one in features.values() if one.reference is None)
        offer = f"known are {', '.join(known)}" if known else "the model takes none"
        raise InvalidRequest(f"{field}.{name}", f"unknown feature; {offer}")
    reference = features[name].reference
    if reference is not None:
        message = f"is held at its reference, {json.dumps(reference)}, when serving; leave it out"
        raise InvalidRequest(f"{field}.{name}", message)


def _check_finite(value: float, path: str) -> None:
    # Also false for NaN, and defined for integers that no float can hold.
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise InvalidRequest(path, "must be a finite number; leave it out where it is not known")


def _request_text(value: Any, path: str) -> str:
    if not isinstance(value, str | int):
        raise InvalidRequest(path, f"must be a string, an integer or a boolean, not {_json_type(value)}")
    text = canonical_text(value)
    if "\0" in text:
        raise InvalidRequest(path, "must not contain the character NUL")
    return text


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a fraction", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
