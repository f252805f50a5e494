"""A search: each trial trained once, ordered by validation, and the study's own among them named."""

import json
from pathlib import Path

from srp4ctr_offline.study.plan import load_plan
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.study.search import main

TRIAL = """
[protocols.tiny.models.{name}]
kind = "din"
baseline = {{ width = 16, heads = 2, tower = [16], attention = [8] }}
set = {{ "finetune.epochs" = 1, "finetune.learning_rate" = {rate} }}
"""
PLAN = '[protocols.tiny]\nconfig = "{config}"\nseeds = 1\n'
REPOSITORY = Path(__file__).parents[2]


def test_trials_are_ordered_by_validation_and_trained_once(tiny, tmp_path) -> None:
    """The page shows each trial's validation figures, the best first, and which one the study trains; no test figure."""
    head = PLAN.format(config=tiny.config_path)
    plan, study, results = tmp_path / "search.toml", tmp_path / "study.toml", tmp_path / "results"
    plan.write_text(head + TRIAL.format(name="fast", rate=3e-2) + TRIAL.format(name="slow", rate=1e-5))
    study.write_text(head + TRIAL.format(name="din", rate=1e-5))
    options = [str(plan), "--study", str(study), "--results", str(results), "--report", str(tmp_path)]
    assert main(options) == 0
    (rows,) = json.loads((tmp_path / "din-search.json").read_bytes()).values()
    assert [row["valid_auc"] for row in rows] == sorted((row["valid_auc"] for row in rows), reverse=True)
    assert {row["learning_rate"]: row["in_study"] for row in rows} == {3e-2: False, 1e-5: True}
    assert not any("test" in name for row in rows for name in row)
    written = Results(results).path.read_bytes()
    assert main(options) == 0
    assert Results(results).path.read_bytes() == written
    assert (tmp_path / "din-search.md").read_text().count("| yes |") == 1


def test_the_study_trains_din_as_its_search_chose() -> None:
    """On each data set the study's DIN is the published search's trial of greatest validation AUC, as the plan is now."""
    found = json.loads((REPOSITORY / "docs" / "benchmarks" / "din-search.json").read_bytes())
    cells = load_plan(REPOSITORY / "configs" / "study.toml").cells()
    planned = {cell.protocol: cell for cell in cells if cell.model == "din" and cell.seed == 1}
    assert set(found) == set(planned)
    for protocol, (best, *others) in found.items():
        cell = planned[protocol]
        assert best["learning_rate"] == cell.config.finetune.learning_rate, protocol
        assert best["rows_per_history"] == cell.config.finetune.rows_per_history, protocol
        assert best["shuffle_events"] == cell.config.finetune.shuffle_events, protocol
        assert best["epochs"] == cell.config.finetune.epochs, protocol
        assert best["dropout"] == cell.plan.baseline.dropout, protocol
        assert best["in_study"]
        assert not any(row["in_study"] for row in others)
