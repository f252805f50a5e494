"""What a study trains: `configs/study.toml` names protocols, models and seeds; a cell is one of each."""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Option
from pydantic import ValidationError

from srp4ctr.contract.errors import ConfigError
from srp4ctr.contract.schema import Strict
from srp4ctr.nn.baselines import BASELINES, BaselineConfig
from srp4ctr_offline.config import AFTER_TRAINING, RunConfig, load_config
from srp4ctr_offline.floors import FLOORS

Seeds = Annotated[int, Option(ge=1, description="the first so many of 1, 2, 3, ...")]
PlanName = Annotated[str, Option(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]


class ModelPlan(Strict):
    """One model of a protocol, as it differs from the protocol's run configuration."""

    kind: Literal["srp4ctr", "deepfm", "din", "dien", "bst"] = "srp4ctr"
    pretrained: bool = Option(default=True, description="false: fine-tuned from fresh weights")
    set: dict[str, Any] = Option(
        default={}, description="values by their dotted place in the run configuration"
    )
    baseline: BaselineConfig = BaselineConfig()
    teacher: PlanName | None = Option(
        default=None, description="a model of the protocol whose cell of the same seed it learns from"
    )
    seeds: Seeds | None = Option(default=None, description="where it differs from the protocol's")
    conditions: bool = Option(
        default=False, description="of the first seed, also: stored states, missing events, hidden ids"
    )


class ProtocolPlan(Strict):
    """A data set, how it is measured, and the models that are."""

    config: Path = Option(description="the run configuration that all models begin with")
    measure: Literal["rows", "next_item"] = "rows"
    about: str = Option(default="", description="what its rows are, for the report's readers")
    seeds: Seeds = 2
    models: dict[PlanName, ModelPlan]


class StudyPlan(Strict):
    """A whole study; protocols and models are trained in the order of the file."""

    reference: PlanName = Option(default="tokens", description="the model that the others are compared with")
    protocols: dict[PlanName, ProtocolPlan]

    def cells(self) -> Iterator["Cell"]:
        """All cells of networks, first seeds first, so that a study that is cut off has seen every model."""
        everything = [
            (seed, protocol, name)
            for protocol, plan in self.protocols.items()
            for name, model in plan.models.items()
            for seed in range(1, (model.seeds or plan.seeds) + 1)
        ]
        for seed, protocol, name in sorted(everything, key=lambda one: one[0]):
            plan = self.protocols[protocol]
            yield _cell(protocol, plan, name, seed)


@dataclass(frozen=True)
class Cell:
    """One model of one protocol with one seed, and all that decides its outcome."""

    protocol: str
    measure: Literal["rows", "next_item"]
    model: str
    seed: int
    plan: ModelPlan
    config: RunConfig
    teacher: "Cell | None" = None

    @property
    def key(self) -> str:
        """The cell's name with 8 digits of a hash of its configuration: a changed one is another cell.

        What is at its default is left out, so that a new option does not make every finished cell another one, but for sizes of
        the network, whose defaults have changed before; and the device, which is the same for all.
        """
        what = self.config.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=AFTER_TRAINING | {"device"}
        ) | {
            "model": self.config.model.model_dump(mode="json"),
            "kind": self.plan.kind,
            "pretrained": self.plan.pretrained,
        }
        if self.teacher is not None:
            what["teacher"] = self.teacher.key
        if self.plan.kind in BASELINES:
            what["baseline"] = self.plan.baseline.model_dump(mode="json", exclude_defaults=True)
            what = {name: value for name, value in what.items() if name not in ("model", "pretrain")}
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.protocol}.{self.model}.{self.seed}.{digest}"

    @property
    def has_conditions(self) -> bool:
        """Whether the trained model is also measured under production's conditions: the first seed alone is."""
        return self.plan.conditions and self.seed == 1 and self.measure == "rows"

    @property
    def data_key(self) -> str:
        """8 digits of a hash of what decides the prepared data."""
        parts = {"tables", "features", "split"}
        what = self.config.model_dump(mode="json", by_alias=True, include=parts, exclude_defaults=True)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def load_plan(path: Path) -> StudyPlan:
    """Read and check a study's TOML file; ConfigError names what is wrong."""
    try:
        plan = StudyPlan.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"cannot read the study {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n".join([f"{path} is not a study:", *lines])) from error
    for protocol, part in plan.protocols.items():
        for name, model in part.models.items():
            teacher = part.models.get(model.teacher) if model.teacher else None
            if model.teacher and (teacher is None or teacher.teacher or teacher.kind != "srp4ctr"):
                raise ConfigError(
                    f"{path}: protocols.{protocol}.models.{name}.teacher: {model.teacher!r} is no srp4ctr model of "
                    "the protocol without a teacher of its own"
                )
        taken = set(FLOORS) & set(part.models)
        if taken:
            raise ConfigError(f"{path}: protocols.{protocol}.models: {sorted(taken)} are names of floors")
    return plan


def _cell(protocol: str, plan: ProtocolPlan, name: str, seed: int) -> Cell:
    model = plan.models[name]
    teacher = None if model.teacher is None else _cell(protocol, plan, model.teacher, seed)
    return Cell(protocol, plan.measure, name, seed, model, _config(plan, name, seed), teacher)


def _config(plan: ProtocolPlan, model: str, seed: int) -> RunConfig:
    raw = load_config(plan.config).model_dump(mode="json", by_alias=True)
    # Cells run beside each other, a thread each: that is how cores are used best. Their CPU minutes are compared, which
    # on a GPU would say nothing.
    raw |= {"seed": seed, "threads": 1, "device": "cpu"}
    for place, value in plan.models[model].set.items():
        *parents, last = place.split(".")
        section: dict[str, Any] = raw
        for parent in parents:
            inner = section.get(parent)
            if not isinstance(inner, dict):
                raise ConfigError(f"models.{model}.set: {plan.config} has no {place}")
            section = inner
        section[last] = value
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("\n".join([f"models.{model}.set does not fit {plan.config}:", *lines])) from error
