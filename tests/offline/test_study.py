"""A study: trained once, gone on with, reported; and the comparisons that its report makes."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.metrics import METRICS, evaluate_rows
from srp4ctr_offline.floors import FLOORS
from srp4ctr_offline.prepared import TEST
from srp4ctr_offline.study import production
from srp4ctr_offline.study.aims import next_item_aims, rows_aims
from srp4ctr_offline.study.compare import Compared, sign_of, spread
from srp4ctr_offline.study.conditions import CONDITIONS
from srp4ctr_offline.study.cost import cost_of
from srp4ctr_offline.study.equal_cpu import averaged_rival, equal_cpu_section
from srp4ctr_offline.study.markdown import best_epochs, number, padding_text, percent, seeds_text, table
from srp4ctr_offline.study.measured import Measured
from srp4ctr_offline.study.page import render_page
from srp4ctr_offline.study.plan import load_plan
from srp4ctr_offline.study.production import conditions_section, lift_kept, tail_sentence
from srp4ctr_offline.study.results import Results
from srp4ctr_offline.study.run import main
from srp4ctr_offline.study.sections import ABLATED, ABLATED_OF, ABLATIONS, models_section
from srp4ctr_offline.study.serving import FRONTIER, frontier_points, per_candidate
from srp4ctr_offline.study.slices import ITEM_BOUNDS, Slice, item_bounds, make_slices, tail_bounds
from srp4ctr_offline.study.summary import setup_section, summary_section

PLAN = """
[protocols.tiny-ml-1m]
about = "Rows that were drawn for tests."
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
models.tokens.set = {{ "pretrain.masking.attribute_matches" = 3 }}
"""

REPOSITORY = Path(__file__).parents[2]

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
        "In short",
        "Aims",
        "Set-up",
        "Models",
        "At equal CPU",
        "Stored and stale states",
        "Rare items",
        "Cost of serving",
    ):
        assert re.search(rf"^##+ {heading}", text, re.MULTILINE), heading
        assert heading in page
    assert "## tiny-ml-1m\n\nRows that were drawn for tests.\n" in text
    assert "All planned cells are finished" in text
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert pictures
    assert all((study.report / picture).stat().st_size > 1000 for picture in pictures)
    assert page.count("data:image/png;base64,") == len(pictures)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "CPU minutes" in text
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


def test_a_condition_that_was_not_measured_is_missing(copied) -> None:
    """A finished cell whose predictions under a planned condition are gone is named; what is gone is not 0."""
    results = Results(copied.results)
    cell = next(cell for cell in load_plan(copied.plan).cells() if cell.model == "tokens")
    results.prediction_path(f"{cell.key}.state_int8").unlink()
    assert copied.run("--no-training") == 0
    text = (copied.report / "quality.md").read_text()
    assert "- tiny-ml-1m: tokens under state_int8" in text
    assert "All planned cells are finished" not in text
    assert re.search(r"int8 states of tokens .* not measured \| not measured", text)


def test_next_items_stand_beside_published_figures(copied, tiny) -> None:
    """A next-item cell has two entries, one against all items, and a table with what others have published."""
    copied.plan.write_text(copied.plan.read_text() + BEAUTY.format(config=tiny.config_path))
    first, second = (cell for cell in load_plan(copied.plan).cells() if cell.protocol == "tiny-beauty-next")
    figures = {"users": 7, "hr10": 0.61, "ndcg10": 0.41, "hr10_all": 0.07, "ndcg10_all": 0.04}
    Results(copied.results).append(
        {
            "key": first.key,
            "test": figures,
            "valid": figures,
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
    assert re.search(r"^\| tokens \|.*gelu \| 3 heads \|$", text, re.MULTILINE)
    assert f"tiny-beauty-next: tokens, seed {second.seed}" in text


def test_a_study_without_results_says_so(copied) -> None:
    """Nothing trained is a report, too."""
    shutil.rmtree(copied.results)
    shutil.rmtree(copied.report)
    assert copied.run("--no-training") == 0
    assert json.loads((copied.report / "quality.json").read_bytes()) == []
    assert "No cell of this protocol is finished" in (copied.report / "quality.md").read_text()


def test_what_was_trained_elsewhere_stays_in_the_report(study, copied) -> None:
    """Where a protocol has no cell its part stays as it was written, which the report says, and what is planned otherwise by now."""
    shutil.rmtree(copied.results)
    copied.plan.write_text(study.plan.read_text().replace('"finetune.epochs" = 2', '"finetune.epochs" = 3'))
    assert copied.run("--no-training") == 0
    kept, written = copied.files(), study.files()
    for name in written:
        if name not in ("quality.md", "quality.html"):
            assert kept[name] == written[name], name
    added = set(kept["quality.md"].decode().splitlines()) - set(written["quality.md"].decode().splitlines())
    assert added == {
        "Written before, and left as it was when the rest was written:",
        "- tiny-ml-1m, of which din would be trained otherwise now",
    }
    copied.plan.write_text(
        study.plan.read_text().replace('kind = "din"\nseeds = 1', 'kind = "din"\nseeds = 2')
    )
    assert copied.run("--no-training") == 0
    lines = copied.files()["quality.md"].decode().splitlines()
    assert "- tiny-ml-1m: din, seed 2" in lines
    assert "All planned cells are finished." not in lines


def test_only_the_protocols_asked_for_are_renewed(copied, tiny) -> None:
    """Another protocol's part stays as it was written although its cells are here; a name that the plan lacks is refused."""
    copied.plan.write_text(copied.plan.read_text() + BEAUTY.format(config=tiny.config_path))
    path = Results(copied.results).path
    path.write_text("\n".join(copied.lines[:1]) + "\n")
    before = copied.files()["quality/tiny-ml-1m.json"]
    assert copied.run("--no-training", "--only", "tiny-beauty-next") == 0
    text = (copied.report / "quality.md").read_text()
    assert "- tiny-ml-1m\n" in text
    assert copied.files()["quality/tiny-ml-1m.json"] == before
    assert copied.run("--no-training", "--only", "tiny-ml-1m.tokens") == 0
    assert copied.files()["quality/tiny-ml-1m.json"] != before
    with pytest.raises(ConfigError, match=r"--only: the plan has no tiny-ml-1m\.tokes; .*tiny-beauty-next"):
        copied.run("--no-training", "--only", "tiny-ml-1m.tokes")


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


def test_single_seeds_are_compared_by_all_there_are() -> None:
    """A rival's unlucky seed that the reference shares does not speak for its others."""
    right, wrong = np.tile([0.2, 0.8], 200), np.tile([0.8, 0.2], 200)
    one = compared(tokens={1: right}, din={1: wrong, 2: right, 3: right, 4: right}).difference("din")
    assert one.paired["auc"]["difference"] == 1
    assert one.single["auc"]["difference"] == 0.25


def test_a_verdict_needs_its_seeds() -> None:
    """The interval decides who is better, in each metric's direction; fewer than three seeds are a lead."""
    right, wrong = np.tile([0.2, 0.8], 200), np.tile([0.8, 0.2], 200)
    few = compared(tokens={1: right, 2: right}, din={1: wrong, 2: wrong}).difference("din")
    assert few.paired["auc"]["difference"] == 1
    assert few.single["auc"] == {"difference": 1, "interval_95": [1, 1]}
    assert few.verdict().startswith("better (a lead")
    assert few.verdict("logloss").startswith("better")
    floor = compared(tokens={1: right, 2: right}).difference("item_popularity")
    assert floor.verdict().startswith("better (a lead")
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
    assert common.gains_over(new) == {"difference": 1, "interval_95": [1, 1]}


def test_small_data_are_sliced_into_quarters() -> None:
    """Slices cover every count once, whatever the sizes."""
    assert item_bounds(np.array([0, 3, 2000])) == ITEM_BOUNDS
    for counts in (np.arange(40), np.array([0, 0]), np.array([7, 7, 7, 900])):
        bounds = item_bounds(counts)
        hits = sum((counts >= first) & (counts <= (last or 10**9 * (last is None))) for first, last in bounds)
        assert (hits == 1).all(), bounds


def test_an_interval_says_something_above_or_below_0_alone() -> None:
    """An end at 0 says nothing."""
    ends = ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0, 0.1), (-0.1, 0), (0, 0), (None, None))
    assert [sign_of(one) for one in ends] == [1, -1, 0, 0, 0, 0, None]


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


def test_the_study_plans_what_the_report_explains(monkeypatch) -> None:
    """Each ablation and each state of the frontier is in configs/study.toml, and ablations are trained as their whole is."""
    monkeypatch.chdir(REPOSITORY)
    models = load_plan(Path("configs/study.toml")).protocols["ml-1m"].models
    assert {*ABLATIONS, *FRONTIER, ABLATED, *ABLATED_OF.values()} <= set(models)
    parts = {name for name in models if name.startswith(("no-", "mean-", "encoder-", "ids-", "candidates-"))}
    assert parts == set(ABLATIONS)
    for name in parts:
        assert models[name].seeds <= models[ABLATED_OF.get(name, ABLATED)].seeds
        if models[name].pretrained:
            whole = models[ABLATED_OF.get(name, ABLATED)]
            assert models[name].set.items() >= whole.set.items()


@pytest.fixture
def made_up(monkeypatch):
    """A protocol of made-up predictions and CPU minutes, planned as the study's ml-100k is."""
    monkeypatch.chdir(REPOSITORY)
    planned = [cell for cell in load_plan(Path("configs/study.toml")).cells() if cell.protocol == "ml-100k"]
    cells = {cell.model: {1: cell} for cell in planned if cell.seed == 1}

    def make(minutes: dict[str, float], **predictions: dict[int, np.ndarray]) -> Measured:
        here = compared(**predictions)
        records = {
            name: {
                seed: {
                    "test": here.figures[name][seed],
                    "valid": here.figures[name][seed],
                    "cpu_minutes": {"all": minutes.get(name, 1.0)},
                }
                for seed in seeds
            }
            for name, seeds in predictions.items()
        }
        return Measured("ml-100k", "rows", "tokens", cells, records, compared=here)

    return make


RIGHT, WRONG = np.tile([0.2, 0.8], 200), np.tile([0.8, 0.2], 200)
SEEDS = (1, 2, 3)
OVER_DIN = re.compile("above (one )?din")


@pytest.mark.parametrize(
    ("minutes", "alone", "averaged"),
    [
        (40.0, "met", None),
        (13.0, "met", "met"),
        (5.0, "met", "open: din had too few CPU minutes"),
    ],
)
def test_nothing_is_won_at_equal_cpu_from_a_rival_of_less(made_up, minutes, alone, averaged) -> None:
    """The aim over several DINs is met where as many as are averaged had about the same CPU minutes, and validation agrees."""
    taken = {"tokens": 40.0, "din": minutes}
    won = made_up(taken, tokens=dict.fromkeys(SEEDS, RIGHT), din=dict.fromkeys(SEEDS, WRONG))
    verdicts = [word for aim, _, word in rows_aims(won, {}) if OVER_DIN.search(aim)]
    assert verdicts == [alone, *([averaged] if averaged else [])]
    several = averaged_rival(won)
    assert (several is None) == (averaged is None)
    if several is not None:
        assert several.seeds == SEEDS
        assert several.ratio == pytest.approx(3 * minutes / 40)
        assert several.paired["auc"]["difference"] == 1
    lost = made_up(taken, tokens=dict.fromkeys(SEEDS, WRONG), din=dict.fromkeys(SEEDS, RIGHT))
    assert {word for aim, _, word in rows_aims(lost, {}) if OVER_DIN.search(aim)} == {"**missed**"}
    for record in won.records["din"].values():
        record["valid"] = {"auc": 1.1}
    assert {word for aim, _, word in rows_aims(won, {}) if OVER_DIN.search(aim)} == {
        "open: not so on validation rows"
    }


@pytest.mark.parametrize(("rival", "word"), [(WRONG, "met"), (RIGHT, "**missed**")])
def test_a_rival_with_the_same_teacher_has_an_aim_of_its_own(made_up, rival, word) -> None:
    """Where the plan has it; the aim on the rival by itself is untouched, and each names its own CPU minutes."""
    here = made_up(
        {"tokens": 40.0, "din": 10.0, "din-taught": 50.0},
        tokens=dict.fromkeys(SEEDS, RIGHT),
        din=dict.fromkeys(SEEDS, WRONG),
        **{"din-taught": dict.fromkeys(SEEDS, rival)},
    )
    assert not any("same teacher" in aim for aim, _, _ in rows_aims(here, {}))
    here = replace(here, cells=here.cells | {"din-taught": here.cells["din"]})
    found = {aim: (text, verdict) for aim, text, verdict in rows_aims(here, {})}
    above = "AUC of tokens at least .006 above one din"
    text, verdict = found[f"{above} with the same teacher, the paired interval above 0"]
    assert verdict == word
    assert text.endswith("; din-taught had 1.25 of the CPU minutes")
    text, verdict = found[f"{above} at its best, the paired interval above 0"]
    assert verdict == "met"
    assert text.endswith("; din had .25 of the CPU minutes")


def test_the_report_says_where_validation_disagrees(made_up, tmp_path) -> None:
    """A model that is worse on test rows and better on validation rows is named; the others are not."""
    here = made_up(
        {},
        tokens=dict.fromkeys(SEEDS, RIGHT),
        din=dict.fromkeys(SEEDS, WRONG),
        bst=dict.fromkeys(SEEDS, WRONG),
    )
    history = {"finetune": [{"epoch": 1, "valid": 0.5}]}
    for name, records in here.records.items():
        for record in records.values():
            record |= {
                "history": history,
                "epochs": 1,
                "valid": {"auc": 0.9 if name == "din" else 0.88 if name == "tokens" else 0.8},
            }
    here = replace(here, cells=here.cells | {"bst": dict.fromkeys(SEEDS, here.cells["din"][1])})
    text = "\n".join(models_section(here, tmp_path))
    assert "other way round for `din` (-.0200), by" in text
    rows = {
        cells[1].strip(): cells
        for cells in (line.split("|") for line in text.splitlines() if line.count("|") > 10)
    }
    assert rows["model"][3].strip() == "validation AUC"
    assert rows["din"][3].strip() == ".9000 ± .0000"
    lines = [line for line in "\n".join(equal_cpu_section(here)).splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["tokens", "din", "bst"]


def test_aims_on_states_and_calibration(made_up) -> None:
    """States may cost so much, cold items must keep so much; what is not measured is neither met nor missed."""
    here = made_up({}, tokens=dict.fromkeys(SEEDS, RIGHT), sequence=dict.fromkeys(SEEDS, RIGHT))
    usual = here.compared.quality("tokens", (1,))
    half = np.where(np.arange(400) < 200, RIGHT, WRONG)
    worse = evaluate_rows(here.compared.label, here.compared.user, half)
    same, lost = usual.difference(usual), worse.difference(usual)
    conditions = {"tokens": {"state_float16": (same, usual), "state_int8": (lost, worse)}}
    words = {aim: word for aim, _, word in rows_aims(here, conditions)}
    assert words["float16 states of tokens cost at most .0001 AUC"] == "met"
    assert words["int8 states of tokens cost at most .0005 AUC"] == "**missed**"
    assert words["AUC of tokens at most .003 below sequence"] == "met"
    assert words["ECE of tokens at most .01, mean of single seeds"] == "**missed**"
    (cold,) = (word for aim, word in words.items() if "attributes alone" in aim)
    assert cold == "not measured"
    assert words["AUC of tokens at least .006 above one din at its best, the paired interval above 0"] == (
        "not measured"
    )
    # Item popularity is at .5, the model at 1, the condition halfway.
    assert lift_kept(here, "tokens", worse) == pytest.approx((worse.value[0] - 0.5) / 0.5)
    text = "\n".join(conditions_section(here, conditions))
    unseen = [name for name in CONDITIONS if name not in conditions["tokens"]]
    assert f"Planned and not measured of `tokens`: {', '.join(unseen)}." in text


def test_each_model_of_the_whole_history_has_its_aim(made_up) -> None:
    """Tokens stand against all that are planned, and validation rows beside test rows say which of these is the better."""
    here = made_up(
        {},
        tokens=dict.fromkeys(SEEDS, WRONG),
        sequence=dict.fromkeys(SEEDS, WRONG),
        **{"sequence-long": dict.fromkeys(SEEDS, RIGHT)},
    )
    here = replace(here, cells=here.cells | {"sequence-long": here.cells["sequence"]})
    found = {aim: (text, word) for aim, text, word in rows_aims(here, {})}
    text, word = found["AUC of tokens at most .003 below sequence"]
    assert word == "met"
    text, word = found["AUC of tokens at most .003 below sequence-long"]
    assert word == "**missed**"
    assert text.endswith("3 seeds; on validation rows -1.0000")


@pytest.mark.parametrize(
    ("hits", "gains", "words"),
    [
        (0.57, 0.39, ["met", "met"]),
        (0.56, 0.39, ["met", "**missed**"]),
        (0.57, 0.37, ["**missed**", "**missed**"]),
    ],
)
def test_the_aims_on_next_items_need_both_figures(hits, gains, words) -> None:
    """Above S3-Rec, and above its rerun, is who has the greater hit rate and NDCG; another protocol has no such aims."""
    figures = {"encoder": (hits, gains, 0.4), "worse-on-validation": (0.9, 0.9, 0.3)}
    records = {
        name: {seed: {"test": {"hr10": h, "ndcg10": g}, "valid": {"ndcg10": valid}} for seed in (1, 2)}
        for name, (h, g, valid) in figures.items()
    }
    for protocol, expected in (("beauty-next-item", words), ("others-next-item", [])):
        measured = Measured(protocol, "next_item", "tokens", {}, records)
        assert [verdict for _, _, verdict in next_item_aims(measured)] == expected
    assert next_item_aims(Measured("beauty", "next_item", "tokens", {}, {}))[0][2] == "not measured"


@pytest.mark.parametrize(
    ("rare", "common", "word"),
    [(False, True, "met"), (True, False, "**missed**"), (True, True, "not told apart")],
)
def test_the_aim_on_rare_items_is_a_gain_over_the_rival(
    made_up, tiny, monkeypatch, rare, common, word
) -> None:
    """Over a rival that is wrong on common rows alone, rare ones gain less; without predictions nothing is measured."""
    here = made_up({}, tokens=dict.fromkeys(SEEDS, RIGHT), din=dict.fromkeys(SEEDS, RIGHT))
    aim = next(one for one in rows_aims(here, {}) if "rarer items" in one[0])
    assert aim[2] == "not measured"
    half = np.arange(400) < 200
    rival = np.where(half, RIGHT if rare else WRONG, RIGHT if common else WRONG)
    counts = np.where(half, 5, 5000)
    here = made_up({}, tokens=dict.fromkeys(SEEDS, RIGHT), din=dict.fromkeys(SEEDS, rival))
    monkeypatch.setattr(production, "item_counts", lambda *_: counts)
    here = replace(here, prepared=tiny.prepared, rows=np.arange(400))
    assert next(one for one in rows_aims(here, {}) if "rarer items" in one[0])[2] == word


def test_what_has_seen_labels_is_named(made_up) -> None:
    """Pre-training whose candidates or hidden behaviours are predicted is supervised; items and attributes alone are not."""
    cells = [cell for cell in load_plan(Path("configs/study.toml")).cells() if cell.protocol == "ml-1m"]
    here = made_up({}, tokens=dict.fromkeys(SEEDS, RIGHT))
    planned = {cell.model: {1: cell} for cell in cells if cell.seed == 1}
    text = setup_section(replace(here, cells=planned))[-1]
    named = set(re.findall(r"`([a-z0-9-]+)`", text))
    assert {"tokens", "encoder-only", "candidates-only", "ids-only-masking"} <= named
    assert named.isdisjoint({"no-labels", "no-pretraining", "din"})


def test_the_set_up_says_what_each_epoch_shuffles(made_up, tmp_path) -> None:
    """Each model's epochs, batch and rate of both jobs, and where another order is drawn for each epoch."""
    plan = tmp_path / "study.toml"
    model = 'set = {{ "{job}.epochs" = 7, "{job}.learning_rate" = 2e-3, "{job}.shuffle_events" = true }}'
    plan.write_text(
        '[protocols.ml-1m]\nconfig = "configs/movielens-1m.toml"\nseeds = 1\n'
        + "".join(
            f"[protocols.ml-1m.models.{job}]\n{model.format(job=job)}\n" for job in ("pretrain", "finetune")
        )
    )
    planned = {cell.model: {1: cell} for cell in load_plan(plan).cells()}
    lines = setup_section(replace(made_up({}, tokens={1: RIGHT}), cells=planned))[2].splitlines()
    rows = {
        cells[0]: cells[1:4]
        for cells in ([cell.strip() for cell in line.strip("| ").split("|")] for line in lines)
    }
    assert rows["pretrain"] == ["64 wide, tower 64-32", "7 of 64 at 0.002, shuffled", "3 of 64 at 0.001"]
    assert rows["finetune"] == ["64 wide, tower 64-32", "24 of 64 at 0.003", "7 of 64 at 0.002, shuffled"]


def test_rare_items_are_said_to_gain_only_where_the_difference_is_told_from_0() -> None:
    """Of the rarer half and the most common slice, by the interval of the difference of their gains."""
    assert tail_bounds(np.array([0, 3, 2000])) == ((1, 99), (1000, None))
    assert tail_bounds(np.array([0, 0])) == ()

    def gains(*slices: tuple[float, list[float]]) -> list[str]:
        made = [
            Slice(name, 9, 9, {}, {"difference": mean, "interval_95": [-1.0, 1.0]}, np.array(draws))
            for name, (mean, draws) in zip(("1-99", "1000+"), slices, strict=False)
        ]
        return tail_sentence(made)

    # Each interval has 0 and the other one in it: what counts is how they vary together.
    assert "gain more than" in gains((0.2, [-0.6, 0.2, 1.0]), (0.1, [-0.7, 0.1, 0.9]))[0]
    assert "gain less than" in gains((0.1, [-0.7, 0.1, 0.9]), (0.2, [-0.6, 0.2, 1.0]))[0]
    apart = gains((0.2, [-0.6, 0.2, 1.0]), (0.1, [0.9, 0.1, -0.7]))[0]
    assert "not told apart" in apart
    assert "the former minus the latter: +.1000 [-1.4" in apart
    assert gains((0.2, [0.1])) == []
    assert gains((0.2, [0.1, np.nan]), (0.1, [0.1, 0.2])) == []


def test_the_frontier_has_each_state_that_is_measured(made_up) -> None:
    """Bytes, CPU and the seeds' mean AUC of models with a record, in the order of the report."""
    half = np.where(np.arange(400) < 200, RIGHT, WRONG)
    here = made_up({}, sequence={1: RIGHT}, tokens={1: RIGHT, 2: half})
    for name, size in (("tokens", 2304), ("sequence", 14217)):
        here.records[name][1]["state_bytes"] = size
    cost = {"models": {name: {"cpu_ms": {"100": 0.5, "500": 2.0, "encoder": 1.0}} for name in here.records}}
    first, second = frontier_points(here, cost)
    assert (first.name, first.state_bytes, first.cpu_ms) == ("tokens", 2304, {"100": 0.5, "500": 2.0})
    figures = here.compared.figures["tokens"]
    assert first.auc == pytest.approx((figures[1]["auc"] + figures[2]["auc"]) / 2)
    assert (second.name, second.deviation) == ("sequence", None)
    text = summary_section(here, cost)[1]
    assert "2,304 bytes a user against 14,217" in text
    assert "what it saves is bytes." in text
    assert "Not measured: `tokens` against `din`." in text
    assert "Not measured: `tokens` against `din-taught`." in text
    assert "Not measured: `tokens-short`, which has no teacher, against `din`." in text
    assert len(text.splitlines()) == 8
    full = made_up(
        {"tokens-short": 2.0, "tokens": 8.0}, tokens={1: RIGHT}, din={1: half}, **{"tokens-short": {1: WRONG}}
    )
    short = next(
        line for line in summary_section(full, cost)[1].splitlines() if "`tokens-short` has .0000" in line
    )
    assert "for .25 of `tokens`'s CPU minutes" in short
    assert "-.5000 [" in short
    assert "(1 seed, a lead) from `din`, which" in short
    here = made_up({}, sequence={1: RIGHT}, tokens={1: RIGHT, 2: half}, **{"sequence-long": {1: half}})
    for name, size in (("tokens", 2304), ("sequence", 14217)):
        here.records[name][1]["state_bytes"] = size
    (longer,) = re.findall("what it saves is bytes\\.(.*)", summary_section(here, cost)[1])
    assert longer.startswith(" `sequence` trained for longer and shuffled, as `sequence-long`, has .5000 (")


def test_epochs_and_padding_of_records() -> None:
    """The best epoch is of those allowed, where training ended early, too; padding is of the last epoch."""
    losses = [{"epoch": epoch, "valid": loss} for epoch, loss in enumerate((0.7, 0.5, 0.4, 0.45, 0.5))]
    record = {"history": {"finetune": losses}, "epochs": 12}
    assert best_epochs([record, record]) == "2.0 of 12"
    assert padding_text([record]) == "-"
    seen = [{"epoch": 1, "padding_share": 0.5}, {"epoch": 2, "padding_share": 0.021}]
    assert padding_text([{"history": {"pretrain": seen}}]) == "2.1 %"
