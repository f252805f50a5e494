"""One model version, loaded for serving."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import InvalidRequest
from srp4ctr.contract.http_types import UserRequest
from srp4ctr.contract.id_index import RecentRows, Rows
from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT, ITEM, ITEM_ID, USER
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import Vectors
from srp4ctr.runtime.sessions import OnnxItems, OnnxScorer

_NONE = np.empty(0, np.intp)
_NO_CODES = np.empty((0, 0), np.int32)


@dataclass(frozen=True)
class Question:
    """What a request asks of one model about one user: C candidates, in that model's codes.

    `context_codes` are [1 or C, Wc]. `own_codes` are those [I, Wi] of items whose attributes the request gives, `own_items` has
    their rows in it by id, and `user_codes` the codes of the user's features that the request gives, by column.
    """

    item_ids: list[str]
    context_codes: Codes
    own_items: Mapping[str, int]
    own_codes: Codes
    user_codes: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A bundle and its graphs. A request takes one of these and no other part of a model, so versions never mix."""

    bundle: Bundle
    scorer: OnnxScorer
    items: OnnxItems
    recent: RecentRows
    revision: str | None = None
    """Of the item table; None for the bundle's own."""

    @classmethod
    def load(cls, folder: Path, threads: int) -> Self:
        """Open and verify the bundle in `folder`, and score once, so that no request pays for the first run.

        Raises BundleError.
        """
        bundle = Bundle.open(folder)
        model = cls(
            bundle, OnnxScorer(bundle, threads), OnnxItems(bundle, threads), RecentRows(bundle.items.index)
        )
        model.score(
            bundle.cold_state, model.question(UserRequest(user_id="0", item_ids=["0"])), np.zeros(1, np.int32)
        )
        return model

    def with_items(self, bundle: Bundle, revision: str | None) -> Self:
        """The same graphs with that bundle's item table, which is of that revision."""
        return replace(self, bundle=bundle, recent=RecentRows(bundle.items.index), revision=revision)

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self.bundle.manifest.version

    def question(self, request: UserRequest, at: str = "") -> Question:
        """The request in this model's codes; raises InvalidRequest, whose fields begin with `at`."""
        transforms = self.bundle.transforms
        context = transforms.encode_values(CONTEXT, request.context, f"{at}context")[None]
        if request.candidate_features:
            context = self._each(request, context, at)
        return Question(
            request.item_ids,
            context,
            dict(zip(request.items, range(len(request.items)), strict=True)),
            self._own_codes(request, at) if request.items else _NO_CODES,
            self._user_codes(request, at) if request.user_features else {},
        )

    def rows(self, question: Question) -> Rows:
        """Rows [C] of the item table; 0 where the catalogue lacks an item."""
        return self.recent.rows(question.item_ids)

    def unknown(self, question: Question, rows: Rows) -> NDArray[np.intp]:
        """Places of items of which neither the catalogue nor the request knows anything."""
        if np.count_nonzero(rows) == len(rows):
            return _NONE
        places = np.flatnonzero(rows == 0)
        if question.own_items:
            own = [question.item_ids[place] in question.own_items for place in places.tolist()]
            places = places[~np.array(own)]
        return places

    def prior(self, rows: Rows) -> NDArray[np.float32]:
        """The items' own click rates [C]."""
        return self.bundle.items.prior[rows]

    def own_vectors(self, question: Question) -> Vectors:
        """Vectors [I, V] of the items whose attributes the request gives, one or more."""
        return self.items(question.own_codes)

    def score(self, state: UserState, question: Question, rows: Rows) -> NDArray[np.float32]:
        """Click probabilities [C] of the question's candidates, which are in these rows [C]."""
        vectors = self.bundle.items.vectors.take(rows, axis=0)
        if question.own_items:
            own = self.own_vectors(question)
            for place, item_id in enumerate(question.item_ids):
                row = question.own_items.get(item_id)
                if row is not None:
                    vectors[place] = own[row]
        if question.user_codes:
            codes = np.array(state.arrays["user_codes"], np.int32)
            codes[list(question.user_codes)] = list(question.user_codes.values())
            state = replace(state, arrays={**state.arrays, "user_codes": codes})
        return self.scorer(state, vectors, question.context_codes)

    def _each(self, request: UserRequest, context: Codes, at: str) -> Codes:
        """Context codes [C, Wc], those that differ between candidates in place of the request's one."""
        candidates = len(request.item_ids)
        for name, values in request.candidate_features.items():
            field = f"{at}candidate_features.{name}"
            if len(values) != candidates:
                raise InvalidRequest(field, f"has {len(values)} values for {candidates} item_ids")
            if name in request.context:
                raise InvalidRequest(field, "is in context, too; give it once")
        codes = np.repeat(context, candidates, axis=0)
        columns = self.bundle.transforms.encode_columns(
            CONTEXT, request.candidate_features, f"{at}candidate_features"
        )
        for column, column_codes in columns.items():
            codes[:, column] = column_codes
        return codes

    def _own_codes(self, request: UserRequest, at: str) -> Codes:
        wanted = set(request.item_ids)
        codes = []
        for item_id, attributes in request.items.items():
            field = f"{at}items.{item_id}"
            if item_id not in wanted:
                raise InvalidRequest(field, "is not among the item_ids")
            if ITEM_ID in attributes:
                raise InvalidRequest(f"{field}.{ITEM_ID}", "the item's id is its name here; leave it out")
            codes.append(self.bundle.transforms.encode_values(ITEM, {**attributes, ITEM_ID: item_id}, field))
        return np.stack(codes)

    def _user_codes(self, request: UserRequest, at: str) -> dict[int, int]:
        field = f"{at}user_features"
        columns = self.bundle.transforms.encode_columns(
            USER, {name: [value] for name, value in request.user_features.items()}, field
        )
        return {column: int(codes[0]) for column, codes in columns.items()}
