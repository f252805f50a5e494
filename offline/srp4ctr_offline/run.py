"""What every job shares: its arguments, its run folder, its seed."""

import argparse
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from srp4ctr.contract.errors import ConfigError
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.config import RunConfig, load_config


def job_parser(name: str, reads: str, writes: str) -> argparse.ArgumentParser:
    """A parser with the arguments that every job has."""
    parser = argparse.ArgumentParser(prog=f"srp4ctr {name}", description=f"Reads {reads}. Writes {writes}.")
    parser.add_argument("config", type=Path, help="the run's TOML file, such as configs/movielens-100k.toml")
    parser.add_argument(
        "--run",
        type=Path,
        help="the run's folder (default: runs/<name in the configuration> below SRP4CTR_VAR_DIR, or var)",
    )
    return parser


def resolve(arguments: argparse.Namespace) -> tuple[RunConfig, Path]:
    """The configuration and the run's folder."""
    config = load_config(arguments.config)
    return config, arguments.run or read_settings(StoreSettings).runs_dir / config.name


def job_arguments(name: str, argv: Sequence[str], reads: str, writes: str) -> tuple[RunConfig, Path]:
    """Parse the arguments of a job that has no others."""
    return resolve(job_parser(name, reads, writes).parse_args(argv))


def seed_everything(config: RunConfig) -> np.random.Generator:
    """Make torch repeatable, and give the generator for everything that numpy draws."""
    # What cuBLAS needs to be repeatable; nothing else reads it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(mode=True)
    # It would fill all memory that is about to be written anyway: up to a twelfth of a training step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return np.random.default_rng(config.seed)


def training_device(config: RunConfig) -> torch.device:
    """Where training runs; raises ConfigError where the device asked for is not there."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError('device = "cuda", and torch sees no GPU; set device = "cpu" or "auto"')
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that people may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def start_stage(folder: Path, config: RunConfig) -> Path:
    """The folder of one stage, with the resolved configuration in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=1, by_alias=True) + "\n")
    return folder


def config_of_run(folder: Path, stage: str = "finetune") -> RunConfig:
    """The configuration that a stage of a run was last done with; raises ConfigError where there is none."""
    path = folder / stage / "config.json"
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path} is not the configuration of a run: {error}; name its folder with --run"
        ) from error


def git_commit() -> str | None:
    """The commit of the working folder's repository, where it is one."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    except OSError:
        return None
    return done.stdout.strip() or None
