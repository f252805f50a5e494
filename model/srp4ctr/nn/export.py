"""The model as three ONNX graphs: histories to states, items to vectors, and one user's state with the vectors of
candidates to calibrated probabilities.

Users B, events L, positions S that a state keeps, and candidates C vary; everything else is fixed. A feature group
without features has no input.
"""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from srp4ctr.contract.manifest import GraphSpec, TensorSpec
from srp4ctr.contract.transforms import Fields
from srp4ctr.nn.folded import ItemVectors, UserScorer
from srp4ctr.nn.model import Srp4Ctr, State

OPSET = 20
EXPORTER = "torch.onnx dynamo"

# No example dimension is 0 or 1, which torch.export would take for fixed.
# But K is 1 here, and what comes of it fits any K that can be broadcast: it is only looked up, multiplied and added.
_EXAMPLE = {"B": 3, "L": 5, "S": 6, "C": 7, "K": 1}


class EncoderGraph(nn.Module):
    """`encode_user`; a state array that is one of its inputs, such as the user's codes, is no output."""

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model
        fields = model.fields
        inputs = [
            _codes("event_items", ("B", "L"), Fields.width(fields.item)),
            _codes("event_behaviours", ("B", "L"), Fields.width(fields.behaviour)),
            _codes("user_codes", ("B",), Fields.width(fields.user)),
        ]
        given = {one.name for one in inputs}
        outputs = [one for one in _state_tensors(model) if one.name not in given]
        self.spec = GraphSpec(inputs=tuple(i for i in inputs if i.shape[-1]), outputs=tuple(outputs))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """State arrays of the graph's inputs, in the order of `spec`."""
        given = dict(zip((one.name for one in self.spec.inputs), tensors, strict=True))
        items_BLW = given["event_items"]
        none_BL0, none_B0 = items_BLW[..., :0], items_BLW[:, 0, :0]
        state = self.model.encode_user(
            items_BLW, given.get("event_behaviours", none_BL0), given.get("user_codes", none_B0)
        )
        return tuple(state[one.name] for one in self.spec.outputs)


class ItemGraph(nn.Module):
    """Item codes to the vectors that the scorer takes; a bundle's item table has them computed."""

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model
        self.vectors = ItemVectors(model)
        inputs = (_codes("item_codes", ("C",), Fields.width(model.fields.item)),)
        self.spec = GraphSpec(inputs=inputs, outputs=(_vectors(self.vectors),))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Vectors [C, V] of the graph's only input."""
        (codes_CW,) = tensors
        return (self.vectors(codes_CW),)


class ScorerGraph(nn.Module):
    """One user's state, the vectors of C candidates and K contexts to calibrated probabilities: K is 1 or C."""

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model
        self.scorer = UserScorer(model)
        inputs = [
            *(one.model_copy(update={"shape": one.shape[1:]}) for one in _state_tensors(model)),
            _vectors(ItemVectors(model)),
            _codes("context_codes", ("K",), Fields.width(model.fields.context)),
        ]
        probability = TensorSpec(name="probability", dtype="float32", shape=("C",))
        self.spec = GraphSpec(inputs=tuple(i for i in inputs if i.shape[-1]), outputs=(probability,))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Probabilities [C] of the graph's inputs, in the order of `spec`."""
        given = dict(zip((one.name for one in self.spec.inputs), tensors, strict=True))
        vectors_CV = given["item_vectors"]
        state = _state(self.model, given, torch.zeros(0, dtype=torch.int32))
        return (self.scorer(state, vectors_CV, given.get("context_codes")),)


class PlainScorerGraph(nn.Module):
    """`Srp4Ctr.score`, calibrated, as one exports it who folds nothing: the item's codes and the user's state once a candidate.

    No bundle has it: it is what the folded graphs are compared with.
    """

    def __init__(self, model: Srp4Ctr) -> None:
        super().__init__()
        self.model = model
        fields = model.fields
        inputs = [
            *_state_tensors(model),
            _codes("item_codes", ("B", "C"), Fields.width(fields.item)),
            _codes("context_codes", ("B",), Fields.width(fields.context)),
        ]
        probability = TensorSpec(name="probability", dtype="float32", shape=("B", "C"))
        self.spec = GraphSpec(inputs=tuple(i for i in inputs if i.shape[-1]), outputs=(probability,))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Probabilities [B, C] of the graph's inputs, in the order of `spec`."""
        given = dict(zip((one.name for one in self.spec.inputs), tensors, strict=True))
        items_BCW = given["item_codes"]
        none_B0 = items_BCW[:, 0, :0]
        context_B1W = given.get("context_codes", none_B0)[:, None]
        state = _state(self.model, given, none_B0)
        return (self.model.calibrate(self.model.score(state, items_BCW, context_B1W)),)


Graph = EncoderGraph | ItemGraph | ScorerGraph | PlainScorerGraph


def export_graph(graph: Graph, path: Path) -> None:
    """Write the graph as one ONNX file with its weights inside."""
    graph.eval()
    longest = graph.model.max_events
    events = max(2, min(_EXAMPLE["L"], longest - 1))
    sizes = _EXAMPLE | {"L": events, "S": events + 1}
    dims = {
        "B": torch.export.Dim("B"),
        "L": torch.export.Dim("L", max=longest),
        "S": torch.export.Dim("S", max=longest + 1),
        "C": torch.export.Dim("C"),
    }
    example, shapes = [], []
    for spec in graph.spec.inputs:
        size = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
        dtype = torch.int32 if spec.dtype == "int32" else torch.float32
        example.append(torch.ones(size, dtype=dtype))
        shapes.append({i: dims[dim] for i, dim in enumerate(spec.shape) if dim in dims})
    # It says at each export that torchvision, which this network has no use for, is not installed.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's own use of deprecated parts of torch is nothing that our users could mend.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(example),
            path,
            input_names=[one.name for one in graph.spec.inputs],
            output_names=[one.name for one in graph.spec.outputs],
            dynamic_shapes=(tuple(shapes),),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _let_vary(path, graph)


def _let_vary(path: Path, graph: Graph) -> None:
    """Declare the dimension K, which was exported as 1, as one that varies."""
    if not any("K" in one.shape for one in graph.spec.inputs):
        return
    content = onnx.load(path)
    for given in content.graph.input:
        if given.name == "context_codes":
            given.type.tensor_type.shape.dim[0].dim_param = "K"
    # What the exporter noted of the shapes between holds for K = 1 alone.
    del content.graph.value_info[:]
    onnx.save(content, path)


def _state(model: Srp4Ctr, given: dict[str, Tensor], no_codes: Tensor) -> State:
    """The state's arrays among a graph's inputs; a group of codes that is empty, and so no input, stands in as such."""
    state: State = {"user_codes": no_codes} | {a.name: given[a.name] for a in model.state_layout.arrays}
    if "recent_ids" in state and "recent_behaviours" not in state:
        state["recent_behaviours"] = state["recent_ids"][..., None][..., :0]
    return state


def _state_tensors(model: Srp4Ctr) -> list[TensorSpec]:
    return [
        TensorSpec(name=a.name, dtype="int32" if a.holds_codes else "float32", shape=("B", *a.shape))
        for a in model.state_layout.arrays
    ]


def _codes(name: str, dims: tuple[str, ...], width: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="int32", shape=(*dims, width))


def _vectors(of: ItemVectors) -> TensorSpec:
    return TensorSpec(name="item_vectors", dtype="float32", shape=("C", of.width))
