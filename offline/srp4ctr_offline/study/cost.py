"""What scoring costs: operations counted from exported graphs, and CPU of ONNX Runtime on one thread.

Cost depends on a network's sizes and not on its weights, so that fresh ones are exported. Times are measured once and
kept with the results; they are measured anew when the models, the data or the network's code are others.
"""

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import srp4ctr.nn
from srp4ctr.contract import state
from srp4ctr.contract.manifest import GraphSpec, TensorSpec
from srp4ctr.contract.state import HEADER_BYTES
from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.baselines import BASELINES
from srp4ctr.nn.ctr import CtrModel
from srp4ctr.nn.export import EncoderGraph, ScorerGraph, export_graph
from srp4ctr.runtime.sessions import open_session
from srp4ctr_offline.checkpoint import new_model
from srp4ctr_offline.prepared import Prepared
from srp4ctr_offline.run import write_json
from srp4ctr_offline.study import flops
from srp4ctr_offline.study.measured import prepared_of
from srp4ctr_offline.study.plan import Cell
from srp4ctr_offline.study.results import Results, source_of

CANDIDATES = (1, 100, 500)
TIMED_CANDIDATES = (100, 500)
ROUNDS = 15
RUNS = 20
"""Requests of one model in a round, before the next model's turn."""

Cost = dict[str, Any]


class WholeGraph(nn.Module):
    """A model that has no user state: history and candidates to calibrated probabilities, all in one graph."""

    def __init__(self, model: CtrModel) -> None:
        super().__init__()
        self.model = model
        fields = model.fields
        shapes: dict[str, tuple[tuple[int | str, ...], tuple[Any, ...]]] = {
            "event_items": (("B", "L"), fields.item),
            "event_behaviours": (("B", "L"), fields.behaviour),
            "user_codes": (("B",), fields.user),
            "item_codes": (("B", "C"), fields.item),
            "context_codes": (("B",), fields.context),
        }
        inputs = tuple(
            TensorSpec(name=name, dtype="int32", shape=(*dims, Fields.width(group)))
            for name, (dims, group) in shapes.items()
            if group
        )
        probability = TensorSpec(name="probability", dtype="float32", shape=("B", "C"))
        self.spec = GraphSpec(inputs=inputs, outputs=(probability,))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Probabilities [B, C] of the graph's inputs, in the order of `spec`."""
        given = dict(zip((one.name for one in self.spec.inputs), tensors, strict=True))
        items_BLW = given["event_items"]
        none_BL0, none_B0 = items_BLW[..., :0], items_BLW[:, 0, :0]
        logit_BC = self.model(
            items_BLW,
            given.get("event_behaviours", none_BL0),
            given.get("user_codes", none_B0),
            given["item_codes"],
            given.get("context_codes", none_B0)[:, None],
        )
        return (self.model.calibrate(logit_BC),)


def cost_of(cells: Mapping[str, Cell], results: Results) -> Cost:
    """The costs of models of one protocol: what was measured of these before, or what is measured now."""
    digest = hashlib.sha256(json.dumps([f"{name} {_sizes(cell)}" for name, cell in cells.items()]).encode())
    digest.update(f"{version('torch')} {version('onnxruntime')} {ROUNDS} {RUNS}".encode())
    # State bytes are by the layout's code, operations and times by the network's, as they are counted and timed.
    digest.update(source_of(state, flops, sys.modules[__name__]))
    for path in sorted(Path(next(iter(srp4ctr.nn.__path__))).rglob("*.py")):
        digest.update(path.read_bytes())
    path = results.folder / "costs" / f"{digest.hexdigest()[:16]}.json"
    if not path.exists():
        write_json(path, measure_cost(cells, results))
    found: Cost = json.loads(path.read_bytes())
    return found


def measure_cost(cells: Mapping[str, Cell], results: Results) -> Cost:
    """Operations, CPU milliseconds and state bytes by model, at the longest history that the protocol keeps."""
    found: dict[str, Any] = {}
    timed: dict[tuple[str, str], Callable[[], object]] = {}
    events = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, cell in cells.items():
            prepared = prepared_of(cell, results)
            events = prepared.max_events
            model, graphs = _export(cell, prepared, Path(folder) / name)
            scorer = "whole" if "whole" in graphs else "scorer"
            sizes = {"B": 1, "L": events, "S": events + 1, "K": 1}
            encoder_flops = (
                flops.graph_flops(graphs["encoder"][0], sizes).total if "encoder" in graphs else None
            )
            found[name] = {
                "encoder_flops": encoder_flops,
                "flops": {
                    str(c): flops.graph_flops(graphs[scorer][0], sizes | {"C": c}).total for c in CANDIDATES
                },
                "state_bytes": HEADER_BYTES + model.state_layout.payload_bytes(events + 1)
                if encoder_flops is not None
                else None,
            }
            for candidates in TIMED_CANDIDATES:
                timed[name, str(candidates)] = _request(*graphs[scorer], prepared, events, candidates)
            if "encoder" in graphs:
                timed[name, "encoder"] = _request(*graphs["encoder"], prepared, events, 1)
        milliseconds = _interleaved(timed)
    for (name, what), value in milliseconds.items():
        found[name].setdefault("cpu_ms", {})[what] = value
    return {"events": events, "rounds": ROUNDS, "runs": RUNS, "models": found}


def _sizes(cell: Cell) -> str:
    sizes = cell.plan.baseline if cell.plan.kind in BASELINES else cell.config.model
    return f"{cell.plan.kind} {cell.data_key} {sizes.model_dump_json()}"


def _export(
    cell: Cell, prepared: Prepared, stem: Path
) -> tuple[Any, dict[str, tuple[Path, tuple[TensorSpec, ...]]]]:
    torch.manual_seed(0)
    graphs: dict[str, EncoderGraph | ScorerGraph | WholeGraph]
    model: CtrModel
    if cell.plan.kind in BASELINES:
        model = BASELINES[cell.plan.kind](cell.plan.baseline, prepared.transforms.fields, prepared.max_events)
        graphs = {"whole": WholeGraph(model)}
    else:
        ours = model = new_model(cell.config, prepared)
        graphs = {"encoder": EncoderGraph(ours), "scorer": ScorerGraph(ours)}
    written = {}
    for name, graph in graphs.items():
        path = stem.with_name(f"{stem.name}-{name}.onnx")
        # All it asks of a graph is a model and a specification.
        export_graph(graph, path)  # type: ignore[arg-type]
        written[name] = (path, graph.spec.inputs)
    return model, written


def _request(
    path: Path, inputs: tuple[TensorSpec, ...], prepared: Prepared, events: int, candidates: int
) -> Callable[[], object]:
    """One request of the graph, with items as they are in the catalogue and a history of full length."""
    generator = np.random.default_rng(0)
    session = open_session(path, threads=1)
    sizes = {"B": 1, "L": events, "S": events + 1, "C": candidates, "K": 1}
    codes = prepared.items.codes[1:] if len(prepared.items.codes) > 1 else prepared.items.codes
    feed: dict[str, NDArray[np.generic]] = {}
    for one in inputs:
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in one.shape]
        if one.name in ("event_items", "item_codes"):
            places = generator.integers(len(codes), size=shape[:-1])
            feed[one.name] = np.ascontiguousarray(codes[places], np.int32)
        elif one.dtype == "int32":
            feed[one.name] = np.ones(shape, np.int32)
        else:
            # States and item vectors: of any values, which cost the same.
            feed[one.name] = generator.normal(size=shape).astype(np.float32)
    return lambda: session.run(None, feed)


def _interleaved(timed: Mapping[tuple[str, str], Callable[[], object]]) -> dict[tuple[str, str], float]:
    """Median over rounds of each one's CPU milliseconds, the rounds taking turns so that all see the same machine."""
    rounds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    for number in range(ROUNDS + 1):
        for key, request in timed.items():
            began = time.process_time()
            for _ in range(RUNS):
                request()
            if number:  # The first is to warm up.
                rounds[key].append(1e3 * (time.process_time() - began) / RUNS)
    return {key: round(float(np.median(values)), 4) for key, values in rounds.items()}
