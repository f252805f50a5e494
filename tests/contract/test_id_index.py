"""Where ids stand in a table: every one is found, and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srp4ctr.contract.id_index import IdIndex, RecentRows
from srp4ctr.contract.vocabulary import to_texts

ids_st = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20)


def index_of(ids: list[str]) -> IdIndex:
    return IdIndex.build(np.unique(to_texts(ids)) if ids else np.empty(0, "S1"))


@settings(max_examples=200)
@given(st.lists(ids_st, unique=True, max_size=60), st.lists(ids_st, max_size=30))
def test_ids_are_found_where_they_stand(known: list[str], others: list[str]) -> None:
    """Every id gives its place among the ids sorted by their UTF-8 bytes, and any other text gives 0."""
    index = index_of(known)
    places = {one: place + 1 for place, one in enumerate(sorted(known, key=str.encode))}
    asked = [*known, *others, *(one + "x" for one in known), *(one[:-1] for one in known if len(one) > 1)]
    assert index.rows(asked).tolist() == [places.get(one, 0) for one in asked] if asked else True


@settings(max_examples=200)
@given(st.lists(ids_st, unique=True, max_size=20), st.data(), st.integers(1, 30))
def test_recent_ids_change_nothing(known: list[str], data: st.DataObject, entries: int) -> None:
    """What is remembered of earlier requests gives the rows that the index gives, however little is remembered."""
    index = index_of(known)
    recent = RecentRows(index, entries)
    id_st = st.one_of(st.sampled_from(known), ids_st) if known else ids_st
    for asked in data.draw(st.lists(st.lists(id_st, min_size=1, max_size=20), max_size=5)):
        assert recent.rows(asked).tolist() == index.rows(asked).tolist()


@pytest.mark.parametrize("width", [1, 7, 8, 9, 15, 16, 256])
def test_longer_than_every_id_is_none_of_them(width: int) -> None:
    """A text that begins as an id and goes on is another text, whatever the longest id is."""
    known = ["a" * width, "b" * max(1, width - 1)]
    index = index_of(known)
    assert index.rows(known).tolist() == [1, 2]
    assert index.rows(["a" * (width + extra) for extra in (1, 8, 300)]).tolist() == [0, 0, 0]
    assert index.rows(["\U0001f37f" * width]).tolist() == [0]


def test_many_ids() -> None:
    """Of a large table every id is found, and no other."""
    known = np.unique(to_texts([str(number) for number in range(0, 400_000, 2)]))
    index = IdIndex.build(known)
    asked = [str(number) for number in range(20_000)]
    found = index.rows(asked)
    assert (found > 0).tolist() == [number % 2 == 0 for number in range(20_000)]
    assert known[found[found > 0] - 1].tolist() == [one.encode() for one in asked[::2]]
    assert len(index.slots) <= 4 * len(known)
