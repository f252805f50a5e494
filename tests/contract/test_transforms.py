"""Raw values to codes: offline and online must agree."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from srp4ctr.contract.errors import DataError, InvalidRequest
from srp4ctr.contract.schema import FeatureSchema
from srp4ctr.contract.transforms import Transforms, fit_boundaries
from srp4ctr.contract.vocabulary import PADDING, UNKNOWN, Vocabulary, to_texts
from srp4ctr_offline.columns import encode_frame, fit_features, id_texts, texts_of

SCHEMA = FeatureSchema.model_validate(
    {
        "item_attributes": [
            {"name": "colour", "type": "categorical"},
            {"name": "tags", "type": "multi_valued", "max_values": 3},
            {"name": "price", "type": "numeric", "buckets": 4},
            {"name": "in_stock", "type": "categorical"},
            {"name": "shelf", "type": "categorical"},
        ]
    }
)
ROWS = {
    "colour": ["red", "blüe", None, "red", "日本"],
    "tags": [["a", "b"], [], None, ["c", "a", "b", "d"], ["é"]],
    "price": [1.0, 2.5, None, 100.0, 7.0],
    "in_stock": [True, False, None, True, True],
    "shelf": [3, -1, None, 12, 3],
}


def fitted() -> tuple[Transforms, pl.DataFrame]:
    frame = pl.DataFrame(ROWS)
    vocabularies, boundaries = fit_features("item", SCHEMA.item_attributes, frame, "items")
    vocabularies["item.id"] = Vocabulary(to_texts(["i1"]))
    return Transforms(SCHEMA, vocabularies, boundaries), frame


texts = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=6)
items = st.fixed_dictionaries(
    {},
    optional={
        "colour": st.sampled_from(["red", "blüe", "日本", "green"]) | texts,
        "tags": st.lists(st.sampled_from(["a", "b", "c", "d", "é", "new"]) | texts, max_size=6),
        "price": st.floats(-1e6, 1e6) | st.sampled_from([1.0, 2.5, 7.0, 100.0]),
        "in_stock": st.booleans(),
        "shelf": st.integers(-(2**31), 2**31) | st.sampled_from([3, -1, 12]),
    },
)


@given(st.lists(items, min_size=1, max_size=8))
def test_offline_and_online_agree(values) -> None:
    """A table's column and a request's JSON value give the same codes, known, unknown or missing."""
    transforms, frame = fitted()
    columns = {name: [row.get(name) for row in values] for name in ROWS} | {"id": ["i1"] * len(values)}
    schema = frame.schema | {"id": pl.String()}
    table = pl.DataFrame(columns, schema={name: schema[name] for name in columns})
    offline = encode_frame(transforms, "item", {name: table[name] for name in columns}, len(values), "items")
    online = [transforms.encode_values("item", row | {"id": "i1"}, "items") for row in values]
    np.testing.assert_array_equal(offline, np.stack(online))


def test_codes_of_missing_and_unknown_values() -> None:
    """Nothing is 0 but padding; what is unknown or missing is 1."""
    transforms, _ = fitted()
    codes = transforms.encode_values("item", {"colour": "never seen", "tags": ["a", "never seen"]}, "item")
    fields = {field.name: field for field in transforms.fields.item}
    assert codes[fields["id"].start] == UNKNOWN
    assert codes[fields["colour"].start] == UNKNOWN
    assert codes[fields["price"].start] == UNKNOWN
    tags = codes[fields["tags"].start :][:3]
    assert tags[0] > UNKNOWN
    assert list(tags[1:]) == [UNKNOWN, PADDING]


def test_transforms_survive_saving(tmp_path) -> None:
    """What is saved with a bundle gives the same codes and the same digest when loaded."""
    transforms, _ = fitted()
    transforms.save(tmp_path)
    loaded = Transforms.load(tmp_path)
    assert loaded.digest() == transforms.digest()
    assert loaded.fields == transforms.fields
    row = {"colour": "blüe", "tags": ["d", "é"], "price": 3, "in_stock": True, "shelf": 12}
    np.testing.assert_array_equal(
        loaded.encode_values("item", row, ""), transforms.encode_values("item", row, "")
    )


@given(st.sets(texts.filter(bool), min_size=1), st.lists(texts))
def test_vocabulary_is_a_dictionary(members, asked) -> None:
    """A vocabulary answers as a dictionary of its members would, for texts of any length and script."""
    vocabulary = Vocabulary.fit(to_texts(sorted(members)))
    order = sorted(member.encode() for member in members)
    wanted = [order.index(one.encode()) + 2 if one in members else UNKNOWN for one in (*asked, *members)]
    assert vocabulary.encode(to_texts([*asked, *members])).tolist() == wanted
    # Asked one by one, and once more of what it remembers.
    assert [vocabulary.code(one) for one in (*asked, *members)] == wanted
    assert [vocabulary.code(one) for one in (*asked, *members)] == wanted


def test_rare_values_are_unknown() -> None:
    """Values below min_count share the code of the unknown."""
    vocabulary = Vocabulary.fit(to_texts(["a", "b", "a"]), min_count=2)
    assert vocabulary.encode(to_texts(["a", "b"])).tolist() == [2, UNKNOWN]


def test_quantile_buckets_are_even() -> None:
    """Buckets hold about equally many training values, and repeated values merge them."""
    numbers = np.arange(1000, dtype=float)
    buckets = np.searchsorted(fit_boundaries(numbers, 10), numbers, side="right")
    assert np.bincount(buckets).tolist() == [100] * 10
    assert len(fit_boundaries(np.array([1.0] * 90 + [2.0] * 10), 10)) <= 1
    assert len(fit_boundaries(np.array([np.nan]), 4)) == 0


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"colours": "red"}, "context.colours", "known are"),
        ({"price": "cheap"}, "context.price", "must be a number, not a string"),
        ({"price": True}, "context.price", "must be a number, not a boolean"),
        ({"price": float("inf")}, "context.price", "finite"),
        ({"colour": 1.5}, "context.colour", "not a fraction"),
        ({"colour": ["red"]}, "context.colour", "not a list"),
        ({"colour": "a\0"}, "context.colour", "NUL"),
        ({"tags": "a"}, "context.tags", "must be a list"),
        ({"tags": ["a", {}]}, "context.tags[1]", "not an object"),
    ],
)
def test_wrong_values_are_named(values, field, message) -> None:
    """A value of the wrong kind is refused with the path of the field and what it should have been."""
    transforms, _ = fitted()
    with pytest.raises(InvalidRequest, match=message) as caught:
        transforms.encode_values("item", values, "context")
    assert caught.value.field == field


HELD = FeatureSchema.model_validate(
    {
        "context_features": [
            {"name": "hour", "type": "categorical"},
            {"name": "position", "type": "categorical", "reference": 1},
            {"name": "top", "type": "categorical", "reference": False},
            {"name": "depth", "type": "numeric", "reference": 0},
        ]
    }
)


def held() -> Transforms:
    vocabularies = {
        "item.id": ["i"],
        "context.hour": ["20", "8"],
        "context.position": ["1", "10", "2"],
        "context.top": ["false", "true"],
    }
    fitted = {key: Vocabulary.fit(to_texts(values)) for key, values in vocabularies.items()}
    return Transforms(HELD, fitted, {"context.depth": np.array([-1.0, 1.0])})


def test_a_request_has_the_reference() -> None:
    """A feature with a reference has its code in every request, null or left out, and the others their own."""
    for values in ({"hour": 8}, {"hour": 8, "position": None}):
        assert held().encode_values("context", values, "context").tolist() == [3, 2, 2, 3]
    assert held().encode_values("context", {}, "context").tolist() == [UNKNOWN, 2, 2, 3]


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"position": 2}, "context.position", "is held at its reference, 1, when serving; leave it out"),
        ({"position": 1}, "context.position", "is held at its reference, 1, when serving"),
        ({"position": [{}]}, "context.position", "is held at its reference, 1, when serving"),
        ({"top": True}, "context.top", "is held at its reference, false, when serving"),
        ({"depth": 3.5}, "context.depth", r"is held at its reference, 0\.0, when serving"),
        ({"place": 1}, "context.place", "unknown feature; known are hour$"),
    ],
)
def test_a_request_may_not_give_what_is_held(values, field, message) -> None:
    """A request with a value for a held feature is refused, and none is offered one."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        held().encode_values("context", values, "context")
    assert caught.value.field == field


@pytest.mark.parametrize("shape", [(7,), (3, 2), (0,)])
def test_logged_rows_at_reference(shape) -> None:
    """Logged codes are those of serving where there is a reference, stay as they are elsewhere, and are not changed."""
    logged = np.random.default_rng(0).integers(0, 4, (*shape, 4)).astype(np.int32)
    before = logged.copy()
    served = held().at_reference(logged)
    assert served.dtype == np.int32
    np.testing.assert_array_equal(logged, before)
    np.testing.assert_array_equal(served[..., 0], logged[..., 0])
    np.testing.assert_array_equal(served[..., 1:], np.broadcast_to([2, 2, 3], (*shape, 3)))


def test_rows_without_references_stay_as_they_are() -> None:
    """Where no context feature has a reference, or there is none at all, logged codes are what serving has."""
    transforms, _ = fitted()
    codes = np.zeros((3, 0), np.int32)
    np.testing.assert_array_equal(transforms.at_reference(codes), codes)


def test_references_survive_saving(tmp_path) -> None:
    """A bundle's schema keeps the references, each of its own kind, and they count for the digest."""
    held().save(tmp_path)
    loaded = Transforms.load(tmp_path)
    assert [feature.reference for feature in loaded.features("context")] == [None, 1, False, 0.0]
    assert loaded.digest() == held().digest()
    moved = HELD.model_dump()
    moved["context_features"][1]["reference"] = 2
    other = Transforms(FeatureSchema.model_validate(moved), held().vocabularies, held().boundaries)
    assert other.digest() != held().digest()


def test_schemas_without_references_are_the_same_bytes_as_before() -> None:
    """A schema that uses no reference is written as it was before there were any: fingerprints stay."""
    schema = FeatureSchema.model_validate(
        {
            "context_features": [
                {"name": "hour", "type": "categorical", "reference": None},
                {"name": "depth", "type": "numeric"},
            ]
        }
    )
    assert schema.model_dump_json().endswith(
        '"context_features":[{"name":"hour","type":"categorical","min_count":1},'
        '{"name":"depth","type":"numeric","buckets":16}]}'
    )
    assert schema == FeatureSchema.model_validate_json(schema.model_dump_json())


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"item_atributes": []}, "item_atributes"),
        ({"max_events": 0}, "max_events"),
        ({"item_attributes": [{"name": "a", "type": "numeric", "max_values": 3}]}, "max_values"),
        ({"item_attributes": [{"name": "a", "type": "text"}]}, "categorical"),
        ({"user_features": [{"name": "a", "type": "multi_valued"}]}, "which only item_attributes may be"),
        ({"user_features": [{"name": "a", "type": "numeric"}] * 2}, "declared twice"),
        ({"context_features": [{"name": "label", "type": "categorical"}]}, "is the label"),
        (
            {"user_features": [{"name": "rank", "type": "categorical", "reference": 1}]},
            "user_features: 'rank' has a reference, which only context_features may have",
        ),
        (
            {"item_attributes": [{"name": "price", "type": "numeric", "reference": 0}]},
            "item_attributes: 'price' has a reference",
        ),
        (
            {"behaviour_features": [{"name": "top", "type": "categorical", "reference": False}]},
            "behaviour_features: 'top' has a reference",
        ),
        ({"item_attributes": [{"name": "a", "type": "multi_valued", "reference": "b"}]}, "reference"),
        *(
            ({"context_features": [{"name": "position", "type": "categorical", "reference": value}]}, message)
            for value, message in (
                (1.0, "must be a text, an integer or a boolean"),
                (["1"], "must be a text, an integer or a boolean"),
                ("", "not empty"),
                ("a\0", "NUL"),
            )
        ),
        *(
            ({"context_features": [{"name": "position", "type": "numeric", "reference": value}]}, "reference")
            for value in ("1", True, float("nan"), float("inf"))
        ),
        ({"item_attributes": [{"name": "item_id", "type": "categorical"}]}, "is the item id"),
        ({"item_attributes": [{"name": "id", "type": "categorical"}]}, "'id'"),
    ],
)
def test_impossible_schemas_are_refused(schema, message) -> None:
    """A schema with an unknown key or an impossible value is an error that names it."""
    with pytest.raises(ValidationError, match=message):
        FeatureSchema.model_validate(schema)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series("c", [1.0, 2.0]), "must hold text, integers or booleans"),
        (pl.Series("c", ["a\0"]), "NUL"),
    ],
)
def test_columns_that_cannot_be_categories(column, message) -> None:
    """A column of fractions is no categorical feature, so that 3 and 3.0 never become two values."""
    with pytest.raises(DataError, match=rf"items\.c.*{message}"):
        texts_of(column, "items")


def test_ids_must_be_there() -> None:
    """A row without an id is an error that names table and column."""
    with pytest.raises(DataError, match=r"rows\.u: 1 rows have no id"):
        id_texts(pl.Series("u", ["a", None]), "rows")
