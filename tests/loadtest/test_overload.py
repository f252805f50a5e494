"""The overload benchmark: every request is counted once, as what became of it, and goodput is full scores in time alone."""

import json
import os

import pytest

from srp4ctr_loadtest import overload
from srp4ctr_loadtest.overload import Accepted

FULL, PRIOR = b'{"scores":[0.5],"tier":"full"}', b'{"scores":[0.5],"tier":"prior"}'


def test_goodput_is_what_was_scored_in_full_in_time() -> None:
    """An answer from the prior, one after the deadline and a refusal are counted apart, and a refusal has no accepted latency."""
    load = Accepted("open", deadline_ms=50)
    for latency, status, body in (
        (0.01, 200, FULL),
        (0.05, 200, FULL),
        (0.02, 200, PRIOR),
        (0.06, 200, FULL),
        (0.07, 200, PRIOR),
        (0.001, 503, b"{}"),
        (0.09, 504, b"{}"),
    ):
        load.note(latency, status, body)
    assert (load.full, load.prior, load.late) == (2, 1, 2)
    assert load.statuses == {200: 5, 503: 1, 504: 1}
    assert load.accepted_ms == pytest.approx([10, 50, 20, 60, 70])


@pytest.mark.usefixtures("workload")
def test_every_request_of_a_real_service_is_counted_once(monkeypatch, capsys) -> None:
    """At part of the capacity and at multiples of it, what was offered is what was scored, refused, late or unanswered, in table and JSON."""
    monkeypatch.setattr(overload, "DIFFERENT", 60)
    before = os.sched_getaffinity(0)
    assert (
        overload.main(
            ["--seconds", "0.5", "--times", "0.2", "4", "--candidates", "20", "--deadline-ms", "20000"]
        )
        == 0
    )
    assert os.sched_getaffinity(0) == before
    printed = capsys.readouterr().out.splitlines()
    told = json.loads(printed[-1])
    assert (told["benchmark"], told["candidates"], told["deadline_ms"]) == ("overload", 20, 20_000)
    assert [row["times"] for row in told["rows"]] == [0.2, 4]
    for row, line in zip(told["rows"], printed[2:], strict=False):
        became = [row[name] for name in ("full_rps", "prior_rps", "refused_rps", "late_rps")]
        assert sum(became) + row["unanswered"] / 0.5 == pytest.approx(row["offered_rps"], abs=0.01)
        # Whole requests, of half a second.
        assert all(one * 0.5 == pytest.approx(round(one * 0.5), abs=0.01) for one in became)
        assert line.split("|")[0].split() == [f"{row['times']:g}x", f"{row['offered_rps']:.0f}"]
        assert row["livez_max_ms"] > 0
    calm, busy = told["rows"]
    assert calm["full_rps"] > 0
    assert busy["offered_rps"] > calm["offered_rps"]
