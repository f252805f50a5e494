"""`srp4ctr activate`'s quality gate: a version that is worse than the active one does not become active by itself."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from srp4ctr.cli import main as cli
from srp4ctr.runtime.bundle import Bundle
from srp4ctr.runtime.metrics import evaluate_rows
from srp4ctr_offline.checkpoint import load_model, new_model, save_model
from srp4ctr_offline.config import GateConfig, RunConfig
from srp4ctr_offline.export import export
from srp4ctr_offline.gate import compare, sample_rows
from srp4ctr_offline.predict import predict
from srp4ctr_offline.prepare import prepare, prepare_for
from srp4ctr_offline.prepared import TEST, Prepared
from srp4ctr_offline.run import start_stage
from srp4ctr_offline.served import predict_served
from srp4ctr_offline.stages import hash_of_code_and
from srp4ctr_offline.study.plan import load_plan

ROOT = Path(__file__).parents[2]
COMPARED = ("auc", "logloss", "ece")


def make_version(folder: Path, run, change) -> Bundle:
    """Export the run's model after `change` was done to its weights; the bundle is in `folder`."""
    model = load_model(run.run / "finetune", "finetune", run.config, run.prepared)
    with torch.no_grad():
        change(model)
    own = folder / "run"
    stage = start_stage(own / "finetune", run.config)
    (own / "prepared").symlink_to(run.run / "prepared")
    save_model(model, run.prepared.transforms, stage)
    return export(run.config, own, folder / "bundles")


def forget_items(model) -> None:
    """Scores say nothing of the candidate any more."""
    model.norm_candidate.weight.zero_()


@pytest.fixture(scope="module")
def versions(tiny, tmp_path_factory) -> dict[str, Bundle]:
    """Versions of the small run: calibrated a little otherwise, calibrated wrongly, and with spoilt weights."""
    changes = {
        "alike": lambda model: model.calibration_bias.add_(1e-4),
        "uncalibrated": lambda model: model.calibration_bias.add_(1.0),
        "spoilt": forget_items,
    }
    return {name: make_version(tmp_path_factory.mktemp(name), tiny, what) for name, what in changes.items()}


@pytest.fixture
def var(tiny, versions, store, redis_server, tmp_path, monkeypatch) -> Path:
    """A var folder with the run and all bundles, each of them published; none is active."""
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tmp_path))
    run = tmp_path / "runs" / tiny.config.name
    start_stage(run / "export", tiny.config)
    for stage in ("prepared", "finetune"):
        (run / stage).symlink_to(tiny.run / stage)
    (tmp_path / "bundles").mkdir()
    for bundle in (tiny.bundle, *versions.values()):
        manifest = bundle.manifest
        (tmp_path / "bundles" / manifest.version).symlink_to(bundle.folder)
        store.mark_published(manifest.version, manifest.fingerprint, len(tiny.user_ids))
    return tmp_path


def activate(bundle: Bundle, *options: str) -> int:
    """Run `srp4ctr activate` for a bundle; gives the exit code."""
    return cli(["activate", bundle.manifest.version, "--threads", "1", *options])


def run_of(var: Path, tiny) -> Path:
    """The run's folder."""
    return var / "runs" / tiny.config.name


def set_gate(var: Path, tiny, **limits) -> None:
    """Export again with other limits, as far as the gate sees it."""
    start_stage(run_of(var, tiny) / "export", tiny.config.model_copy(update={"gate": GateConfig(**limits)}))


def told(var: Path, tiny) -> dict:
    """What the gate wrote."""
    return json.loads((run_of(var, tiny) / "activate" / "metrics.json").read_bytes())


def test_the_first_activation_and_the_same_again_need_no_gate(tiny, var, store, capsys) -> None:
    """There is nothing to compare with, and a version is never compared with itself."""
    for words in ("no version is active yet", f"active: {tiny.bundle.manifest.version}"):
        assert activate(tiny.bundle) == 0
        assert words in capsys.readouterr().out
    assert store.active().version == tiny.bundle.manifest.version
    assert not (run_of(var, tiny) / "activate").exists()


def test_a_version_that_is_alike_is_activated(tiny, versions, var, store, capsys) -> None:
    """Within the limits the pointer moves; the numbers are printed, and written as every stage writes its own."""
    assert activate(tiny.bundle) == 0
    assert activate(versions["alike"]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok\n") == 3
    assert "NOT ok" not in out
    assert store.active().version == versions["alike"].manifest.version
    found = told(var, tiny)
    assert found["passed"]
    assert [found["version"], found["active"]] == [
        versions["alike"].manifest.version,
        tiny.bundle.manifest.version,
    ]
    resolved = RunConfig.model_validate_json((run_of(var, tiny) / "activate" / "config.json").read_bytes())
    assert resolved == tiny.config


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("uncalibrated", {"logloss": "max_logloss_rise", "ECE": "max_ece_rise"}),
        ("spoilt", {"AUC": "max_auc_drop", "logloss": "max_logloss_rise"}),
    ],
)
def test_a_worse_version_is_refused(tiny, versions, var, store, capsys, name, named) -> None:
    """What is worse by more than a limit is refused: metric and limit are named, and the pointer stays where it was."""
    assert activate(tiny.bundle) == 0
    before = store.active()
    assert activate(versions[name]) == 1
    out, error = capsys.readouterr()
    for metric, limit in named.items():
        assert f"{metric} " in error
        assert f"({limit} = " in error
    assert ("max_auc_drop" in error) == ("AUC" in named)
    assert "--no-gate" in error
    assert out.count("NOT ok") == error.count("(max_") >= len(named)
    assert store.active() == before
    assert not told(var, tiny)["passed"]
    assert activate(versions[name], "--no-gate") == 0
    assert store.active().version == versions[name].manifest.version


@pytest.mark.usefixtures("var")
def test_a_better_version_passes(tiny, versions, store) -> None:
    """The gate looks one way: from the spoilt version to the good one nothing is in its way."""
    assert activate(versions["spoilt"]) == 0
    assert activate(tiny.bundle) == 0
    assert store.active().version == tiny.bundle.manifest.version


def test_limits_are_those_of_the_configuration(tiny, versions, var, store, capsys) -> None:
    """`[gate]` decides, as the run was last exported with it: wider limits let a version pass, and others stop it."""
    assert activate(tiny.bundle) == 0
    set_gate(var, tiny, max_ece=1e-6)
    assert activate(versions["alike"]) == 1
    assert "(max_ece = 1e-06)" in capsys.readouterr().err
    set_gate(var, tiny, max_logloss_rise=9, max_ece_rise=1)
    assert activate(versions["uncalibrated"]) == 0
    assert store.active().version == versions["uncalibrated"].manifest.version


def test_an_incomplete_version_is_refused_before_the_gate(tiny, versions, var, store, capsys) -> None:
    """A version that is not published to the end is refused at once, with or without the gate."""
    assert activate(tiny.bundle) == 0
    store._client.delete(f"srp4ctr:published:{versions['alike'].manifest.version}")
    for options in ((), ("--no-gate",)):
        assert activate(versions["alike"], *options) == 1
        assert "srp4ctr publish" in capsys.readouterr().err
    assert not (run_of(var, tiny) / "activate").exists()


def without(tiny, folder: Path, file: str, *columns: str) -> RunConfig:
    """The run's configuration with tables of which one lacks some columns."""
    shutil.copytree(tiny.config.tables.folder, folder)
    table = pl.read_parquet(folder / file)
    table.drop(*columns).write_parquet(folder / file)
    return tiny.config.model_copy(update={"tables": tiny.config.tables.model_copy(update={"folder": folder})})


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("bundle", "has no version"),
        ("prepared", "holds no prepared data"),
        ("run", "is not the configuration of a run"),
        ("tables", "rows.parquet does not exist"),
        ("column", "rows.parquet lacks the column 'device'"),
        ("rows", "has other rows or events than were prepared"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny, versions, var, store, capsys, lost, message) -> None:
    """Where the active version's bundle or the run's data are gone or changed, the refusal says how to go on."""
    assert activate(tiny.bundle) == 0
    run = run_of(var, tiny)
    if lost == "bundle":
        (var / "bundles" / tiny.bundle.manifest.version).unlink()
    elif lost == "prepared":
        (run / "prepared").unlink()
    elif lost == "run":
        shutil.rmtree(run)
    else:
        config = without(tiny, var / "data", "rows.parquet", *(["device"] if lost == "column" else []))
        start_stage(run / "export", config)
        rows = var / "data" / "rows.parquet"
        if lost == "tables":
            rows.unlink()
        elif lost == "rows":
            table = pl.read_parquet(rows).with_row_index("at")
            gone = table.filter(split=TEST)["at"][0]
            table.filter(pl.col("at") != gone).drop("at").write_parquet(rows)
    assert activate(versions["alike"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert f"cannot be compared with the active {tiny.bundle.manifest.version}" in error
    assert "--no-gate" in error
    assert store.active().version == tiny.bundle.manifest.version
    assert activate(versions["alike"], "--no-gate") == 0


def test_the_gate_measures_what_evaluate_does(tiny, versions, var) -> None:
    """On the same rows the bundle's metrics are those of the torch model, to the fourth digit."""
    assert activate(versions["alike"]) == 0
    assert activate(tiny.bundle) == 0
    found = told(var, tiny)
    evaluated = json.loads((tiny.run / "evaluate" / "metrics.json").read_bytes())
    assert (found["rows"], found["users"]) == (evaluated["rows"], evaluated["users"])
    for metric in COMPARED:
        assert found["metrics"]["new"][metric] == pytest.approx(evaluated[metric], abs=1e-4)


@pytest.mark.parametrize("kind", ["tiny", "tiny_sequence"])
def test_served_predictions_are_those_of_the_model(kind, request) -> None:
    """A bundle's graphs, on states that went through storage, give each row what torch gives it, in any order of rows."""
    run = request.getfixturevalue(kind)
    model = load_model(run.run / "finetune", "finetune", run.config, run.prepared)
    rows = np.random.default_rng(0).permutation(run.prepared.rows.of(TEST))[:300]
    expected = predict(model, run.prepared, rows)
    assert np.abs(predict_served(run.bundle, run.prepared, rows) - expected).max() < 0.02
    assert np.abs(predict_served(run.bundle, run.prepared, rows) - expected).mean() < 1e-3


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory) -> tuple[RunConfig, Prepared, Bundle]:
    """A version of another schema, on the same tables: other features, vocabularies, length; its weights are random."""
    folder = tmp_path_factory.mktemp("other")
    features = tiny.config.features
    schema = features.model_copy(
        update={
            "max_events": 7,
            "item_min_count": 30,
            "item_attributes": features.item_attributes[1:],
            "behaviour_features": features.behaviour_features[:1],
            "user_features": features.user_features[::-1],
            "context_features": features.context_features[1:],
        }
    )
    config = tiny.config.model_copy(update={"name": "other", "features": schema})
    prepared = prepare(config)
    prepared.save(folder / "run" / "prepared")
    torch.manual_seed(1)
    model = new_model(config, prepared).eval()
    save_model(model, prepared.transforms, start_stage(folder / "run" / "finetune", config))
    return config, prepared, export(config, folder / "run", folder / "bundles")


def test_versions_of_other_schemas_are_compared(tiny, other) -> None:
    """The active bundle reads the rows by its own features and vocabularies: as if its own run had prepared them."""
    config, prepared, bundle = other
    found = compare(tiny.bundle, bundle, tiny.config, tiny.run)
    model = load_model(bundle.folder.parents[1] / "run" / "finetune", "finetune", config, prepared)
    rows = prepared.rows.of(TEST)
    expected = evaluate_rows(
        prepared.rows.label[rows], prepared.rows.user[rows], predict(model, prepared, rows)
    )
    assert found.active_quality.value == pytest.approx(expected.value, abs=1e-4)
    assert found.rows == len(rows)
    assert found.new_quality.value[0] > found.active_quality.value[0] + 0.02
    assert not found.failed


def test_prepared_for_a_bundle_as_its_run_prepared_it(tiny, other) -> None:
    """Some users' histories, features and contexts in a bundle's codes are those that its own run has of them."""
    _, own, bundle = other
    users = np.arange(3, 200, 7)
    some = prepare_for(bundle, tiny.config, [tiny.user_ids[user] for user in users])
    assert some.users.ids.tolist() == own.users.ids[users].tolist()
    np.testing.assert_array_equal(some.users.codes, own.users.codes[users])
    rows = np.flatnonzero(np.isin(own.rows.user, users))
    assert (some.rows.split == 2).all()
    np.testing.assert_array_equal(some.rows.contexts, own.rows.contexts[rows])
    np.testing.assert_array_equal(some.rows.row_id, own.rows.row_id[rows])
    np.testing.assert_array_equal(some.items.codes[some.rows.item], own.items.codes[own.rows.item[rows]])
    mine, theirs = (
        data.histories(data.rows.user[at], data.rows.cut[at])
        for data, at in ((some, np.arange(len(rows))), (own, rows))
    )
    for one, another in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one, another)


def test_items_that_a_bundle_lacks_are_unknown_to_it(tiny, tmp_path) -> None:
    """An item that came after a bundle is an unknown one to it, in histories and as a candidate, as when serving."""
    config = without(tiny, tmp_path / "data", "rows.parquet")
    old = tiny.item_ids[5]
    for file in ("items.parquet", "rows.parquet", "events.parquet"):
        table = pl.read_parquet(tmp_path / "data" / file)
        table.with_columns(pl.col("item_id").replace({old: "zz-new"})).write_parquet(tmp_path / "data" / file)
    users = tiny.user_ids
    renamed, usual = (prepare_for(tiny.bundle, one, users) for one in (config, tiny.config))
    assert renamed.items.ids[-1] == b"zz-new"
    np.testing.assert_array_equal(renamed.items.codes[-1], tiny.bundle.items.codes[0])
    at = np.flatnonzero(usual.rows.item == 6)[:20]
    assert (renamed.rows.item[at] == len(renamed.items.ids)).all()
    # Row 0 of the item table is what serving scores unknown items by.
    rows = dataclasses.replace(renamed.rows, item=np.zeros_like(renamed.rows.item))
    nobody = dataclasses.replace(renamed, rows=rows)
    np.testing.assert_array_equal(
        predict_served(tiny.bundle, renamed, at), predict_served(tiny.bundle, nobody, at)
    )


def test_rows_are_sampled_by_user(tiny) -> None:
    """At most so many rows, always the same, all of a user's or none; and those of one user, however many they are."""
    test, user = tiny.prepared.rows.of(TEST), tiny.prepared.rows.user
    for most in (len(test) // 3, len(test) // 2):
        rows = sample_rows(tiny.prepared, most)
        assert most - 30 < len(rows) <= most
        np.testing.assert_array_equal(rows, sample_rows(tiny.prepared, most))
        np.testing.assert_array_equal(rows, test[np.isin(user[test], user[rows])])
    np.testing.assert_array_equal(sample_rows(tiny.prepared, len(test)), test)
    assert len(set(user[sample_rows(tiny.prepared, 1)].tolist())) == 1


def test_rows_of_one_label_are_not_passed_unseen(tiny, versions, tmp_path) -> None:
    """Where AUC is not defined, the limit on it does not hold, and the error says why."""
    run = tmp_path / "run"
    run.mkdir()
    rows = tiny.prepared.rows
    one = np.flatnonzero((rows.split == 2) & (rows.label == 1))
    split = np.where(rows.split == 2, np.int8(1), rows.split)
    split[one] = 2
    changed = dataclasses.replace(tiny.prepared, rows=dataclasses.replace(rows, split=split))
    changed.save(run / "prepared")
    found = compare(versions["alike"], tiny.bundle, tiny.config, run)
    assert "AUC is not defined" in str(found.failed[0])
    assert found.as_dict()["checks"][0]["value"] is None


def test_the_gate_decides_nothing_that_is_trained(tiny) -> None:
    """Other limits are neither another cell of a study nor another input of the training commands."""
    gate = GateConfig(max_auc_drop=0.5, max_rows=7)
    cell = next(load_plan(ROOT / "configs" / "study.toml").cells())
    other = dataclasses.replace(cell, config=cell.config.model_copy(update={"gate": gate}))
    assert (other.key, other.data_key) == (cell.key, cell.data_key)
    assert hash_of_code_and(tiny.config) == hash_of_code_and(tiny.config.model_copy(update={"gate": gate}))
    assert hash_of_code_and(tiny.config) != hash_of_code_and(tiny.config.model_copy(update={"seed": 9}))
