"""503 to a scoring request that is there as a whole: without a task, and with no look at its body but for its deadline, for a fraction of what it
costs otherwise.
"""

from srp4ctr.contract.http_types import Problem
from srp4ctr_service.door import Door
from srp4ctr_service.problems import MEDIA_TYPE, OVERLOADED, retry_after
from srp4ctr_service.request_scope import HEADER, Answer, request_id
from srp4ctr_service.telemetry import Telemetry
from srp4ctr_service.whole_request import WholeRequest

_ROUTES = frozenset({"/score", "/rank", "/score/batch"})
_ID = "REQUEST-ID"
_CONTENT = (
    Problem(
        type=f"/problems/{OVERLOADED.name}",
        title=OVERLOADED.title,
        status=OVERLOADED.status,
        detail="other requests' candidates leave no time for these; try again, or ask another replica",
        request_id=_ID,
    )
    .model_dump_json()
    .encode()
)
_BEFORE_ID, _AFTER_ID = _CONTENT.split(_ID.encode())
_TYPE = (b"content-type", MEDIA_TYPE.encode())


def quick_refusal(request: WholeRequest, door: Door, telemetry: Telemetry) -> Answer | None:
    """The answer to a request that the door does not let in; None where it does, or the path is no way to the model."""
    if not door.watched or request.path not in _ROUTES:
        return None
    wait_s = door.look(request.body)
    if wait_s is None:
        return None
    door.refused += 1
    telemetry.count_request(request.path, OVERLOADED.status)
    telemetry.count_problem(OVERLOADED.name)
    name = request_id(next((value for name, value in request.headers if name == HEADER), b"")).encode()
    body = b"".join((_BEFORE_ID, name, _AFTER_ID))
    headers = [
        _TYPE,
        (b"content-length", b"%d" % len(body)),
        (b"retry-after", b"%d" % retry_after(wait_s)),
        (HEADER, name),
    ]
    return Answer(OVERLOADED.status, headers, body)
