"""`srp4ctr finetune`: the pre-trained path on click labels, then calibration on validation rows."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from srp4ctr.contract.errors import DataError
from srp4ctr.nn.ctr import CtrModel
from srp4ctr.nn.objectives import drop_to_unknown
from srp4ctr.runtime.metrics import auc, calibration_curve
from srp4ctr_offline.batches import by_length, data_of_epoch, folded
from srp4ctr_offline.checkpoint import load_model, new_model, save_model
from srp4ctr_offline.config import FinetuneConfig, RunConfig
from srp4ctr_offline.plots import plot_calibration, plot_epochs
from srp4ctr_offline.predict import predict, predict_logits
from srp4ctr_offline.prepared import TRAIN, VALID, Ints, Prepared
from srp4ctr_offline.run import job_parser, resolve, seed_everything, start_stage, training_device
from srp4ctr_offline.training import History, Trainer, autocast, tensors, write_metrics


def finetune(
    config: RunConfig,
    prepared: Prepared,
    model: CtrModel,
    teacher: CtrModel | None = None,
    *,
    pretrained: bool = True,
) -> History:
    """Train `model` in place on the training rows; it ends with its best epoch's weights, calibrated.

    With a teacher, a fine-tuned model of the same prepared data, part of the loss is its probability in place of the
    label (Hinton et al., 2015). What has not been pre-trained learns at the whole rate, its encoder included.
    """
    for name in (TRAIN, VALID):
        if len(np.unique(prepared.rows.label[prepared.rows.of(name)])) < 2:
            raise DataError(f"all {name} rows have one label; a model needs both to learn from")
    options = config.finetune
    generator, device = seed_everything(config), training_device(config)
    model.to(device)
    if teacher is not None:
        teacher.to(device).eval()
    gentle = list(model.pretrained_parameters())
    rest = [p for p in model.parameters() if not any(p is one for one in gentle)]
    encoder_rate = options.encoder_rate if pretrained else 1.0
    frozen = encoder_rate == 0
    groups = [(rest, 1.0)] if frozen else [(gentle, encoder_rate), (rest, 1.0)]

    def draw() -> tuple[Prepared, Ints, Ints]:
        epoch_data = data_of_epoch(prepared, options, generator)
        return epoch_data, *folded(epoch_data, options.rows_per_history, generator, options.negative_rate)

    epoch_data, rows, cuts = draw()
    # What a logit learned from fewer negatives is too high by (He et al., 2014, section 6.3).
    correction = math.log(options.negative_rate)
    valid = _some(prepared.rows.of(VALID), options.validation_rows)
    history: History = [{"epoch": 0} | _validate(model, prepared, valid)]
    best = _Best(model, history[0]["valid"])
    with _frozen(gentle if frozen else []), Trainer("fine-tuning", groups, options, len(rows)) as trainer:
        for epoch in range(options.epochs):
            model.train()
            if epoch:
                epoch_data, rows, cuts = draw()
            losses = []
            for batch in by_length(epoch_data.lengths(cuts), options.batch_size, generator):
                with autocast(config, device):
                    loss = _loss(model, epoch_data, rows[batch], cuts[batch], options, teacher)
                trainer.step(loss)
                losses.append(loss.item())
            validated = _validate(model, prepared, valid, correction)
            history.append({"epoch": epoch + 1, "train": float(np.mean(losses))} | validated)
            trainer.show(validated)
            if best.offer(model, validated["valid"]) > options.patience:
                break
    model.load_state_dict(best.weights)
    calibrate(model.eval().cpu(), prepared)
    return history


def _some(rows: Ints, most: int) -> Ints:
    """The rows, or `most` of them, the same ones each time."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    yield
    for parameter in parameters:
        parameter.requires_grad_(True)


class _Best:
    """The weights with the least validation loss so far; those before the first epoch count, too."""

    def __init__(self, model: CtrModel, loss: float) -> None:
        self.loss = loss
        self.weights = copy.deepcopy(model.state_dict())
        self.since = 0

    def offer(self, model: CtrModel, loss: float) -> int:
        """How many epochs have passed since the best."""
        self.since += 1
        if loss < self.loss:
            self.loss, self.weights, self.since = loss, copy.deepcopy(model.state_dict()), 0
        return self.since


def _validate(model: CtrModel, prepared: Prepared, rows: Ints, correction: float = 0.0) -> dict[str, float]:
    """Uncalibrated logloss and AUC of validation rows."""
    label = prepared.rows.label[rows]
    logit = torch.from_numpy(predict_logits(model, prepared, rows)) + correction
    loss = F.binary_cross_entropy_with_logits(logit, torch.from_numpy(label).float())
    return {"valid": float(loss), "valid_auc": auc(label, logit.numpy().astype(np.float64))}


def _loss(
    model: CtrModel,
    prepared: Prepared,
    rows_GR: Ints,
    cuts: Ints,
    options: FinetuneConfig,
    teacher: CtrModel | None,
) -> torch.Tensor:
    table = prepared.rows
    here_GR = rows_GR >= 0
    rows_GR = np.where(here_GR, rows_GR, 0)
    users = table.user[rows_GR[:, 0]]
    history = prepared.histories(users, cuts)
    events, behaviours, users_GW, candidates_GRW, contexts_GRW, label_GR, here = tensors(
        next(model.parameters()).device,
        history.items,
        history.behaviours,
        prepared.users.codes[users],
        prepared.items.codes[table.item[rows_GR]],
        table.contexts[rows_GR],
        table.label[rows_GR],
        here_GR,
    )
    target = label_GR[here].float()
    if teacher is not None:
        with torch.no_grad():
            logit_GR = teacher(events, behaviours, users_GW, candidates_GRW, contexts_GRW)
            taught = teacher.calibrate(logit_GR)[here].float()
            if options.negative_rate < 1:
                # Its odds are those of all rows; among fewer negatives they are higher, as the labels' are.
                taught = taught / (taught + options.negative_rate * (1 - taught))
            target = torch.lerp(target, taught, options.teacher_weight)
    rate, item_id = options.unknown_rate, slice(0, 1)
    logit_GR = model(
        drop_to_unknown(events, rate, item_id),
        behaviours,
        drop_to_unknown(users_GW, rate),
        drop_to_unknown(candidates_GRW, rate, item_id),
        drop_to_unknown(contexts_GRW, rate),
    )
    return F.binary_cross_entropy_with_logits(logit_GR[here], target)


def calibrate(model: CtrModel, prepared: Prepared) -> None:
    """Fit the model's Platt scaling (Platt, 1999) on the validation rows."""
    valid = prepared.rows.of(VALID)
    logit = predict_logits(model, prepared, valid).astype(np.float64)[:, None]
    fitted = LogisticRegression(C=np.inf).fit(logit, prepared.rows.label[valid])
    scale = float(fitted.coef_[0, 0])
    if scale <= 0:
        raise DataError(
            "the model ranks validation rows no better than chance, so that calibrating it would turn its ranking "
            "round; train longer, or look at the labels"
        )
    model.calibration_scale.fill_(scale)
    model.calibration_bias.fill_(float(fitted.intercept_[0]))


def load_teacher(run: Path, prepared: Prepared) -> CtrModel:
    """The fine-tuned model of another run; raises DataError where it is none, or saw other rows than this run's training ones."""
    path = run / "finetune" / "config.json"
    if not path.exists():
        raise DataError(
            f"--teacher {run} holds no fine-tuned model; name a run's folder, such as var/runs/NAME"
        )
    theirs = RunConfig.model_validate_json(path.read_bytes())
    taught = Prepared.load(run / "prepared").report
    if any(taught[name] != prepared.report[name] for name in ("data_fingerprint", "splits")):
        raise DataError(
            f"--teacher {run} was trained on other tables or by another [split], and may have seen this run's test rows; "
            "prepare and train both with the same [tables] and [split]"
        )
    return load_model(run / "finetune", "finetune", theirs, prepared)


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    parser = job_parser(
        "finetune",
        reads="the run's prepared/ and pretrain/",
        writes="finetune/ with model.pt, metrics.json, loss.png, calibration.png",
    )
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="begin with fresh weights, without pre-training; all learn at the whole rate",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="RUN",
        help="another run's folder, of the same prepared data: learn from its fine-tuned model, too",
    )
    arguments = parser.parse_args(argv)
    config, folder = resolve(arguments)
    prepared = Prepared.load(folder / "prepared")
    stage = start_stage(folder / "finetune", config)
    began = time.monotonic()
    if arguments.from_scratch:
        seed_everything(config)
        model = new_model(config, prepared)
    else:
        model = load_model(folder / "pretrain", "pretrain", config, prepared)
    teacher = None if arguments.teacher is None else load_teacher(arguments.teacher, prepared)
    history = finetune(config, prepared, model, teacher, pretrained=not arguments.from_scratch)
    save_model(model, prepared.transforms, stage)
    write_metrics(stage, history, time.monotonic() - began)
    panels = [["train", "valid"], ["valid_auc"]]
    plot_epochs(history, panels, stage / "loss.png", "Fine-tuning: logloss and AUC")
    valid = prepared.rows.of(VALID)
    curve = calibration_curve(prepared.rows.label[valid], predict(model, prepared, valid))
    plot_calibration({"validation rows": curve}, stage / "calibration.png", "Calibration on validation rows")
    for row in history:
        print(
            "  ".join(
                f"{name} {value:.4f}" if name != "epoch" else f"epoch {value}" for name, value in row.items()
            )
        )
    print(
        f"calibration: sigmoid({float(model.calibration_scale):.4f} * logit + {float(model.calibration_bias):.4f})"
    )
    print(f"written to {stage}")
    return 0
