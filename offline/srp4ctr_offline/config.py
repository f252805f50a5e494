"""A run's TOML file, typed: `configs/movielens-100k.toml` shows every section."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field as Option
from pydantic import ValidationError, model_validator

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.schema import FeatureSchema, Name, Strict
from srp4ctr.nn.model import ModelConfig
from srp4ctr.nn.objectives import MaskingConfig

Rate = Annotated[float, Option(gt=0, lt=1)]
BatchSize = Annotated[int, Option(ge=1, description="histories a step")]

AFTER_TRAINING = {"gate"}
"""Sections of a run that decide what becomes of a model, and not which it is: nothing is trained again for their sake."""


class Tables(Strict):
    """Where the four canonical tables are. Events and rows may be one file: then each row is an event, too."""

    folder: Path = Option(description="of the tables, relative to the working folder")
    events: str = Option(default="events.parquet", description="what users did")
    rows: str = Option(
        default="rows.parquet",
        description="what was shown; the same file as events where each row is an event, too",
    )
    items: str = Option(default="items.parquet", description="the catalogue")
    users: str = Option(default="users.parquet", description="the users")

    @property
    def one_file(self) -> bool:
        """Whether each row is an event, too."""
        return (self.folder / self.events).resolve() == (self.folder / self.rows).resolve()


class _FractionSplit(Strict):
    train: Rate = Option(default=0.8, description="the part that trains")
    valid: Rate = Option(
        default=0.1, description="the part that chooses epochs and calibrates; the rest tests"
    )

    @model_validator(mode="after")
    def _leaves_test_rows(self) -> Self:
        if self.train + self.valid >= 1:
            raise ValueError(f"train + valid = {self.train + self.valid} leaves no test rows")
        return self


class PerUserSplit(_FractionSplit):
    """Each user's rows by order: the first part trains, the next validates, the rest tests."""

    rule: Literal["per_user"]


class GlobalSplit(_FractionSplit):
    """All rows by order, which must then be one clock for all users."""

    rule: Literal["global"]


class ColumnSplit(Strict):
    """A column of the rows table says `train`, `valid` or `test`."""

    rule: Literal["column"]
    column: Name = Option(default="split", description="of the rows table")


class OptimizerConfig(Strict):
    """AdamW with warm-up and cosine decay."""

    epochs: Annotated[int, Option(ge=1)]
    batch_size: BatchSize
    learning_rate: Annotated[float, Option(gt=0, lt=1, description="at its peak")] = 1e-3
    weight_decay: Annotated[float, Option(ge=0, description="of AdamW")] = 0.01
    warmup: Annotated[
        float, Option(ge=0, lt=1, description="part of the steps in which the learning rate rises")
    ] = 0.05
    shuffle_events: bool = Option(
        default=False,
        description="each epoch reorders a user's training events; for data of one file whose order carries no information",
    )


class PretrainConfig(OptimizerConfig):
    """`[pretrain]`."""

    epochs: Annotated[int, Option(ge=1, description="all of them; weights of the last are kept")] = 25
    batch_size: BatchSize = 64
    prefix_rate: Annotated[
        float, Option(ge=0, le=1, description="users whose newest history ends at any of their events")
    ] = 0.0
    masking: MaskingConfig = MaskingConfig()


class FinetuneConfig(OptimizerConfig):
    """`[finetune]`."""

    epochs: Annotated[int, Option(ge=1, description="at most; the best by validation logloss is kept")] = 4
    patience: Annotated[int, Option(ge=0, description="epochs in a row that may bring no improvement")] = 2
    validation_rows: Annotated[
        int, Option(ge=100, description="validation rows, at most, that epochs are compared on")
    ] = 25_000
    batch_size: BatchSize = 64
    rows_per_history: Annotated[
        int, Option(ge=1, description="rows that are trained on one encoded history")
    ] = 16
    encoder_rate: Annotated[
        float,
        Option(ge=0, le=1, description="of the learning rate, for encoder and items; 0: they stay frozen"),
    ] = 0.3
    teacher_weight: Annotated[
        float, Option(ge=0, le=1, description="of the teacher's probability in the target, with --teacher")
    ] = 0.5
    negative_rate: Annotated[
        float,
        Option(
            gt=0, le=1, description="training rows without a click that an epoch sees; logits are corrected"
        ),
    ] = 1.0
    unknown_rate: Annotated[
        float, Option(ge=0, lt=1, description="ids, users, contexts shown as unknown")
    ] = 0.05


class GateConfig(Strict):
    """`[gate]`: how much worse than the active version a new one may be, on the same test rows, to be activated.

    Two seeds of one configuration differ by about 0.001 in AUC and logloss, and 0.002 in ECE (MovieLens 1M).
    """

    max_auc_drop: Annotated[float, Option(ge=0, description="its AUC may be lower by this")] = 0.002
    max_logloss_rise: Annotated[float, Option(ge=0, description="its logloss may be higher by this")] = 0.003
    max_ece_rise: Annotated[float, Option(ge=0, description="its ECE may be higher by this")] = 0.005
    max_ece: Annotated[
        float | None,
        Option(gt=0, description="of the new version, whatever the active one's; by default none"),
    ] = None
    max_rows: Annotated[int, Option(ge=1, description="test rows, at most, of users drawn at random")] = (
        50_000
    )


class RunConfig(Strict):
    """Everything that decides a run; its name is the run's folder."""

    name: Annotated[
        str, Option(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$", description="of the run's folder, below var/runs")
    ]
    seed: Annotated[int, Option(description="of everything that is drawn")] = 1
    threads: Annotated[int, Option(ge=1, description="of torch; results repeat for the same number")] = 2
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(description="where training runs; auto: on a GPU if there is one"),
    ] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"], Option(description="of the products in training, by autocast")
    ] = "float32"
    tables: Tables
    features: FeatureSchema = Option(alias="schema")
    split: Annotated[PerUserSplit | GlobalSplit | ColumnSplit, Option(discriminator="rule")]
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _shuffled_events_are_rows(self) -> Self:
        for name, job in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            if job.shuffle_events and not self.tables.one_file:
                raise ValueError(
                    f"{name}.shuffle_events: needs rows that are events, so that none is in its own history; make tables.events and "
                    "tables.rows one file, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _outcomes_are_no_context(self) -> Self:
        outcomes = {feature.name for feature in self.features.behaviour_features}
        told = outcomes & {feature.name for feature in self.features.context_features}
        if self.tables.one_file and told:
            raise ValueError(
                f"schema.context_features: {sorted(told)} are behaviours, and where each row is an event, a row's own "
                "behaviour would tell its label"
            )
        return self


def load_config(path: Path) -> RunConfig:
    """Read and check a run's TOML file; ConfigError names every key that is wrong."""
    try:
        raw = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {_key(one['loc'])}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n".join([f"{path} is not a configuration:", *lines])) from error


def _key(location: tuple[int | str, ...]) -> str:
    return (
        "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        or "the file"
    )
