"""`srp4ctr export`: a fine-tuned model to a bundle, accepted only if ONNX Runtime computes what torch computes."""

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

import torch
from tqdm import tqdm

from srp4ctr.contract.manifest import COLD_STATE, ENCODER, ITEM, ITEMS, SCORER, Calibration, Manifest
from srp4ctr.contract.state import UserState, encode_state
from srp4ctr.contract.vocabulary import UNKNOWN, Codes
from srp4ctr.nn.export import EXPORTER, OPSET, EncoderGraph, Graph, ItemGraph, ScorerGraph, export_graph
from srp4ctr.nn.model import Srp4Ctr
from srp4ctr.runtime.bundle import Bundle, draft_below, file_hashes, seal_bundle
from srp4ctr.runtime.items import Catalogue, ItemTable, Vectors, vectors_of
from srp4ctr.runtime.metrics import METRICS
from srp4ctr.runtime.sessions import open_session
from srp4ctr.runtime.settings import StoreSettings, read_settings
from srp4ctr_offline.checkpoint import fingerprint, load_model
from srp4ctr_offline.config import RunConfig
from srp4ctr_offline.parity import compare
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import git_commit, job_parser, resolve, seed_everything, start_stage, write_json


def export(config: RunConfig, folder: Path, bundles: Path) -> Bundle:
    """Make and verify the bundle of a run's fine-tuned model; raises ExportMismatch."""
    prepared = Prepared.load(folder / "prepared")
    seed_everything(config)
    model = load_model(folder / "finetune", "finetune", config, prepared)
    with draft_below(bundles) as draft:
        encoder, item, scorer = EncoderGraph(model), ItemGraph(model), ScorerGraph(model)
        graphs: dict[str, Graph] = {ENCODER: encoder, ITEM: item, SCORER: scorer}
        with tqdm(total=len(graphs) + 1, desc="exporting", unit="step") as steps:
            for name, graph in graphs.items():
                export_graph(graph, draft / name)
                steps.update()
            parity = compare(prepared, model, draft)
            steps.update()
        mark = fingerprint(model, prepared.transforms)
        prepared.transforms.save(draft)
        item_table(prepared.items, item, draft).save(draft / ITEMS)
        (draft / COLD_STATE).write_bytes(
            encode_state(cold_state(model), model.state_layout, bytes.fromhex(mark))
        )
        manifest = Manifest(
            version=version_of_bundle(config.name, mark, prepared.items),
            name=config.name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=mark,
            state=model.state_layout,
            encoder=encoder.spec,
            item=item.spec,
            scorer=scorer.spec,
            items=len(prepared.items.codes) - 1,
            calibration=Calibration(scale=float(model.calibration_scale), bias=float(model.calibration_bias)),
            parity=parity,
            exporter={"name": EXPORTER, "opset": str(OPSET)}
            | {name: version_of(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
            data_fingerprint=prepared.report["data_fingerprint"],
            git_commit=git_commit(),
            metrics=_metrics(folder, mark),
            files=file_hashes(draft),
        )
        return seal_bundle(draft, bundles, manifest)


def version_of_bundle(name: str, mark: str, items: Catalogue) -> str:
    """The configuration's name and 8 digits of a hash of model and catalogue: equal content, equal version."""
    return f"{name}-{hashlib.sha256(bytes.fromhex(mark) + items.digest()).hexdigest()[:8]}"


def item_table(catalogue: Catalogue, graph: ItemGraph, folder: Path) -> ItemTable:
    """The table of the catalogue, with vectors by the item graph in `folder`, which is what computes those of new items."""
    session, name = open_session(folder / ITEM, threads=1), graph.spec.inputs[0].name

    def run(codes: Codes) -> Vectors:
        vectors: Vectors = session.run(None, {name: codes})[0]
        return vectors

    return ItemTable.build(catalogue, vectors_of(catalogue.codes, run, graph.vectors.width))


@torch.no_grad()
def cold_state(model: Srp4Ctr) -> UserState:
    """The state of a user of whom nothing is known: no events, every feature unknown."""
    widths = {one.name: int(one.shape[-1]) for one in EncoderGraph(model).spec.inputs}
    items, behaviours = (
        torch.zeros(1, 1, widths.get(name, 0), dtype=torch.int32)
        for name in ("event_items", "event_behaviours")
    )
    users = torch.full((1, widths.get("user_codes", 0)), UNKNOWN, dtype=torch.int32)
    state = model.encode_user(items, behaviours, users)
    batch = {name: array.numpy() for name, array in state.items()}
    encoding = model.state_layout.of_user(batch, 0, 0)
    return UserState(encoding.arrays, events=0, created_at_ms=0, length=encoding.length)


def _metrics(folder: Path, mark: str) -> dict[str, float]:
    """Test metrics of that very model, where it has been evaluated."""
    path = folder / "evaluate" / "metrics.json"
    if not path.exists():
        return {}
    metrics = json.loads(path.read_bytes())
    if metrics["fingerprint"] != mark:
        return {}
    return {f"{metrics['split']}_{name}": metrics[name] for name in METRICS if metrics[name] is not None}


def main(argv: Sequence[str]) -> int:
    """Run the job."""
    parser = job_parser(
        "export",
        reads="the run's prepared/, finetune/ and, if there, evaluate/",
        writes="bundles/VERSION/ below SRP4CTR_VAR_DIR, and export/ with metrics.json",
    )
    config, folder = resolve(parser.parse_args(argv))
    began = time.monotonic()
    bundle = export(config, folder, read_settings(StoreSettings).bundles_dir)
    manifest = bundle.manifest
    stage = start_stage(folder / "export", config)
    write_json(
        stage / "metrics.json",
        {
            "version": manifest.version,
            "bundle": str(bundle.folder),
            "seconds": round(time.monotonic() - began, 1),
        }
        | manifest.parity.model_dump(),
    )
    print(
        f"ONNX Runtime against torch at {manifest.parity.shapes_compared} shapes: encoder within "
        f"{manifest.parity.encoder_max_abs:.1e}, items within {manifest.parity.item_max_abs:.1e}, scorer within {manifest.parity.scorer_max_abs:.1e} "
        f"(accepted up to {manifest.parity.tolerance:.0e})"
    )
    print(f"bundle {manifest.version} written to {bundle.folder}")
    return 0
