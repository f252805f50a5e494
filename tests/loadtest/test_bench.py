"""`make bench`: every number stands beside its aim, what was measured before is never shown as of this run, and CPU is the kernel's own."""

import json
import subprocess
import sys
import time

import psutil
import pytest

from srp4ctr_loadtest.bench import costs
from srp4ctr_loadtest.bench.__main__ import MEASUREMENTS, main
from srp4ctr_loadtest.bench.costs import BEYOND, LINE, Cost
from srp4ctr_loadtest.bench.findings import Finding, table
from srp4ctr_loadtest.bench.kept import kept
from srp4ctr_loadtest.bench.place import Place
from srp4ctr_loadtest.cpu_clock import cpu_seconds
from srp4ctr_loadtest.peers.report import ABOUT, RESULTS
from srp4ctr_loadtest.peers.results import Row

AIMED = {"state.float16", "state.int8", "livez", "worker_pss"}


@pytest.mark.usefixtures("workload")
def test_parts_are_measured_and_shown_beside_their_aims(capsys, monkeypatch, tmp_path) -> None:
    """The chosen parts run on a real service; each number is in the table with its aim and in the JSON line, which comes last."""
    monkeypatch.chdir(tmp_path)
    assert main(["--quick", "--only", "state", "health", "worker"]) == 0
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    found = {one["name"]: one for one in line["findings"]}
    assert set(found) == AIMED
    assert all(one["value"] > 0 and one["met"] == (one["value"] <= one["aim"]) for one in found.values())
    assert printed.count("| met |") + printed.count("| **missed** |") == len(AIMED)
    assert "QUICK" in printed
    # Nothing was measured before in this folder, and nothing is said of it.
    assert line["kept"] == []
    assert "Not of this run" not in printed


def test_costs_are_of_full_answers_by_kind_of_states(workload) -> None:
    """Bare run, service and latencies are there for both kinds of states, and the service costs more than the bare run."""
    with Place.open(workload, quick=True) as place:
        part = costs.measure(place, (5,))
    assert [(row["states"], row["candidates"]) for row in part.detail["rows"]] == [("redis", 5), ("near", 5)]
    for row in part.detail["rows"]:
        assert 0 < row["bare_cpu_ms"] < row["server_cpu_ms"]
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p999_ms"]
    # Aims are of other numbers of candidates.
    assert not part.findings


def test_the_line_is_continued_to_where_it_is_compared() -> None:
    """CPU that grows by a constant for each candidate is on the line; a tenth more is not."""

    def found(beyond: float) -> dict[str, Finding]:
        rows = [Cost("near", count, 0.0, 1.0 + 0.01 * count, *[1.0] * 5) for count in LINE]
        rows.append(Cost("near", BEYOND, 0.0, beyond, *[1.0] * 5))
        return {one.name: one for one in costs.findings(rows)}

    straight, bent = found(21.0)["line.near"], found(24.0)["line.near"]
    assert straight.value == pytest.approx(1)
    assert straight.met
    assert bent.value == pytest.approx(24 / 21)
    assert not bent.met
    assert found(21.0)["more.near.500"].value == pytest.approx(6.0)


def test_an_aim_is_met_from_the_right_side() -> None:
    """What should be low is met at its aim and missed above it, what should be high the other way round."""
    low, high = (Finding("a", "what", 2.0, "ms", aim) for aim in (2.0, 1.9))
    assert (low.met, high.met) == (True, False)
    low, high = (Finding("a", "what", 2.0, "x", aim, at_least=True) for aim in (2.1, 2.0))
    assert (low.met, high.met) == (False, True)
    assert "| what | 2.000 x | ≥ 2.100 | **missed** |" in table([low])
    assert Finding("a", "what", 2.0, "x").met is None


def test_other_runs_are_named_with_their_day_and_command(tmp_path) -> None:
    """Ratios to peers and freshness come with the command and the day that they were measured on, and without a day not at all."""
    rows = [Row("srp4ctr", 100, 1.0, 900.0), Row("fastapi", 100, 2.0, 300.0), Row("ray", None, error="gone")]
    (tmp_path / "serving").mkdir()
    (tmp_path / RESULTS).write_text(json.dumps([row.as_json() for row in rows]))
    assert kept(tmp_path) == []
    (tmp_path / ABOUT).write_text(json.dumps({"date": "2026-01-02", "model": "m-1"}))
    fresh = {"event_to_score_p99_ms": 400.0, "events_per_s": 200.0, "publish_users_per_s": None}
    about = {"date": "2026-01-03", "model": "m-2"}
    (tmp_path / "freshness.json").write_text(json.dumps(fresh | {"about": about}))
    serving, freshness = kept(tmp_path)
    assert serving.title == "Not of this run: measured on 2026-01-02 by `make bench-peers`, model m-1"
    assert [(one.name, one.value) for one in serving.findings] == [("peers.fastapi.100", 3.0)]
    assert "2026-01-03 by `make bench-freshness`" in freshness.title
    assert [(one.name, one.met) for one in freshness.findings] == [("fresh", True)]


def test_cpu_of_another_process_is_exact() -> None:
    """What another process says that it has used is what the kernel's clock of it says, far below a tick of 10 ms."""
    code = (
        "import time\nwhile time.process_time() < 0.05: pass\nprint(time.process_time(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said = float(process.stdout.readline())
        time.sleep(0.05)
        assert said <= cpu_seconds(process.pid) < said + 0.005
        process.communicate("\n")
    with pytest.raises(psutil.NoSuchProcess):
        cpu_seconds(process.pid)


def test_every_part_says_what_it_measures(capsys) -> None:
    """--help names each part that can be chosen."""
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(f"{name}:" in told for name in MEASUREMENTS)
