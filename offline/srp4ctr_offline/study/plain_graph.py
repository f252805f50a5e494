"""`python -m srp4ctr_offline.study.plain_graph`: the scorer of a run as one graph that folds nothing.

Servers that are compared with ours run it where they stand for what one has without our bundle's folded graphs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from srp4ctr.nn.export import PlainScorerGraph, export_graph
from srp4ctr.runtime.bundle import find_bundle
from srp4ctr.runtime.command import exit_code
from srp4ctr.runtime.plain_scorer import plain_path
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.checkpoint import load_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import job_arguments
from srp4ctr_offline.study.delays import exported


def write_plain(config: RunConfig, folder: Path, path: Path) -> None:
    """Write the graph of a run's fine-tuned model; raises DataError where it has none."""
    model = load_model(folder / "finetune", "finetune", config, Prepared.load(folder / "prepared"))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    export_graph(PlainScorerGraph(model), draft)
    draft.rename(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Write it where it is looked for."""
    config, folder = job_arguments(
        "plain_graph",
        sys.argv[1:] if argv is None else argv,
        reads="the run's prepared/, finetune/ and export/",
        writes="plain/FINGERPRINT.onnx below SRP4CTR_VAR_DIR",
    )
    settings = read_settings(StoreSettings)
    manifest = find_bundle(exported(folder), settings.bundles_dir).manifest
    path = plain_path(settings.var_dir, manifest)
    write_plain(config, folder, path)
    print(f"the plain graph of {manifest.version} written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("plain_graph", main))
