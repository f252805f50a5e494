"""A share of the answers, and what was shown of them, kept for `srp4ctr monitor`.

Which requests are of the share is decided by their ids, so that whichever process is told what was shown decides alike.
"""

import contextlib
import time
import zlib
from collections.abc import Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from srp4ctr.contract.errors import StoreError
from srp4ctr.contract.events import check_time
from srp4ctr.contract.http_types import ImpressionsRequest
from srp4ctr.runtime.feedback_store import AsyncFeedbackStore, MonitoredAnswer, ShownItems
from srp4ctr_service.background import every
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.settings import Settings
from srp4ctr_service.telemetry import Telemetry

log = structlog.get_logger()

WRITE_EVERY_S = 1.0
MAX_WAITING = 500_000
"""Candidates of all answers that wait to be written; what comes on top is dropped, and counted."""


class Monitored:
    """Takes a share of the answers as they are given, and writes them within about a second; nobody waits for that."""

    def __init__(self, settings: Settings, store: AsyncFeedbackStore, telemetry: Telemetry) -> None:
        self._below = settings.monitored_share * 2**32
        self._store = store
        self._telemetry = telemetry
        self._max_ahead_s = settings.events_max_ahead_s
        self._limit_s = settings.redis_read_timeout_ms / 1000
        self._taken: list[MonitoredAnswer] = []
        self._waiting = 0

    def takes(self, request_id: str) -> bool:
        """Whether the request's answer is of the share."""
        return zlib.crc32(request_id.encode()) < self._below

    def offer(
        self,
        request_id: str,
        user_id: str,
        version: str,
        item_ids: Sequence[str],
        scores: NDArray[np.float32],
    ) -> None:
        """Take what a user's candidates were given, if it is of the share and there is room for it."""
        if not self.takes(request_id):
            return
        self._telemetry.count_scores(scores)
        if self._waiting + len(scores) > MAX_WAITING:
            self._telemetry.count_monitored(0, 1)
            return
        self._waiting += len(scores)
        now_ms = time.time_ns() // 1_000_000
        self._taken.append(MonitoredAnswer(user_id, request_id, now_ms, version, item_ids, scores))

    async def shown(self, request: ImpressionsRequest, info: RequestInfo) -> bytes:
        """The answer to POST /impressions, given when Redis has what is of the share.

        Raises StoreError, and InvalidRequest where one is of the future.
        """
        now_ms = time.time_ns() // 1_000_000
        for place, one in enumerate(request.impressions):
            check_time(one.timestamp_ms, now_ms, self._max_ahead_s, f"impressions[{place}].timestamp_ms")
        kept = [
            ShownItems(one.user_id, one.request_id, one.timestamp_ms, one.item_ids)
            for one in request.impressions
            if self.takes(one.request_id)
        ]
        if kept:
            self._telemetry.count_pushed_out("impression", await self._store.add(kept, self._limit_s))
        return info.format.write({"request_id": info.request_id, "monitored": len(kept)})

    def written(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Write once a second while entered, and at the end."""
        return every(WRITE_EVERY_S, self._write, "write-monitored")

    async def _write(self) -> None:
        taken, self._taken = self._taken, []
        self._waiting = 0
        if not taken:
            return
        try:
            pushed_out = await self._store.add(taken, self._limit_s)
        except StoreError as error:
            log.warning("answers_not_monitored", answers=len(taken), reason=str(error))
            self._telemetry.count_monitored(0, len(taken))
        else:
            self._telemetry.count_monitored(len(taken), 0)
            self._telemetry.count_pushed_out("answer", pushed_out)
