"""Answers, without a Python object per candidate."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srp4ctr.contract.http_types import Degradation, Tier
from srp4ctr_service.model import ServedModel
from srp4ctr_service.request_scope import RequestInfo
from srp4ctr_service.states import StateView


@dataclass(frozen=True)
class Answer:
    """Scores [C] for one user, the places of items that nothing is known of, and how the scores came about."""

    item_ids: list[str]
    scores: NDArray[np.float32]
    unknown_items: NDArray[np.intp]
    view: StateView
    tier: Tier
    degraded: list[Degradation]

    def how(self) -> dict[str, Any]:
        """HowScored, as it is written."""
        return {
            "user_state": {
                "status": self.view.status,
                "age_ms": self.view.age_ms,
                "events_behind": self.view.events_behind,
            },
            "tier": self.tier,
            "degraded": self.degraded,
            "unknown_items": self.unknown_items,
        }

    def best(self, top_k: int | None) -> dict[str, Any]:
        """The likeliest first, equal ones in the order of the request."""
        order = np.argsort(-self.scores, kind="stable")[:top_k]
        ids = self.item_ids
        return {"item_ids": [ids[place] for place in order.tolist()], "scores": self.scores[order]}


def written(info: RequestInfo, model: ServedModel, content: dict[str, Any]) -> bytes:
    """An answer by that model, in the format of its request."""
    return info.format.write(
        {
            "request_id": info.request_id,
            "model_version": model.version,
            "items_revision": model.revision,
            **content,
        }
    )
