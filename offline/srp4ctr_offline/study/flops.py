"""Floating point operations of an exported graph, counted node by node.

An addition, a multiplication, a comparison and a transcendental function are one operation each. What only moves numbers
or computes with integers is none. A fused operator counts as what it fuses: the count is the network's, not the exporter's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, inliner, numpy_helper

Arrays = Mapping[str, NDArray[np.generic]]
Attributes = Mapping[str, Any]
Given = Sequence[NDArray[np.generic]]

# Operations for each number that comes out; none where numbers are moved, chosen or cast.
_PER_OUTPUT = {
    name: count
    for names, count in (
        (
            "Cast Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity Pad",
            0,
        ),
        ("Reshape ScatterND Shape Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where", 0),
        ("Abs Add Ceil Cos CumSum Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less", 1),
        ("LessOrEqual Log Max Min Mul Neg Pow Range Reciprocal Relu Round Sign Sin Sqrt Sub Tanh", 1),
        ("Clip LeakyRelu PRelu", 2),  # two comparisons, or one and a multiplication
        ("Softplus", 3),  # exp, + 1, log
        ("Sigmoid", 4),  # negate, exp, + 1, 1 / x
        ("BatchNormalization", 4),  # - mean, * 1 / deviation, * scale, + bias
        ("RMSNormalization", 4),  # square, sum, * 1 / root, * scale
        ("LogSoftmax Softmax", 5),  # max, - max, exp, sum, divide or - log
        ("LayerNormalization", 7),  # sum, - mean, square, sum, * 1 / deviation, * scale, + bias
    )
    for name in names.split()
}
# Operations for each number that goes in: L2 squares it first.
_PER_INPUT = {"ReduceL2": 2, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceSum": 1}


@dataclass(frozen=True)
class Flops:
    """Floating point operations of one run, by ONNX operator; operators that cost nothing are not there."""

    by_operator: Mapping[str, int]

    @property
    def total(self) -> int:
        """Of all operators together."""
        return sum(self.by_operator.values())


def graph_flops(path: Path, sizes: Mapping[str, int]) -> Flops:
    """The operations of one run of the graph, its named dimensions (B, L, C) being of these sizes.

    The graph is run once as written to learn every inner shape, of which some are known to no shape inference. Raises
    ValueError for a dimension without a size and for an operator that is not known to this count.
    """
    model = inliner.inline_local_functions(onnx.load(path))
    arrays = _run(model, sizes)
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        counts[node.op_type] += _node_flops(node, arrays)
    return Flops({name: count for name, count in counts.most_common() if count})


def _run(model: onnx.ModelProto, sizes: Mapping[str, int]) -> Arrays:
    """Every value of the graph, by name, of inputs that are all one: the code of the unknown."""
    graph = model.graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    feed = {}
    for given in (one for one in graph.input if one.name not in arrays):
        kind = given.type.tensor_type
        shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in kind.shape.dim]
        if 0 in shape:
            name = kind.shape.dim[shape.index(0)].dim_param
            raise ValueError(f"no size is given for the dimension {name!r} of {given.name!r}")
        feed[given.name] = np.ones(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    names = [name for node in graph.node for name in node.output if name]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data, providers = model.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(data, options, providers=providers)
    return {**arrays, **feed, **dict(zip(names, session.run(names, feed), strict=True))}


def _node_flops(node: onnx.NodeProto, arrays: Arrays) -> int:
    # An optional input or output that is left out has an empty name.
    given = [arrays[name] for name in node.input if name]
    made = [arrays[name] for name in node.output if name]
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    kind = node.op_type
    floats = any(np.issubdtype(array.dtype, np.floating) for array in given + made)
    branches = any(isinstance(value, onnx.GraphProto) for value in attributes.values())
    if node.domain in ("", "ai.onnx") and not branches:
        if not floats:
            return 0
        if kind in _PER_OUTPUT:
            return _PER_OUTPUT[kind] * made[0].size
        if kind in _PER_INPUT:
            return _PER_INPUT[kind] * given[0].size
        if kind == "MatMul":
            return int(2 * made[0].size * given[0].shape[-1])
        if kind in _BY_SHAPE:
            return _BY_SHAPE[kind](attributes, given, made[0])
    raise ValueError(f"no count is known for {node.domain or 'ai.onnx'}.{kind} (node {node.name!r})")


def _attention(attributes: Attributes, given: Given, made: NDArray[np.generic]) -> int:
    """Scale, scores, mask, softmax and weighted sum; queries [B, H, L, D] or [B, L, H * D]."""
    if len(given) > 4 or attributes.get("softcap"):
        raise ValueError("the operations of Attention are known without past keys and softcap alone")
    queries, keys = given[:2]
    heads = attributes["q_num_heads"] if queries.ndim == 3 else queries.shape[1]
    positions = keys.shape[-2]
    scores = queries.shape[0] * heads * queries.shape[-2] * positions
    products = 2 * positions * (queries.size + made.size)
    mask = len(given) - 3
    return int(queries.size + keys.size + products + scores * (mask + _PER_OUTPUT["Softmax"]))


def _gelu(attributes: Attributes, _given: Given, made: NDArray[np.generic]) -> int:
    # x / sqrt 2, erf, + 1, * x, / 2; or cube (2), * a, + x, * b, tanh, + 1, * x, / 2.
    return made.size * (9 if attributes.get("approximate") == b"tanh" else 5)


def _gemm(attributes: Attributes, given: Given, made: NDArray[np.generic]) -> int:
    # The bias as the Add that it stands for.
    inner = given[0].shape[0 if attributes.get("transA") else 1]
    return int(made.size * (2 * inner + (len(given) == 3)))


_BY_SHAPE = {"Attention": _attention, "Gelu": _gelu, "Gemm": _gemm}
