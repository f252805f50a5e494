"""Fine-tuning's choices: what is frozen, which rows are drawn, whom it learns from, when it ends."""

import json
import shutil
from dataclasses import fields

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F

from srp4ctr.cli import main as cli
from srp4ctr.contract.vocabulary import FIRST_VALUE
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr_offline.batches import folded
from srp4ctr_offline.checkpoint import load_model, new_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.finetune import calibrate, finetune
from srp4ctr_offline.predict import predict, predict_logits
from srp4ctr_offline.prepare import prepare
from srp4ctr_offline.prepared import Histories, Prepared
from srp4ctr_offline.pretrain import pretrain


def changed(config: RunConfig, **finetuning) -> RunConfig:
    """The configuration with other values of `[finetune]`."""
    return config.model_copy(update={"finetune": config.finetune.model_copy(update=finetuning)})


def pretrained(tiny) -> Srp4Ctr:
    """The tiny run's pre-trained model, loaded anew."""
    return load_model(tiny.run / "pretrain", "pretrain", tiny.config, tiny.prepared)


def fresh(tiny) -> Srp4Ctr:
    """A model that has learned nothing."""
    torch.manual_seed(7)
    return new_model(tiny.config, tiny.prepared)


def test_a_frozen_encoder_stays_as_it_was(tiny) -> None:
    """With encoder_rate = 0 encoder and item embeddings keep their weights, the rest learns, and all may learn after."""
    model = pretrained(tiny)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    finetune(changed(tiny.config, encoder_rate=0.0, epochs=1, learning_rate=0.01), tiny.prepared, model)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not {name for name in moved if name.startswith(("encoder.", "items."))}
    assert any(name.startswith("tower.") for name in moved)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_negatives_are_drawn_anew_and_clicks_all_kept(tiny) -> None:
    """An epoch sees every click, and about the asked share of the other rows, other ones in the next epoch."""
    rows = tiny.prepared.rows
    train = rows.of("train")
    clicks = set(train[rows.label[train] == 1].tolist())
    generator = np.random.default_rng(0)
    seen = [set(folded(tiny.prepared, 8, generator, 0.25)[0].ravel().tolist()) - {-1} for _ in range(2)]
    for one in seen:
        assert clicks <= one <= set(train.tolist())
        share = (len(one) - len(clicks)) / (len(train) - len(clicks))
        assert share == pytest.approx(0.25, abs=0.03)
    assert seen[0] != seen[1]


def test_fewer_negatives_do_not_shift_probabilities(tiny) -> None:
    """Trained on a tenth of the rows without a click, the model still predicts validation's click rate; its reported
    losses, which are before calibration, are corrected, too.
    """
    model = fresh(tiny)
    history = finetune(
        changed(tiny.config, negative_rate=0.1, epochs=3, learning_rate=0.01), tiny.prepared, model
    )
    rows = tiny.prepared.rows.of("valid")
    rate = float(tiny.prepared.rows.label[rows].mean())
    assert predict(model, tiny.prepared, rows).mean() == pytest.approx(rate, abs=0.01)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    # Uncorrected, logits are too high by log 10, which costs more than ten times this.
    assert min(epoch["valid"] for epoch in history[1:]) < entropy + 0.03


def test_a_student_comes_close_to_its_teacher(tiny) -> None:
    """With the teacher's probability for a label a fresh model agrees with the teacher better than one with labels."""
    teacher = load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared)
    rows = tiny.prepared.rows.of("test")
    wanted = predict(teacher, tiny.prepared, rows)
    gaps = {}
    for weight in (0.0, 1.0):
        student = fresh(tiny)
        config = changed(tiny.config, teacher_weight=weight, epochs=3, learning_rate=0.005)
        finetune(config, tiny.prepared, student, teacher)
        gaps[weight] = float(np.abs(predict(student, tiny.prepared, rows) - wanted).mean())
    assert gaps[1.0] < 0.8 * gaps[0.0]


def test_a_teacher_and_fewer_negatives_agree(tiny) -> None:
    """A student of a tenth of the negatives learns the teacher's odds among those, and ends at the click rate."""
    teacher = load_model(tiny.run / "finetune", "finetune", tiny.config, tiny.prepared)
    config = changed(tiny.config, teacher_weight=1.0, negative_rate=0.1, epochs=3, learning_rate=0.01)
    history = finetune(config, tiny.prepared, fresh(tiny), teacher)
    rows = tiny.prepared.rows.of("valid")
    rate = float(tiny.prepared.rows.label[rows].mean())
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    # Of the teacher's odds among all rows the corrected logits would be too low by log 10.
    assert min(epoch["valid"] for epoch in history[1:]) < entropy + 0.03


@pytest.mark.parametrize("candidate_weight", [0.0, 1.0])
def test_candidates_begin_with_the_trained_encoders_keys(tiny, candidate_weight) -> None:
    """What pre-training has not taught to read reads with the trained encoder's keys and values, untied; what it has
    keeps its own. Blocks beyond the encoder's layers take the last one's.
    """
    masking = tiny.config.pretrain.masking.model_copy(update={"candidate_weight": candidate_weight})
    options = tiny.config.pretrain.model_copy(update={"epochs": 1, "masking": masking})
    sizes = tiny.config.model.model_copy(update={"layers": 1, "cross_layers": 2})
    config = tiny.config.model_copy(update={"pretrain": options, "model": sizes})
    model = pretrain(config, tiny.prepared).model
    encoders = model.encoder.blocks[0].attention
    for block in model.cross:
        for name in ("key", "value"):
            ours, theirs = getattr(block.attention, name).weight, getattr(encoders, name).weight
            assert torch.equal(ours, theirs) == (candidate_weight == 0)
            assert ours is not theirs


def test_fresh_weights_learn_at_the_whole_rate(tiny) -> None:
    """Without pre-training the encoder learns, too, whatever a pre-trained one's part of the rate is."""
    config = changed(tiny.config, epochs=1, encoder_rate=0.0)
    for pretrained, learns in ((True, False), (False, True)):
        model = fresh(tiny)
        before = model.encoder.start.detach().clone()
        finetune(config, tiny.prepared, model, pretrained=pretrained)
        assert torch.equal(model.encoder.start, before) != learns


def test_bfloat16_trains_both_jobs(tiny) -> None:
    """With bfloat16 products pre-training lowers its loss, and both jobs end with finite float32 weights."""
    masking = tiny.config.pretrain.masking.model_copy(update={"attribute_matches": 1})
    options = tiny.config.pretrain.model_copy(update={"epochs": 2, "masking": masking})
    config = tiny.config.model_copy(update={"precision": "bfloat16", "pretrain": options})
    model, _, losses = pretrain(config, tiny.prepared)
    assert losses[1]["total"] < losses[0]["total"]
    history = finetune(changed(config, epochs=1), tiny.prepared, model)
    assert np.isfinite(history[-1]["train"])
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32, name
        assert weight.isfinite().all(), name


def test_a_teacher_must_be_a_run(tiny, tmp_path, capsys) -> None:
    """--teacher with a folder that holds no fine-tuned model says so."""
    folder = str(tiny.run)
    assert cli(["finetune", str(tiny.config_path), "--run", folder, "--teacher", str(tmp_path)]) == 1
    assert "holds no fine-tuned model" in capsys.readouterr().err


def test_a_teacher_must_have_had_the_same_rows(tiny, tmp_path, capsys) -> None:
    """A teacher by another split, whose training rows may be this run's test rows, is refused."""
    other = shutil.copytree(tiny.run, tmp_path / "other")
    report = json.loads((other / "prepared" / "report.json").read_bytes())
    report["splits"]["test"]["rows"] += 1
    (other / "prepared" / "report.json").write_text(json.dumps(report))
    mine = shutil.copytree(tiny.run, tmp_path / "mine")
    arguments = ["finetune", str(tiny.config_path), "--run", str(mine), "--teacher", str(other)]
    assert cli(arguments) == 1
    assert "may have seen this run's test rows" in capsys.readouterr().err


def test_training_ends_when_it_no_longer_helps(tiny) -> None:
    """After `patience` epochs without improvement it ends, with the weights of the best epoch."""
    model = pretrained(tiny)
    config = changed(tiny.config, epochs=30, patience=1, learning_rate=0.05)
    history = finetune(config, tiny.prepared, model)
    losses = [epoch["valid"] for epoch in history]
    best = int(np.argmin(losses))
    assert len(losses) - 1 < 30
    assert len(losses) - 1 == best + 2


def logloss(model: Srp4Ctr, prepared: Prepared) -> float:
    """Of the uncalibrated model on all validation rows."""
    rows = prepared.rows.of("valid")
    logit = torch.from_numpy(predict_logits(model, prepared, rows))
    return F.binary_cross_entropy_with_logits(
        logit, torch.from_numpy(prepared.rows.label[rows]).float()
    ).item()


class Watched(Prepared):
    """Prepared data that notes its shuffles, and whether histories were asked of it."""

    def watch(self) -> None:
        """Forget what was noted."""
        vars(self).update(shuffles=[], asked=False)

    def shuffled(self, generator: np.random.Generator) -> "Watched":
        """Another order, noted."""
        made = super().shuffled(generator)
        made.watch()
        vars(self)["shuffles"].append(made)
        return made

    def histories(self, users, ends) -> Histories:
        """Those of this order, noted."""
        vars(self)["asked"] = True
        return super().histories(users, ends)


@pytest.fixture(scope="module")
def of_one_file(tiny, tmp_path_factory) -> tuple[RunConfig, Watched]:
    """The tiny run with rows that are events, no item twice in a user's; two epochs of either job, shuffled."""
    raw = tiny.config.model_dump(by_alias=True)
    folder = tmp_path_factory.mktemp("one-file")
    shutil.copytree(tiny.config.tables.folder, folder, dirs_exist_ok=True)
    rows = pl.read_parquet(folder / raw["tables"]["rows"])
    rows = rows.unique(["user_id", "item_id"], keep="first", maintain_order=True)
    rows.write_parquet(folder / raw["tables"]["rows"])
    raw["tables"] |= {"folder": folder, "events": raw["tables"]["rows"]}
    raw["schema"] |= {"behaviour_features": [], "event_label": "label"}
    for job in ("pretrain", "finetune"):
        raw[job] |= {"epochs": 2, "learning_rate": 0.01, "shuffle_events": True}
    raw["finetune"]["unknown_rate"] = 0.0
    config = RunConfig.model_validate(raw)
    prepared = prepare(config)
    return config, Watched(**{part.name: getattr(prepared, part.name) for part in fields(prepared)})


def test_pretraining_shuffles_each_epoch_anew(of_one_file) -> None:
    """It reads histories of fresh orders alone, the same ones each time."""
    config, prepared = of_one_file
    losses = []
    for _ in range(2):
        prepared.watch()
        losses.append(pretrain(config, prepared).history)
        first, second = prepared.shuffles
        assert first.asked
        assert second.asked
        assert not prepared.asked
        assert not np.array_equal(first.events.item, second.events.item)
    assert losses[0] == losses[1]


def test_finetuning_shuffles_each_epoch_anew(of_one_file) -> None:
    """No row is in the history that it is trained on; validation and calibration are of the histories that rows have."""
    config, prepared = of_one_file
    prepared.watch()
    torch.manual_seed(7)
    model = new_model(config, prepared)
    trained = []
    model.register_forward_pre_hook(lambda model, inputs: trained.append(inputs) if model.training else None)
    history = finetune(config, prepared, model)
    first, second = prepared.shuffles
    assert first.asked
    assert second.asked
    assert not np.array_equal(first.events.item, second.events.item)
    # Places without a row, which do not count, have the first row's item.
    filler = prepared.items.codes[prepared.rows.item[0], 0]
    for events, _, _, candidates, _ in trained:
        item = candidates[:, :, None, 0]
        counts = (item >= FIRST_VALUE) & (item != filler)
        assert not (counts & (item == events[:, None, :, 0])).any()
    assert logloss(model, prepared) == pytest.approx(min(epoch["valid"] for epoch in history), rel=1e-9)
    fitted = model.calibration_scale.item(), model.calibration_bias.item()
    calibrate(model, prepared)
    assert fitted == (model.calibration_scale.item(), model.calibration_bias.item())
