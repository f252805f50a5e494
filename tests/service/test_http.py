"""What surrounds scoring: ids, metrics, health, documents."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

GOOD = {"user_id": "1", "item_ids": ["1", "2", "nothing"]}
OPENAPI = Path(__file__).parents[2] / "docs" / "openapi.json"


def metrics_of(client: httpx.Client) -> dict[str, float]:
    """All samples by name and labels."""
    lines = client.get("/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def test_request_id_is_kept(shared_api):
    """A request id that the caller gives comes back in the header and in the body."""
    response = shared_api.post("/score", json=GOOD, headers={"X-Request-ID": "trace-1:a/b"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "trace-1:a/b"


@pytest.mark.parametrize("given", [None, "", "x" * 129, 'a"b', "a b", "\u00e9"])
def test_request_id_is_made(shared_api, given):
    """Without a sane request id the service makes one, another for each request."""
    headers = {} if given is None else {"X-Request-ID": given.encode("latin-1")}
    ids = {shared_api.post("/score", json=GOOD, headers=headers).json()["request_id"] for _ in range(2)}
    assert len(ids) == 2
    assert given not in ids


def test_every_answer_has_a_request_id(shared_api):
    """Health checks, documents and errors carry a request id as well."""
    for path in ("/livez", "/readyz", "/metrics", "/model", "/docs", "/openapi.json", "/nothing"):
        assert shared_api.get(path).headers["x-request-id"]


def test_metrics_reflect_requests(api):
    """Metrics count what was asked and what was answered."""
    for _ in range(3):
        api.post("/score", json=GOOD)
    api.post("/score", json=GOOD | {"deadline_ms": 0.0001})
    api.post("/score", content=b"{")
    api.get("/some/path/of/a/client")
    found = metrics_of(api)
    assert found["srp4ctr_candidates_sum"] == 12
    assert found["srp4ctr_candidates_count"] == 4
    assert found["srp4ctr_unknown_items_total"] == 4
    assert found['srp4ctr_user_states_total{status="cold"}'] == 4
    assert found['srp4ctr_answers_total{tier="full"}'] == 3
    assert found['srp4ctr_answers_total{tier="prior"}'] == 1
    assert found['srp4ctr_degraded_total{reason="deadline"}'] == 1
    assert found['srp4ctr_problems_total{type="malformed-body"}'] == 1
    assert found['srp4ctr_requests_total{route="/score",status="200"}'] == 4
    assert found['srp4ctr_requests_total{route="/score",status="400"}'] == 1
    assert found['srp4ctr_requests_total{route="unmatched",status="404"}'] == 1
    assert found['srp4ctr_model_info{version="first"}'] == 1
    for stage, count in {
        "parse": 4,
        "state": 4,
        "queue": 3,
        "rows": 3,
        "model": 3,
        "answer": 4,
        "total": 4,
    }.items():
        assert found[f'srp4ctr_score_seconds_count{{stage="{stage}"}}'] == count


def test_metrics_do_not_repeat_what_clients_sent(api):
    """Neither ids nor paths of clients become labels."""
    api.post("/score", json={"user_id": "secretuser", "item_ids": ["secretitem"]})
    api.get("/secretpath")
    assert "secret" not in api.get("/metrics").text


def test_model_tells_what_it_takes(shared_api, first):
    """GET /model names the version, its context features with types, which of them are held, and at what, the limits
    and the measured quality.
    """
    info = shared_api.get("/model").json()
    assert info["version"] == "first"
    assert info["fingerprint"] == first.bundle.manifest.fingerprint
    assert info["context_features"] == [
        {"name": "weekday", "type": "categorical", "reference": None},
        {"name": "hour", "type": "numeric", "reference": None},
        {"name": "position", "type": "categorical", "reference": 2},
    ]
    assert info["limits"]["max_candidates"] == 2000
    assert info["metrics"] == {"auc": 0.75}


def test_ready(shared_api):
    """With Redis and a model the service is ready, and says so of each by name."""
    response = shared_api.get("/readyz")
    assert response.status_code == 200
    readiness = response.json()
    assert readiness["ready"] is True
    assert {name: one["status"] for name, one in readiness["dependencies"].items()} == {
        "model": "ok",
        "redis": "ok",
    }


def test_openapi_is_the_committed_one(shared_api):
    """The live document is docs/openapi.json; renew it by: python -m srp4ctr_service.openapi > docs/openapi.json."""
    assert shared_api.get("/openapi.json").json() == json.loads(OPENAPI.read_text())


def test_documented_example_works(shared_api):
    """The example in the document is a request that the service answers."""
    operation = shared_api.get("/openapi.json").json()["paths"]["/score"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    assert shared_api.post("/score", json=example).status_code == 200
    assert "swagger" in shared_api.get("/docs").text


def test_service_has_no_torch():
    """Importing all of the service brings no torch with it."""
    code = (
        "import srp4ctr_service.app, srp4ctr_service.serve, srp4ctr_service.doctor, sys\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
