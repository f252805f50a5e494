"""`srp4ctr pipeline`: the commands of a release one after another, from a data set to the active version.

A stage whose inputs have not changed since it last ran is not run again.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from srp4ctr.contract.errors import BundleError
from srp4ctr.contract.keys import Keys
from srp4ctr.contract.manifest import MANIFEST
from srp4ctr.runtime import local_redis
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.redis_client import connect
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr.runtime.state_store import StateStore
from srp4ctr_offline.config import load_config
from srp4ctr_offline.stages import Stages, hash_of_code_and

TRAINING = {
    "prepare": "prepared/report.json",
    "pretrain": "pretrain/model.pt",
    "finetune": "finetune/model.pt",
    "evaluate": "evaluate/metrics.json",
    "export": "export/metrics.json",
}
"""The commands that train, in order, and what each leaves in the run's folder last."""


def main(argv: Sequence[str]) -> int:
    """Run the job; ends with the exit code of the first command that fails."""
    settings = read_settings(StoreSettings)
    parser = argparse.ArgumentParser(
        prog="srp4ctr pipeline",
        description="Runs data, prepare, pretrain, finetune, evaluate, export, publish and activate one after another. Reads "
        "what they read: a configuration and the tables that it names. Writes what they write, and pipeline.json in the run's "
        "folder: a command that the same inputs left its output for is not run again.",
    )
    parser.add_argument(
        "config", type=Path, help="TOML configuration of the run, such as configs/synthetic.toml"
    )
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="get this data set into the configuration's folder first, as `srp4ctr data DATASET` does; "
        "without it the tables must be there",
    )
    parser.add_argument(
        "--unless-active",
        action="store_true",
        help="do nothing where a version is active already and its bundle is here; where the bundle is lost, train and "
        "activate another, which then cannot be compared with it",
    )
    parser.add_argument(
        "--no-gate", action="store_true", help="activate also a version that is worse than the active one"
    )
    arguments = parser.parse_args(argv)
    gate = not arguments.no_gate
    if arguments.unless_active and (active := _active(settings)) is not None:
        try:
            find_bundle(active, settings.bundles_dir)
        except BundleError as error:
            print(f"{active} is active, and trained again without a comparison: {error}")
            gate = False
        else:
            print(f"{active} is active and its bundle is in {settings.bundles_dir}: nothing to do")
            return 0
    config = load_config(arguments.config)
    run = settings.runs_dir / config.name
    run.mkdir(parents=True, exist_ok=True)
    stages = Stages(run / "pipeline.json")
    release(arguments.config, stages, settings, data=arguments.data or None, gate=gate)
    return 0


def release(path: Path, stages: Stages, settings: StoreSettings, *, data: str | None, gate: bool) -> str:
    """Train, publish and activate what the configuration at `path` says; gives the version.

    Ends this process with the exit code of the first command that fails.
    """
    config = load_config(path)
    run, folder = settings.runs_dir / config.name, config.tables.folder
    if data is not None:
        stages.run(["data", data, "--out", str(folder)], output=folder / "report.json")
    tables = [folder / "report.json"] if data is not None else sorted(folder.glob("*.parquet"))
    inputs = hash_of_code_and(config, *tables)
    for stage, output in TRAINING.items():
        stages.run([stage, str(path)], inputs, run / output)
    version: str = json.loads((run / TRAINING["export"]).read_bytes())["version"]
    if not (settings.bundles_dir / version / MANIFEST).exists():
        stages.run(["export", str(path)], inputs)
    stages.run(["publish", version])
    stages.run(["activate", version, *([] if gate else ["--no-gate"])])
    return version


def _active(settings: StoreSettings) -> str | None:
    """The active version, whether or not its bundle is here."""
    with connect(settings, local_redis.ensure(settings)) as client:
        active = StateStore(client, Keys(settings.namespace)).active()
    return None if active is None else active.version
