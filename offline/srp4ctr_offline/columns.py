"""Table columns to code matrices, with the contract's transforms; fits them, too."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError
from srp4ctr.contract.http_types import MAX_ID_LENGTH
from srp4ctr.contract.schema import Feature
from srp4ctr.contract.transforms import Boundaries, Transforms, fit_boundaries
from srp4ctr.contract.vocabulary import Codes, Texts, Vocabulary

MAX_TEXT_LENGTH = 1000


def id_texts(column: pl.Series, table: str) -> Texts:
    """Ids [N] as UTF-8 bytes; raises DataError where one is null, empty or holds NUL."""
    if column.null_count():
        raise DataError(
            f"{table}.{column.name}: {column.null_count()} rows have no id; drop them or give them one"
        )
    texts = texts_of(column, table, MAX_ID_LENGTH)
    if (texts == b"").any():
        raise DataError(f"{table}.{column.name}: an id is the empty text; drop its rows or give it a name")
    return texts


def texts_of(column: pl.Series, table: str, longest: int = MAX_TEXT_LENGTH) -> Texts:
    """Canonical texts [N] of a categorical column; null becomes the empty text."""
    if column.dtype.is_float() or column.dtype.is_nested() or column.dtype.is_temporal():
        raise DataError(
            f"{table}.{column.name} is {column.dtype}; a categorical column must hold text, integers or booleans"
        )
    distinct = column.unique(maintain_order=True)
    values = distinct.cast(pl.String).fill_null("").to_list()
    if any("\0" in value for value in values):
        raise DataError(f"{table}.{column.name}: a value holds the character NUL")
    # All texts are as wide as the widest, so that one stray document would fill the memory.
    if any(len(value) > longest for value in values):
        raise DataError(
            f"{table}.{column.name}: a value has more than {longest} characters; ids and categories are short names"
        )
    texts = np.array([value.encode() for value in values], dtype=np.bytes_)
    place = column.to_frame("v").join(
        distinct.to_frame("v").with_row_index("place"),
        on="v",
        how="left",
        nulls_equal=True,
        maintain_order="left",
    )["place"]
    return texts[place.to_numpy()] if len(column) else np.empty(0, "S1")


def numbers_of(column: pl.Series, table: str) -> NDArray[np.float64]:
    """Numbers [N] of a numeric column; null becomes NaN."""
    if not column.dtype.is_numeric():
        raise DataError(f"{table}.{column.name} is {column.dtype}; a numeric feature needs numbers")
    return column.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def lists_of(column: pl.Series, table: str) -> tuple[Texts, NDArray[np.int64]]:
    """The concatenated texts of a list column, and each row's number of values [N]; null is the empty list."""
    if not isinstance(column.dtype, pl.List):
        raise DataError(f"{table}.{column.name} is {column.dtype}; a multi_valued feature needs lists")
    lists = column.to_frame("v").select(pl.col("v").list.drop_nulls())["v"]
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = lists.filter(lists.list.len() > 0).explode().alias(column.name)
    return texts_of(flat, table), lengths


def fit_features(
    group: str, features: tuple[Feature, ...], frame: pl.DataFrame, table: str
) -> tuple[dict[str, Vocabulary], dict[str, Boundaries]]:
    """Vocabularies and boundaries, keyed `group.feature`, of the rows in `frame` (training rows only)."""
    vocabularies: dict[str, Vocabulary] = {}
    boundaries: dict[str, Boundaries] = {}
    for feature in features:
        column, key = frame[feature.name], f"{group}.{feature.name}"
        if feature.type == "numeric":
            boundaries[key] = fit_boundaries(numbers_of(column, table), feature.buckets)
        else:
            texts = lists_of(column, table)[0] if feature.type == "multi_valued" else texts_of(column, table)
            vocabularies[key] = Vocabulary.fit(texts, feature.min_count)
    return vocabularies, boundaries


def encode_frame(
    transforms: Transforms, group: str, columns: Mapping[str, pl.Series], rows: int, table: str
) -> Codes:
    """Codes [rows, W] of one group; `columns` holds the group's features by name."""
    parts = []
    for feature in transforms.features(group):
        column = columns[feature.name]
        if feature.type == "numeric":
            parts.append(transforms.encode_numeric(group, feature, numbers_of(column, table)))
        elif feature.type == "multi_valued":
            parts.append(transforms.encode_multi_valued(group, feature, *lists_of(column, table)))
        else:
            parts.append(transforms.encode_categorical(group, feature, texts_of(column, table)))
    return np.concatenate(parts, axis=1) if parts else np.zeros((rows, 0), np.int32)
