"""CPU by stage: every stage is found in the stacks of a service at work, and together they are what the process took."""

import pytest

from srp4ctr.contract.errors import Srp4ctrError
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.stages import ALL, AROUND, STAGES, by_stage, measure, page


def test_the_innermost_frame_decides() -> None:
    """A look belongs to what runs, and not to who called it; what waits in another thread is none."""
    request = "thread (1): MainThread;main (cli.py:1);Scoring._answer (srp4ctr_service/scoring.py:9)"
    scored = f"{request};run (srp4ctr_service/scoring.py:3);ServedModel.score (srp4ctr_service/model.py:7)"
    looks = by_stage(
        [
            f"{scored};OnnxScorer.__call__ (srp4ctr/runtime/sessions.py:2) 3",
            f"{scored};InferenceSession.run (onnxruntime/capi/session.py:2) 40",
            f"{request};StateReader.read (srp4ctr_service/states.py:2) 5",
            f"{request} 2",
            "thread (2): uvloop_0;_worker (concurrent/futures/thread.py:81) 50",
        ]
    )
    assert looks == {"vectors": 3, "model": 40, "state": 5, AROUND: 2}


def test_stages_are_found_in_a_service_at_work(workload) -> None:
    """Functions that tell the stages are those that the service has: none goes without a look, and the page shows all."""
    try:
        with Place.open(workload, quick=True) as place:
            found = measure(place, (100,))
    except Srp4ctrError as error:
        if "ermission" in str(error):
            pytest.skip("this machine does not let a process look into another")
        raise
    kinds = found["100"]
    for kind in kinds.values():
        assert sum(kind[stage] for stage in STAGES) == pytest.approx(kind[ALL])
    seen = {stage for stage in STAGES if any(kind[stage] > 0 for kind in kinds.values())}
    # Metrics are counted once in a while, which a short run may not see.
    assert seen >= STAGES.keys() - {"counting"}
    written = page({"date": "2026-01-02", "model": "m-1", "machine": "one", "candidates": found})
    assert "## 100 candidates" in written
    assert all(f"| {title} |" in written for title, _ in STAGES.values())
