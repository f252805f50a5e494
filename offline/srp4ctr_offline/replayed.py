"""One recorded request once more: what it is in codes, its scores by ONNX Runtime and torch, and where these differ from what was served."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import DataError, InvalidRequest, StateError
from srp4ctr.contract.records import Record, checksums
from srp4ctr.contract.state import UserState
from srp4ctr.contract.transforms import CONTEXT, ITEM, ITEM_ID, USER
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.items import Vectors
from srp4ctr.runtime.sessions import OnnxItems, OnnxScorer

STATE, VECTOR, GRAPH = "the state", "the item vector", "the graph's run: all its inputs are equal"

ROUNDING = 1e-5
"""Between an item's vector in the table and the item graph's, computed alone."""

Scores = NDArray[np.float32]
Torch = Callable[[UserState, Codes, Codes], Scores]
"""The torch model's probabilities [C] of a state, item codes [C, Wi] and context codes [1 or C, Wc]."""
Between = Literal["served and ONNX", "ONNX and torch", "inputs"]


@dataclass(frozen=True)
class Gap:
    """The largest absolute difference between two columns of scores, and whose it is."""

    max_abs: float
    request_id: str
    item_id: str


@dataclass(frozen=True)
class Finding:
    """A record that differs in scores or codes, and the first input that does: `group.feature`, or what else it is.

    `value` is the feature's in the request, None where the item table or the state has it; `served` and `replayed` are its
    codes.
    """

    request_id: str
    item_id: str
    between: Between
    max_abs: float | None
    cause: str
    value: Any = None
    served: list[int] | None = None
    replayed: list[int] | None = None
    detail: str = ""

    def __str__(self) -> str:
        size = "" if self.max_abs is None else f" by {self.max_abs:.2e}"
        what = self.cause
        if self.served is not None:
            value = "" if self.value is None else f" = {json.dumps(self.value)}"
            what += f"{value}, {_codes(self.served)} when it was served and {_codes(self.replayed)} now"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.request_id}, candidate {self.item_id}: {self.between} differ{size}: {what}{detail}"


def _codes(codes: Sequence[int] | None) -> str:
    return " ".join(map(str, codes or ()))


@dataclass(frozen=True)
class Comparison:
    """Of one record: C scores, of which so many by torch; the largest differences, and what there is to say of them."""

    scores: int
    torch_scores: int = 0
    served_onnx: Gap | None = None
    onnx_torch: Gap | None = None
    finding: Finding | None = None


@dataclass(frozen=True, eq=False)
class Inputs:
    """All that a record's scores depend on: item codes [C, Wi] and vectors [C, V], contexts [1 or C, Wc], a user's state."""

    state: UserState
    item_codes: Codes
    vectors: Vectors
    context_codes: Codes

    @property
    def user_codes(self) -> Codes:
        """[Wu]; none where the model has no user features."""
        return np.array(self.state.arrays.get("user_codes", ()), np.int32)


class Replayer:
    """Scores records of one version once more, by its bundle and, where it is there, the torch model that it was made of."""

    def __init__(self, bundle: Bundle, torch: Torch | None) -> None:
        self._bundle = bundle
        self._torch = torch
        self._scorer, self._items = OnnxScorer(bundle), OnnxItems(bundle)
        self._fields = bundle.transforms.fields

    def compare(self, record: Record, tolerance: float) -> Comparison:
        """The record beside its replay; a finding is a score that is apart by more than the tolerance, or any other code.

        Raises DataError where the record is of another model than the bundle.
        """
        fingerprint = self._bundle.manifest.fingerprint
        if record.fingerprint != fingerprint:
            raise DataError(
                f"{record.request_id} was served by {record.model_version} with the fingerprint "
                f"{record.fingerprint[:12]}, and the bundle here has {fingerprint[:12]}"
            )
        count, first = len(record.scores), record.request.item_ids[0]
        try:
            inputs = self._inputs(record)
        except StateError as error:
            finding = Finding(record.request_id, first, "inputs", None, STATE, detail=str(error))
            return Comparison(count, finding=finding)
        except InvalidRequest as error:
            # The service took it.
            finding = Finding(record.request_id, first, "inputs", None, error.field, detail=error.message)
            return Comparison(count, finding=finding)
        onnx = self._scorer(inputs.state, inputs.vectors, inputs.context_codes)
        gap, place = _gap(record, np.array(record.scores), onnx)
        found = self._of_served(record, inputs, gap, place, tolerance)
        if self._torch is None:
            return Comparison(count, 0, gap, None, found)
        torch = self._torch(inputs.state, inputs.item_codes, inputs.context_codes)
        torch_gap, place = _gap(record, onnx, torch)
        if found is None and torch_gap.max_abs > tolerance:
            own = self._items(inputs.item_codes[place : place + 1])[0]
            equal = np.abs(own - inputs.vectors[place]).max() <= ROUNDING
            found = _finding(torch_gap, "ONNX and torch", GRAPH if equal else VECTOR)
        return Comparison(count, len(torch), gap, torch_gap, found)

    def _of_served(
        self, record: Record, inputs: Inputs, gap: Gap, place: int, tolerance: float
    ) -> Finding | None:
        if gap.max_abs > tolerance:
            found = self._differing(record, inputs, place)
            if found is not None:
                return replace(found, between="served and ONNX", max_abs=gap.max_abs)
            equal = checksums(inputs.vectors[place : place + 1]) == [record.item_vectors[place]]
            return _finding(gap, "served and ONNX", GRAPH if equal else VECTOR)
        # Other codes are a difference, though it does not show in these scores.
        each = (self._differing(record, inputs, one) for one in range(len(record.scores)))
        return next(filter(None, each), None)

    def _differing(self, record: Record, inputs: Inputs, place: int) -> Finding | None:
        """The first feature of that candidate whose codes are not those that it was served with."""
        item_id = record.request.item_ids[place]
        for group, served, replayed, given in (
            (ITEM, record.item_codes[place], inputs.item_codes[place], record.request.items.get(item_id, {})),
            (USER, record.user_codes, inputs.user_codes, record.request.user_features),
            (
                CONTEXT,
                record.context_codes[place % len(record.context_codes)],
                inputs.context_codes[place % len(inputs.context_codes)],
                _context(record, place),
            ),
        ):
            now = replayed.tolist()
            if served == now:
                continue
            if len(served) != len(now):
                raise DataError(
                    f"{record.request_id} has {len(served)} {group} codes, and the model {len(now)}"
                )
            for one in getattr(self._fields, group):
                own = slice(one.start, one.start + one.width)
                if served[own] != now[own]:
                    value = item_id if (group, one.name) == (ITEM, ITEM_ID) else given.get(one.name)
                    cause = f"{group}.{one.name}"
                    return Finding(
                        record.request_id, item_id, "inputs", None, cause, value, served[own], now[own]
                    )
        return None

    def _inputs(self, record: Record) -> Inputs:
        """As a service with this bundle would have them; raises StateError and InvalidRequest."""
        bundle, request = self._bundle, record.request
        transforms = bundle.transforms
        state = bundle.cold_state
        if record.state is not None:
            state = bundle.manifest.decode_state(record.state)
        features = {name: [value] for name, value in request.user_features.items()}
        user_codes = transforms.encode_columns(USER, features, "user_features")
        if user_codes:
            codes = np.array(state.arrays["user_codes"], np.int32)
            codes[list(user_codes)] = np.concatenate(list(user_codes.values()))
            state = replace(state, arrays={**state.arrays, "user_codes": codes})
        contexts = transforms.encode_values(CONTEXT, request.context, CONTEXT)[None]
        columns = transforms.encode_columns(CONTEXT, request.candidate_features, "candidate_features")
        if columns:
            contexts = np.repeat(contexts, len(request.item_ids), axis=0)
            for column, column_codes in columns.items():
                contexts[:, column] = column_codes
        rows = bundle.items.rows(request.item_ids)
        item_codes, vectors = bundle.items.codes[rows], bundle.items.vectors[rows]
        own_codes = [
            transforms.encode_values(ITEM, {**attributes, ITEM_ID: item_id}, f"items.{item_id}")
            for item_id, attributes in request.items.items()
        ]
        if own_codes:
            own = dict(
                zip(request.items, zip(own_codes, self._items(np.stack(own_codes)), strict=True), strict=True)
            )
            for place, item_id in enumerate(request.item_ids):
                if item_id in own:
                    item_codes[place], vectors[place] = own[item_id]
        return Inputs(state, item_codes, vectors, contexts)


def _context(record: Record, place: int) -> dict[str, Any]:
    each = {name: values[place] for name, values in record.request.candidate_features.items()}
    return {**record.request.context, **each}


def _gap(record: Record, one: NDArray[Any], other: NDArray[Any]) -> tuple[Gap, int]:
    # What is no number differs from everything.
    apart = np.nan_to_num(np.abs(one - other), nan=1.0)
    place = int(apart.argmax())
    return Gap(float(apart[place]), record.request_id, record.request.item_ids[place]), place


def _finding(gap: Gap, between: Between, cause: str) -> Finding:
    return Finding(gap.request_id, gap.item_id, between, gap.max_abs, cause)
