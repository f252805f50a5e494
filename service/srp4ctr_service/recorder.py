"""Takes a share of what is asked and answered for the record, so that it can be replayed; written off the event loop."""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.http_types import UserRequest
from srp4ctr.contract.id_index import Rows
from srp4ctr.contract.records import Record, checksums
from srp4ctr.contract.vocabulary import Codes
from srp4ctr.runtime.items import Vectors
from srp4ctr_service.background import every
from srp4ctr_service.model import Question, ServedModel
from srp4ctr_service.record_files import RecordFiles
from srp4ctr_service.settings import Settings
from srp4ctr_service.states import StateView
from srp4ctr_service.telemetry import Telemetry

WRITE_EVERY_S = 1.0
MAX_WAITING = 200_000
"""Candidates of all that waits to be written, some tens of MB; what comes on top is dropped, and counted."""
CANDIDATES_OF_A_QUESTION = 100
"""What a question takes beside its candidates, a user's state above all, in candidates."""
_MEGABYTE = 1_000_000


@dataclass(frozen=True, eq=False)
class Served:
    """One user's question, all that its scores [C] were computed from, and when they were, Unix milliseconds."""

    at_ms: int
    request_id: str
    model: ServedModel
    request: UserRequest
    question: Question
    rows: Rows
    view: StateView
    scores: NDArray[np.float32]

    def record(self) -> Record:
        """All of it, as it is written."""
        manifest, state = self.model.bundle.manifest, self.view.state
        item_codes, vectors = self._items()
        user_codes = np.array(state.arrays.get("user_codes", ()), np.int32)
        user_codes[list(self.question.user_codes)] = list(self.question.user_codes.values())
        cold = state is self.model.bundle.cold_state
        return Record(
            at_ms=self.at_ms,
            request_id=self.request_id,
            model_version=manifest.version,
            items_revision=self.model.revision,
            fingerprint=manifest.fingerprint,
            request=_without_what_a_route_adds(self.request),
            status=self.view.status,
            state=None if cold else manifest.encode_state(state),
            item_codes=item_codes.tolist(),
            item_vectors=checksums(vectors),
            user_codes=user_codes.tolist(),
            context_codes=self.question.context_codes.tolist(),
            scores=self.scores.tolist(),
        )

    def _items(self) -> tuple[Codes, Vectors]:
        """Codes [C, Wi] and vectors [C, V] of the candidates, as the model has them."""
        items = self.model.bundle.items
        codes, vectors = items.codes[self.rows], items.vectors[self.rows]
        question = self.question
        if question.own_items:
            own = self.model.own_vectors(question)
            for place, item_id in enumerate(question.item_ids):
                row = question.own_items.get(item_id)
                if row is not None:
                    codes[place], vectors[place] = question.own_codes[row], own[row]
        return codes, vectors


def _without_what_a_route_adds(request: UserRequest) -> UserRequest:
    """The question alone: of a deadline, say, a record knows nothing."""
    fields = UserRequest.model_fields
    return UserRequest.model_construct(
        request.model_fields_set & fields.keys(), **{name: getattr(request, name) for name in fields}
    )


class Recorder:
    """Takes a share of all questions that the model answers, and writes them within about a second."""

    def __init__(self, rate: float, files: RecordFiles, telemetry: Telemetry) -> None:
        """Takes each question with the probability `rate`."""
        self._rate = rate
        self._files = files
        self._telemetry = telemetry
        self._taken: list[Served] = []
        self._waiting = 0

    @classmethod
    def configured(cls, settings: Settings, telemetry: Telemetry) -> Self | None:
        """As the settings say, None where nothing is to be recorded; raises ConfigError where records cannot be written."""
        folder, max_bytes = settings.record_dir, settings.record_max_mb * _MEGABYTE
        if folder is None:
            return None
        try:
            return cls(
                settings.record_rate, RecordFiles(folder, max_bytes, telemetry.count_records), telemetry
            )
        except OSError as error:
            raise ConfigError(
                f"SRP4CTR_RECORD_DIR: {folder} cannot be written into: {error.strerror or error}"
            ) from error

    def offer(
        self,
        request_id: str,
        model: ServedModel,
        request: UserRequest,
        question: Question,
        rows: Rows,
        view: StateView,
        scores: NDArray[np.float32],
    ) -> None:
        """Take the question if it is of the share that is recorded, and there is room for it."""
        if random.random() >= self._rate:  # noqa: S311 -- a sample, and no secret
            return
        size = len(scores) + CANDIDATES_OF_A_QUESTION
        if self._waiting + size > MAX_WAITING:
            self._telemetry.count_records(0, 1)
            return
        self._waiting += size
        at_ms = time.time_ns() // 1_000_000
        self._taken.append(Served(at_ms, request_id, model, request, question, rows, view, scores))

    def written(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Write once a second while entered, and at the end."""
        return every(WRITE_EVERY_S, self._write, "write-records")

    async def _write(self) -> None:
        taken, self._taken = self._taken, []
        if taken:
            # What is being written still takes memory.
            written = self._waiting
            try:
                await asyncio.to_thread(lambda: self._files.write(one.record().line() for one in taken))
            finally:
                self._waiting -= written
