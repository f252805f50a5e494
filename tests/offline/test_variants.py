"""Ways to run the scorer: all but int8 give the default's scores for any number of candidates, and the page says what each costs."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from srp4ctr.contract.errors import BundleError
from srp4ctr.runtime.plain_scorer import plain_path, written_plain
from srp4ctr_offline.config import load_config
from srp4ctr_offline.prepared import TRAIN
from srp4ctr_offline.served import questions
from srp4ctr_offline.study.plain_graph import write_plain
from srp4ctr_offline.study.scorer_variants import BUCKETS, DEFAULT, variants
from srp4ctr_offline.study.variants import measure
from srp4ctr_offline.study.variants_page import page

ROOT = Path(__file__).parents[2]

SAME = 1e-6
"""Of a probability: sums in another order."""


@pytest.fixture(scope="module", params=["tiny", "tiny_sequence"])
def run(request):
    """A small run of each kind of state."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    """The run's graph that folds nothing."""
    path = plain_path(tmp_path_factory.mktemp("plain"), run.bundle.manifest)
    write_plain(run.config, run.run, path)
    return path


def test_all_but_int8_give_the_same_scores(run, plain, tmp_path) -> None:
    """Whatever the number of candidates, under one context or one each; int8 differs, and is a probability all the same."""
    some = list(questions(run.bundle, run.prepared, run.prepared.rows.of(TRAIN)[:64]))
    ways = list(variants(run.bundle, plain, some, tmp_path))
    generator = np.random.default_rng(0)
    for count, contexts in ((1, 1), (3, 3), (BUCKETS[0], 1), (BUCKETS[0] + 1, BUCKETS[0] + 1)):
        rows = generator.integers(len(run.bundle.items.vectors), size=count, dtype=np.int32)
        context = np.repeat(some[0].contexts[:1], contexts, axis=0)
        found = {way.name: way.score(some[0].state, rows, context) for way in ways}
        for name, scores in found.items():
            assert scores.shape == (count,)
            if name != "static int8":
                np.testing.assert_allclose(scores, found[DEFAULT], atol=SAME, err_msg=name)
        assert 0 <= found["static int8"].min() <= found["static int8"].max() <= 1
    assert ways[0].name == DEFAULT


def test_int8_costs_are_per_candidate(run, plain, tmp_path) -> None:
    """A candidate's score in static int8 does not depend on who stands beside it, or it could not be compared at all."""
    some = list(questions(run.bundle, run.prepared, run.prepared.rows.of(TRAIN)[:64]))
    (int8,) = (way for way in variants(run.bundle, plain, some, tmp_path) if way.name == "static int8")
    rows = np.arange(1, 20, dtype=np.int32)
    together = int8.score(some[0].state, rows, some[0].contexts[:1])
    alone = [int8.score(some[0].state, rows[at : at + 1], some[0].contexts[:1])[0] for at in range(len(rows))]
    np.testing.assert_allclose(together, alone, atol=SAME)


def test_what_is_measured_is_on_the_page(tiny, tmp_path) -> None:
    """Each variant has CPU for each number of candidates and its AUC beside the default's, and the page shows them."""
    path = plain_path(tmp_path, tiny.bundle.manifest)
    write_plain(tiny.config, tiny.run, path)
    found = [one.as_dict() for one in measure(tiny.bundle, tiny.prepared, path, candidates=(5, 70), rounds=1)]
    assert all(set(one["cpu_ms"]) == set(one["ratio"]) == {"5", "70"} for one in found)
    assert all(value > 0 for one in found for value in (*one["cpu_ms"].values(), *one["ratio"].values()))
    by_name = {one["variant"]: one for one in found}
    assert by_name["plain"]["auc"] == pytest.approx(by_name[DEFAULT]["auc"], abs=1e-4)
    assert by_name["static int8"]["probability_max_abs"] > by_name["plain"]["probability_max_abs"]
    model = {"model": "tiny-1", "state": "tokens", "test_rows": 7, "variants": found}
    written = page({"date": "2026-01-02", "rounds": 1, "models": [model]})
    assert "2026-01-02" in written
    assert "`tokens`: tiny-1" in written
    for one in found:
        assert f"| {one['variant']} |" in written
        assert one["what"] in written


def test_a_graph_that_was_not_written_says_how(tiny, tmp_path) -> None:
    """Without the plain graph the error names the command that writes it."""
    manifest = tiny.bundle.manifest
    with pytest.raises(BundleError, match="plain_graph"):
        written_plain(tmp_path, manifest)


def test_make_derives_a_sequence_model(tmp_path) -> None:
    """What make bench-variants makes of the demo's configuration is a valid one, of the other state, under its own name."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    subprocess.run(["make", "--silent", "var/sequence.toml"], cwd=tmp_path, check=True)
    demo = load_config(tmp_path / "configs" / "movielens-100k.toml")
    derived = load_config(tmp_path / "var" / "sequence.toml")
    assert (demo.model.state, derived.model.state) == ("tokens", "sequence")
    assert derived.name != demo.name
    assert derived.features == demo.features
