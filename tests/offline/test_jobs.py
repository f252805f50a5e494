"""The jobs as a person runs them: by command, on a small real run."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from srp4ctr.cli import main as cli
from srp4ctr.contract.errors import (
    BundleError,
    ConfigError,
    DataError,
    ExportMismatch,
)
from srp4ctr.contract.vocabulary import Vocabulary
from srp4ctr.runtime.bundle import Bundle, find_bundle
from srp4ctr.runtime.items import Catalogue
from srp4ctr.runtime.metrics import auc
from srp4ctr.runtime.sessions import OnnxScorer
from srp4ctr_offline.batches import folded, windows
from srp4ctr_offline.checkpoint import fingerprint, load_model, new_model, save_model
from srp4ctr_offline.config import RunConfig, load_config
from srp4ctr_offline.evaluate import run as evaluate_run
from srp4ctr_offline.export import export
from srp4ctr_offline.finetune import finetune
from srp4ctr_offline.parity import compare
from srp4ctr_offline.predict import predict
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.pretrain import pretrain
from srp4ctr_offline.publish import publish
from srp4ctr_offline.run import start_stage


def test_training_repeats(tiny) -> None:
    """The same configuration and seed give the same weights, bit by bit, and another seed gives others."""
    marks = []
    for seed in (3, 3, 4):
        config = tiny.config.model_copy(update={"seed": seed})
        model = pretrain(config, tiny.prepared).model
        finetune(config, tiny.prepared, model)
        marks.append(fingerprint(model, tiny.prepared.transforms))
    assert marks[0] == marks[1] == tiny.bundle.manifest.fingerprint
    assert marks[2] != marks[0]


def test_training_learns(tiny) -> None:
    """Losses fall, and the trained model ranks test rows better than a fresh one and better than chance."""
    losses = json.loads((tiny.run / "finetune" / "metrics.json").read_bytes())["epochs"]
    assert losses[-1]["train"] < losses[1]["train"]
    rows = tiny.prepared.rows.of("test")
    label = tiny.prepared.rows.label[rows]
    torch.manual_seed(0)
    fresh = auc(label, predict(new_model(tiny.config, tiny.prepared).eval(), tiny.prepared, rows))
    trained = auc(
        label,
        predict(
            load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared), tiny.prepared, rows
        ),
    )
    assert trained > max(fresh, 0.5) + 0.02


def test_calibration_makes_the_mean_right(tiny) -> None:
    """On the rows that it was fitted on, the calibrated mean prediction is the click rate."""
    rows = tiny.prepared.rows.of("valid")
    chances = predict(
        load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared), tiny.prepared, rows
    )
    assert chances.mean() == pytest.approx(tiny.prepared.rows.label[rows].mean(), abs=1e-3)


def test_windows_hold_every_training_event(tiny) -> None:
    """Each epoch shows every training event, and none that is not."""
    prepared = tiny.prepared
    for seed in range(5):
        users, ends = windows(prepared, np.random.default_rng(seed))
        seen = [np.zeros(count, bool) for count in prepared.event_counts()]
        for user, end in zip(users, ends, strict=True):
            seen[user][max(0, end - prepared.max_events) : end] = True
        for user, events in enumerate(seen):
            assert events.sum() == events[: prepared.users.train_events[user]].sum()
            assert events[: prepared.users.train_events[user]].all()


def test_folded_rows_share_a_history_that_none_is_in(tiny) -> None:
    """Each training row is in one group; its group's history ends at or before the row's own."""
    prepared = tiny.prepared
    for seed in range(5):
        groups, cuts = folded(prepared, 6, np.random.default_rng(seed))
        rows = groups[groups >= 0]
        assert sorted(rows.tolist()) == prepared.rows.of("train").tolist()
        for group, cut in zip(groups, cuts, strict=True):
            members = group[group >= 0]
            assert len(set(prepared.rows.user[members].tolist())) == 1
            assert (prepared.rows.cut[members] >= cut).all()
            assert prepared.rows.cut[members[0]] == cut


def test_run_folder_tells_the_whole_story(tiny) -> None:
    """Each stage leaves its resolved configuration, its metrics and its pictures."""
    for stage, files in {
        "pretrain": ["model.pt", "loss.png"],
        "finetune": ["model.pt", "loss.png", "calibration.png"],
        "evaluate": ["predictions-test.parquet", "calibration.png"],
    }.items():
        for name in ("config.json", "metrics.json", *files):
            assert (tiny.run / stage / name).stat().st_size > 0, (stage, name)
        resolved = json.loads((tiny.run / stage / "config.json").read_bytes())
        assert resolved["model"]["query_tokens"] == 4
        assert resolved["finetune"]["rows_per_history"] == 16
    metrics = json.loads((tiny.run / "evaluate" / "metrics.json").read_bytes())
    assert set(metrics["baselines"]) == {"item_popularity", "item_mean_user_residual", "logistic_regression"}


def test_bundle_is_sealed(tiny, tmp_path) -> None:
    """Exporting the same model again gives the same bundle; a bundle with a changed or lost file is refused."""
    assert export(tiny.config, tiny.run, tiny.bundles).manifest == tiny.bundle.manifest
    assert [path.name for path in tiny.bundles.iterdir()] == [tiny.bundle.manifest.version]
    again = export(tiny.config, tiny.run, tmp_path)
    assert again.manifest.fingerprint == tiny.bundle.manifest.fingerprint
    assert again.manifest.metrics["test_auc"] > 0.5
    table = again.folder / "items" / "codes.npy"
    table.write_bytes(table.read_bytes()[:-1] + b"\7")
    with pytest.raises(BundleError, match=r"codes\.npy is not the file that was exported"):
        Bundle.open(again.folder)
    table.unlink()
    with pytest.raises(BundleError, match=r"items/codes\.npy is missing"):
        Bundle.open(again.folder)
    assert export(tiny.config, tiny.run, tmp_path).folder == again.folder
    with pytest.raises(BundleError, match=f"there are: {again.manifest.version}"):
        find_bundle("nothing", tmp_path)


def test_a_bundle_of_another_format_says_so(tiny, tmp_path) -> None:
    """A bundle that an older version wrote is refused with what to do, and not with what its manifest lacks."""
    shutil.copytree(tiny.bundle.folder, tmp_path / "old")
    manifest = tmp_path / "old" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["item"]
    manifest.write_text(json.dumps(content | {"format_version": 1}))
    with pytest.raises(BundleError, match="is of format 1, and this version reads format 3; export it again"):
        Bundle.open(tmp_path / "old")
    manifest.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(tmp_path / "old")
    manifest.write_text("[")
    with pytest.raises(BundleError, match="is of format None"):
        Bundle.open(tmp_path / "old")


def test_export_refuses_a_graph_that_computes_something_else(tiny, tmp_path) -> None:
    """Graphs of other weights than the model's are noticed before a bundle is made of them."""
    model = load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared)
    shutil.copytree(tiny.bundle.folder, tmp_path, dirs_exist_ok=True)
    assert compare(tiny.prepared, model, tmp_path).scorer_max_abs < 2e-5
    spoilt = {
        "probability": model.tower[0].weight,
        "item_vectors": model.norm_candidate.bias,
        "tokens": model.querying.queries,
    }
    for output, weight in spoilt.items():
        with torch.no_grad():
            weight.mul_(1.05).add_(0.01)
            with pytest.raises(ExportMismatch, match=f"{output} differs from torch"):
                compare(tiny.prepared, model, tmp_path)
            weight.sub_(0.01).div_(1.05)


def test_jobs_out_of_order_say_what_to_run(tiny, tmp_path, capsys) -> None:
    """A job whose input is missing ends with exit code 1 and the command that makes the input."""
    for job, missing in (
        ("pretrain", "prepare"),
        ("finetune", "prepare"),
        ("evaluate", "prepare"),
        ("export", "prepare"),
    ):
        assert cli([job, str(tiny.config_path), "--run", str(tmp_path)]) == 1
        assert f"srp4ctr {missing} CONFIG" in capsys.readouterr().err
    (tmp_path / "prepared").symlink_to(tiny.run / "prepared")
    for job, missing in (("finetune", "pretrain"), ("evaluate", "finetune"), ("export", "finetune")):
        assert cli([job, str(tiny.config_path), "--run", str(tmp_path)]) == 1
        assert f"srp4ctr {missing} CONFIG" in capsys.readouterr().err


def test_weights_of_other_data_are_refused(tiny) -> None:
    """Weights are not loaded for another [model] section, nor for data whose codes mean something else."""
    sizes = tiny.config.model.model_copy(update={"width": 32})
    other = tiny.config.model_copy(update={"model": sizes})
    with pytest.raises(DataError, match="run srp4ctr finetune CONFIG again"):
        load_model(tiny.run / "finetune", "finetune", other, tiny.prepared)
    transforms = tiny.prepared.transforms
    renamed = {**transforms.vocabularies}
    renamed["item.id"] = Vocabulary(np.char.replace(renamed["item.id"].values, b"i", b"j"))
    prepared = dataclasses.replace(
        tiny.prepared, transforms=dataclasses.replace(transforms, vocabularies=renamed)
    )
    with pytest.raises(DataError, match="made for other data"):
        load_model(tiny.run / "finetune", "finetune", tiny.config, prepared)


def test_a_new_catalogue_is_a_new_version(tiny, tmp_path) -> None:
    """The same weights with another item table are another version of the same fingerprint, in its own bundle."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "finetune").symlink_to(tiny.run / "finetune")
    items = tiny.prepared.items
    grown = Catalogue(
        np.append(items.ids, b"zz-new"),
        np.concatenate([items.codes, items.codes[:1]]),
        np.append(items.prior, items.prior[0]),
    )
    dataclasses.replace(tiny.prepared, items=grown).save(run / "prepared")
    bundle = export(tiny.config, run, tmp_path / "bundles")
    assert bundle.manifest.fingerprint == tiny.bundle.manifest.fingerprint
    assert bundle.manifest.version != tiny.bundle.manifest.version
    assert bundle.items.rows(["zz-new"]).tolist() == [len(items.codes)]


def test_bundles_can_be_read_by_other_users(tiny) -> None:
    """A bundle's folder is readable for services that run as somebody else."""
    assert tiny.bundle.folder.stat().st_mode & 0o555 == 0o555


TABLES = {
    "user_id": ["a"] * 6 + ["b"] * 6,
    "item_id": list("uv") * 6,
    "order": list(range(6)) * 2,
    "label": [0, 1] * 6,
    "split": ["train"] * 3 + ["valid"] * 2 + ["test"] + ["train"] * 3 + ["valid"] * 2 + ["test"],
    "rating": [1, 5, 4, 2, 3, 5] * 2,
}


def run_bare(folder: Path, rows: pl.DataFrame, **schema) -> Bundle:
    """Take hand-made rows, which are events too, through every training job to a bundle."""
    rows.write_parquet(folder / "rows.parquet")
    for name in ("item", "user"):
        rows.select(pl.col(f"{name}_id").unique()).write_parquet(folder / f"{name}s.parquet")
    config = RunConfig.model_validate(
        {
            "name": "bare",
            "threads": 1,
            "tables": {"folder": folder, "events": "rows.parquet"},
            "schema": schema,
            "split": {"rule": "column"},
            "model": {
                "width": 8,
                "heads": 2,
                "layers": 1,
                "query_tokens": 2,
                "cross_layers": 1,
                "tower": [4],
            },
            "pretrain": {"epochs": 1},
            "finetune": {"epochs": 30, "learning_rate": 0.02},
        }
    )
    prepared = prepare(config)
    prepared.save(folder / "run" / "prepared")
    model = pretrain(config, prepared).model
    finetune(config, prepared, model)
    stage = start_stage(folder / "run" / "finetune", config)
    save_model(model, prepared.transforms, stage)
    evaluate_run(config, folder / "run", "test")
    return export(config, folder / "run", folder / "bundles")


def test_a_schema_of_ids_alone(tmp_path, store, redis_server, monkeypatch, capsys) -> None:
    """Without attributes, behaviours, user and context features the chain still ends in published states.

    No test user has both labels, so that GAUC is not defined, and the bundle says nothing of it. Without timestamps, publishing
    histories warns that no event can be told from the snapshot's.
    """
    bundle = run_bare(tmp_path, pl.DataFrame(TABLES), max_events=2)
    assert [one.name for one in bundle.manifest.scorer.inputs] == ["tokens", "item_vectors"]
    assert "test_gauc" not in bundle.manifest.metrics
    assert "test_logloss" in bundle.manifest.metrics
    prepared = Prepared.load(tmp_path / "run" / "prepared")
    assert publish(bundle, prepared, store).users == 2
    score = OnnxScorer(bundle)(bundle.cold_state, bundle.items.vectors, np.empty(0, np.int32))
    assert np.isfinite(score).all()
    monkeypatch.setenv("SRP4CTR_REDIS_URL", redis_server.url)
    monkeypatch.setenv("SRP4CTR_VAR_DIR", str(tmp_path))
    publishing = ["publish", bundle.manifest.version, "--run", str(tmp_path / "run"), "--threads", "1"]
    assert cli([*publishing, "--no-histories"]) == 0
    assert "no timestamps" not in capsys.readouterr().err
    assert cli(publishing) == 0
    assert "the snapshot has no timestamps ([schema] timestamp)" in capsys.readouterr().err


def test_nothing_to_learn_from_is_said(tmp_path) -> None:
    """No training events, or one label only, end with an error that says so, and not somewhere in the middle."""
    first = pl.DataFrame(TABLES).with_columns(split=pl.lit("valid"))
    first[0, "split"], first[11, "split"] = "train", "test"
    late = first.with_columns(order=pl.when(pl.col("split") == "train").then(99).otherwise("order"))
    with pytest.raises(DataError, match="no training events"):
        run_bare(tmp_path, late)
    with pytest.raises(DataError, match="all train rows have one label"):
        run_bare(
            tmp_path,
            pl.DataFrame(TABLES).with_columns(
                label=pl.when(pl.col("split") == "train").then(1).otherwise("label")
            ),
        )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "tiny"', 'nome = "tiny"', "nome: Extra inputs"),
        ("seed = 3", 'seed = "x"', "seed: "),
        ("width = 16", "width = 15", r"model: .*heads = 2 does not divide width = 15"),
        ("epochs = 3", "epochs = 0", r"pretrain\.epochs"),
        ("epochs = 3", "epoch = 3", r"pretrain\.epoch: Extra inputs"),
        ("buckets = 6", "bucket = 6", r"schema\.item_attributes\[3\]"),
        ('rule = "column"', 'rule = "by_moon"', "split"),
        ('rule = "column"', 'rule = "per_user"\ntrain = 0.9', "leaves no test rows"),
        ("seed = 3", "seed = ", "is not TOML"),
    ],
)
def test_wrong_configurations_name_the_key(tiny, tmp_path, old, new, message) -> None:
    """An unknown key or an impossible value is an error that names the key."""
    path = tmp_path / "wrong.toml"
    text = tiny.config_path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load_config(path)
