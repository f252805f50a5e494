"""A study: trained once, gone on with, reported; and the comparisons that its report makes."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr_offline.floors import FLOORS
from srp4ctr_offline.metrics import METRICS, evaluate_rows
from srp4ctr_offline.prepared import TEST
from srp4ctr_offline.study.compare import Compared, spread
from srp4ctr_offline.study.cost import cost_of
from srp4ctr_offline.study.markdown import number, percent, seeds_text, table
from srp4ctr_offline.study.page import render_page
from srp4ctr_offline.study.plan import load_plan
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.study.run import main
from srp4ctr_offline.study.serving import per_candidate
from srp4ctr_offline.study.slices import ITEM_BOUNDS, item_bounds, make_slices

PLAN = """
[protocols.tiny-ml-1m]
config = "{config}"
seeds = {seeds}

[protocols.tiny-ml-1m.models.tokens]
conditions = true
set = {{ "pretrain.epochs" = 1, "finetune.epochs" = 1 }}

[protocols.tiny-ml-1m.models.sequence]
seeds = 1
set = {{ "model.state" = "sequence", "pretrain.epochs" = 1, "finetune.epochs" = 1 }}

[protocols.tiny-ml-1m.models.din]
kind = "din"
seeds = 1
set = {{ "finetune.epochs" = 2 }}
baseline = {{ width = 16, heads = 2, tower = [16], attention = [8] }}
"""

BEAUTY = """
[protocols.tiny-beauty-next]
config = "{config}"
measure = "next_item"
seeds = 2
models = {{ tokens = {{}} }}
"""

FIELDS = ["protocol", "model", "seed", *METRICS, "hr10", "ndcg10", "cpu_minutes", "state_bytes"]


@dataclass(frozen=True)
class Study:
    """A study's plan, results and report."""

    plan: Path
    results: Path
    report: Path

    def run(self, *options: str) -> int:
        """As `make study` does, one cell at a time."""
        folders = ["--results", str(self.results), "--report", str(self.report)]
        return main([str(self.plan), *folders, "--jobs", "1", *options])

    def files(self) -> dict[str, bytes]:
        """The report's files."""
        return {
            str(path.relative_to(self.report)): path.read_bytes()
            for path in sorted(self.report.rglob("*"))
            if path.is_file()
        }

    @property
    def lines(self) -> list[str]:
        """Of the records."""
        return Results(self.results).path.read_text().splitlines()


@pytest.fixture(scope="module")
def study(tiny, tmp_path_factory) -> Study:
    """A study of three cells, trained and reported once; tests that change something work on a copy."""
    folder = tmp_path_factory.mktemp("study")
    plan = folder / "study.toml"
    plan.write_text(PLAN.format(config=tiny.config_path, seeds=1))
    made = Study(plan, folder / "results", folder / "report")
    assert made.run() == 0
    return made


@pytest.fixture
def copied(study, tmp_path) -> Study:
    """A copy of the finished study."""
    for path in (study.results, study.report):
        shutil.copytree(path, tmp_path / path.name)
    shutil.copy(study.plan, tmp_path)
    return Study(tmp_path / "study.toml", tmp_path / "results", tmp_path / "report")


def test_a_finished_study_is_left_alone(study) -> None:
    """Each cell has a record and predictions; a second run trains nothing and writes the same report, byte by byte."""
    results = Results(study.results)
    cells = list(load_plan(study.plan).cells())
    assert set(results.records()) == {cell.key for cell in cells}
    for cell in cells:
        frame = pl.read_parquet(results.prediction_path(cell.key))
        assert frame.columns == ["row_id", "probability"]
    before, files = results.path.read_bytes(), study.files()
    assert study.run() == 0
    assert results.path.read_bytes() == before
    assert study.files() == files


def test_figures_are_those_of_the_predictions(study, tiny) -> None:
    """quality.json has an entry of the agreed fields for each cell and floor, as evaluate_rows sees the predictions."""
    entries = json.loads((study.report / "quality.json").read_bytes())
    assert all(list(entry) == FIELDS for entry in entries)
    seen = {(entry["model"], entry["seed"]): entry for entry in entries}
    assert set(seen) == {
        ("tokens", 1),
        ("sequence", 1),
        ("din", 1),
        *((floor, None) for floor in FLOORS),
    }
    rows = tiny.prepared.rows
    test = rows.of(TEST)
    results = Results(study.results)
    for cell in load_plan(study.plan).cells():
        chances = results.predictions(cell.key, rows.row_id[test])
        value = evaluate_rows(rows.label[test], rows.user[test], chances, draws=1).value
        entry = seen[cell.model, cell.seed]
        assert [entry[name] for name in METRICS] == pytest.approx(list(value), abs=5e-6)
        assert entry["hr10"] is None
        assert entry["cpu_minutes"] > 0
        assert (entry["state_bytes"] is None) == (cell.model == "din")
    assert seen["tokens", 1]["state_bytes"] < seen["sequence", 1]["state_bytes"]


def test_the_report_has_its_sections(study) -> None:
    """Markdown and HTML say the same; the HTML needs nothing beside it, and nothing is said to be missing."""
    text, page = ((study.report / f"quality.{kind}").read_text() for kind in ("md", "html"))
    for heading in (
        "Aims",
        "Models",
        "At equal CPU",
        "Stored and stale states",
        "Rare items",
        "Cost of serving",
    ):
        assert re.search(rf"^##+ {heading}", text, re.MULTILINE), heading
        assert heading in page
    assert "All planned cells are finished" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    assert all((study.report / picture).stat().st_size > 1000 for picture in pictures)
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "by few seeds" in text
    assert "published" in text


def test_a_study_that_was_cut_off_goes_on(copied) -> None:
    """A record that was cut off is no record: its cell alone is trained again, to the same figures, and noted."""
    path = Results(copied.results).path
    whole = copied.lines
    path.write_text("\n".join([*whole[:-1], whole[-1][:100]]))
    assert copied.run("--no-training") == 0
    assert "din, seed 1" in (copied.report / "quality.md").read_text()
    assert copied.run() == 0
    assert copied.lines[: len(whole) - 1] == whole[:-1]
    again = Results(copied.results).records()
    old = json.loads(whole[-1])
    assert again[old["key"]]["test"] == old["test"]
    assert len(again) == len(whole)


def test_a_changed_configuration_is_another_cell(study, copied, tiny) -> None:
    """More seeds keep the cells that there are; another value makes others, and the report says what is missing."""
    done = set(Results(copied.results).records())
    copied.plan.write_text(PLAN.format(config=tiny.config_path, seeds=3))
    assert done < {cell.key for cell in load_plan(copied.plan).cells()}
    assert copied.run("--no-training") == 0
    text = (copied.report / "quality.md").read_text()
    assert "tiny-ml-1m: tokens, seeds 2, 3" in text
    assert "| 3 of 5 |" in text
    changed = study.plan.read_text().replace('"finetune.epochs" = 2', '"finetune.epochs" = 3')
    copied.plan.write_text(changed)
    keys = {cell.model: cell.key for cell in load_plan(copied.plan).cells()}
    assert keys["din"] not in done
    assert {keys["tokens"], keys["sequence"]} < done


def test_next_items_stand_beside_published_figures(copied, tiny) -> None:
    """A next-item cell has two entries, one against all items, and a table with what others have published."""
    copied.plan.write_text(copied.plan.read_text() + BEAUTY.format(config=tiny.config_path))
    first, second = (cell for cell in load_plan(copied.plan).cells() if cell.protocol == "tiny-beauty-next")
    figures = {"users": 7, "hr10": 0.61, "ndcg10": 0.41, "hr10_all": 0.07, "ndcg10_all": 0.04}
    Results(copied.results).append(
        {
            "key": first.key,
            "test": figures,
            "history": {"pretrain": [{"epoch": 1, "total": 2.0}, {"epoch": 2, "total": 1.0}]},
            "cpu_minutes": {"pretrain": 1.5},
            "state_bytes": None,
        }
    )
    assert copied.run("--no-training") == 0
    entries = {
        entry["protocol"]: entry
        for entry in json.loads((copied.report / "quality.json").read_bytes())
        if "beauty" in entry["protocol"]
    }
    assert set(entries) == {"tiny-beauty-next", "tiny-beauty-next-all-items"}
    assert entries["tiny-beauty-next"]["hr10"] == 0.61
    assert entries["tiny-beauty-next-all-items"]["ndcg10"] == 0.04
    assert entries["tiny-beauty-next"]["auc"] is None
    text = (copied.report / "quality.md").read_text()
    assert re.search(r"S3-Rec .*\.5506.*published", text)
    assert f"tiny-beauty-next: tokens, seed {second.seed}" in text


def test_a_study_without_results_says_so(copied) -> None:
    """Nothing trained is a report, too."""
    shutil.rmtree(copied.results)
    assert copied.run("--no-training") == 0
    assert json.loads((copied.report / "quality.json").read_bytes()) == []
    assert "No cell of this protocol is finished" in (copied.report / "quality.md").read_text()


def test_costs_add_up(study) -> None:
    """Costs are kept; those of the user are shared by the candidates, and DIN has no cached state."""
    cells = {cell.model: cell for cell in load_plan(study.plan).cells()}
    cost = cost_of(cells, Results(study.results))
    assert cost == cost_of(cells, Results(study.results))
    tokens, din = cost["models"]["tokens"], cost["models"]["din"]
    (request_1, cached_1), (request_100, cached_100) = (per_candidate(tokens, count) for count in (1, 100))
    assert request_1 - cached_1 == pytest.approx(100 * (request_100 - cached_100))
    assert per_candidate(din, 1)[1] is None
    assert din["state_bytes"] is None
    assert set(din["cpu_ms"]) == {"100", "500"}
    assert set(tokens["cpu_ms"]) == {"100", "500", "encoder"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "din"', 'kind = "dim"', "protocols.tiny-ml-1m.models.din.kind"),
        ('"model.state"', '"modle.state"', "modle.state"),
        ('"finetune.epochs" = 2', '"finetune.epochs" = 0', "finetune.epochs"),
        ("models.din]", "models.item_popularity]", "item_popularity"),
    ],
)
def test_a_wrong_plan_is_refused_by_its_key(copied, old, new, said) -> None:
    """The error names the key."""
    text = copied.plan.read_text()
    assert old in text
    copied.plan.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(said)):
        list(load_plan(copied.plan).cells())


def compared(**predictions: dict[int, np.ndarray]) -> Compared:
    """Forty users of ten rows, every second one clicked; `tokens` is the reference."""
    label = np.tile(np.array([0, 1], np.int8), 200)
    user = np.repeat(np.arange(40), 10)
    figures = {
        name: {
            seed: dict(zip(METRICS, evaluate_rows(label, user, one, draws=1).value.tolist(), strict=True))
            for seed, one in seeds.items()
        }
        for name, seeds in predictions.items()
    }
    floor = {"item_popularity": np.full(400, 0.5)}
    return Compared("tokens", label, user, figures, predictions, floor)


def test_models_are_paired_on_the_seeds_that_both_have() -> None:
    """A model that is equal seed by seed does not lose to a larger ensemble of the same."""
    draws = np.random.default_rng(0)
    right = np.tile([0.2, 0.8], 200)
    noisy = [np.clip(right + draws.normal(0, 0.4, 400), 0.01, 0.99) for _ in range(4)]
    here = compared(tokens=dict(enumerate(noisy)), din={0: noisy[0]})
    one = here.difference("din")
    assert one.seeds == (0,)
    assert one.paired["auc"] == {"difference": 0, "interval_95": [0, 0]}
    assert one.verdict() == "not told apart"
    # The ensemble of all is better than its seeds are one by one.
    assert here.quality("tokens").value[0] > here.spread("tokens")["auc"].mean
    assert here.difference("tokens") is None
    assert [other.name for other in here.differences()] == ["din", "item_popularity"]


def test_a_verdict_needs_its_seeds() -> None:
    """The interval decides who is better, in each metric's direction; fewer than three seeds are a lead."""
    right, wrong = np.tile([0.2, 0.8], 200), np.tile([0.8, 0.2], 200)
    few = compared(tokens={1: right, 2: right}, din={1: wrong, 2: wrong}).difference("din")
    assert few.paired["auc"]["difference"] == 1
    assert few.single["auc"] == 1
    assert few.verdict().startswith("better (a lead")
    assert few.verdict("logloss").startswith("better")
    many = dict.fromkeys((1, 2, 3), right)
    here = compared(tokens=dict.fromkeys((1, 2, 3), wrong), din=many)
    assert here.difference("din").verdict() == "worse"
    assert here.difference("item_popularity").verdict() == "worse"
    assert compared(tokens={1: right}, din={2: right}).difference("din") is None


def test_slices_hold_their_own_rows() -> None:
    """Each slice has the AUC of its rows alone, and the difference that was planted there."""
    right = np.tile([0.2, 0.8], 200)
    half = np.arange(400) < 200
    rival = np.where(half, right, 1 - right)
    here = compared(tokens={1: right}, din={1: rival}, sequence={2: right})
    counts = np.where(half, 0, 5000)
    names = ("tokens", "din", "sequence", "item_popularity")
    new, common = make_slices(here, counts, ITEM_BOUNDS, names, "din")
    assert (new.name, new.rows, new.users) == ("0", 200, 20)
    assert (common.name, common.rows, common.users) == ("1000+", 200, 20)
    # `sequence` has none of the seeds that the others share.
    assert new.auc == {"tokens": 1, "din": 1, "item_popularity": 0.5}
    assert common.auc == {"tokens": 1, "din": 0, "item_popularity": 0.5}
    assert new.difference == {"difference": 0, "interval_95": [0, 0]}
    assert common.difference == {"difference": 1, "interval_95": [1, 1]}


def test_small_data_are_sliced_into_quarters() -> None:
    """Slices cover every count once, whatever the sizes."""
    assert item_bounds(np.array([0, 3, 2000])) == ITEM_BOUNDS
    for counts in (np.arange(40), np.array([0, 0]), np.array([7, 7, 7, 900])):
        bounds = item_bounds(counts)
        hits = sum((counts >= first) & (counts <= (last or 10**9 * (last is None))) for first, last in bounds)
        assert (hits == 1).all(), bounds


def test_figures_as_they_are_printed() -> None:
    """Three forms of a number, a seed list, a table with a bar in a cell."""
    assert [number(x, sign="+") for x in (0.81451, -0.00204, 1.0, -0.00001, None)] == [
        "+.8145",
        "-.0020",
        "+1.0000",
        "+.0000",
        "-",
    ]
    assert percent(1.82) == "+182 %"
    assert percent(-0.075) == "-8 %"
    assert [seeds_text(x) for x in ([3, 1, 2], [1, 3], [4], [])] == ["1-3", "1, 3", "4", "none"]
    assert table(["a", "b"], [["x|y", "1"]]).endswith("| x\\|y | 1 |")
    assert spread([0.5]).deviation is None
    assert spread([0.1, 0.3]).deviation == pytest.approx(0.1414, abs=1e-4)


def test_a_page_runs_no_markup_of_its_text(tmp_path) -> None:
    """What a model's name may hold is text in the page."""
    page = render_page(
        "# a <script>alert(1)</script>\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n", tmp_path, "t<"
    )
    assert "<script>" not in page
    assert '<div class="wide"><table>' in page
    assert "<title>t&lt;</title>" in page
