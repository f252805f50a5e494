"""Operations of exported graphs, counted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from srp4ctr_offline.study.flops import graph_flops

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, tuple[int, list[str | int]]],
    weights: dict[str, np.ndarray] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 20,
) -> Path:
    """A graph whose outputs are those of its last node."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in nodes[-1].output],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ours", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    onnx.save(model, path)
    return path


def test_a_layer(tmp_path) -> None:
    """A linear layer with activation, mask and normalisation costs what pencil and paper say."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Gelu", ["c"], ["d"]),
        helper.make_node("LayerNormalization", ["d", "b", "b"], ["e"]),
        helper.make_node("Softmax", ["e"], ["f"]),
        helper.make_node("ReduceSum", ["f"], ["g"], keepdims=0),
        helper.make_node("Sigmoid", ["g"], ["h"]),
    ]
    weights = {"w": np.ones((4, 6), np.float32), "b": np.ones(6, np.float32)}
    path = write(tmp_path / "layer.onnx", nodes, {"x": (FLOAT, ["B", "C", 4])}, weights)
    found = graph_flops(path, {"B": 2, "C": 3, "L": 9})
    assert found.by_operator == {
        "MatMul": 2 * (2 * 3) * 4 * 6,
        "Add": 2 * 3 * 6,
        "Gelu": 5 * 2 * 3 * 6,
        "LayerNormalization": 7 * 2 * 3 * 6,
        "Softmax": 5 * 2 * 3 * 6,
        "ReduceSum": 2 * 3 * 6,
        "Sigmoid": 4,
    }
    assert found.total == sum(found.by_operator.values())


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_is_matmul_and_add(tmp_path, transposed) -> None:
    """Gemm costs its product and, where it has one, its bias, whichever way its inputs lie."""
    shape = [4, "B"] if transposed else ["B", 4]
    weights = {"w": np.ones((6, 4), np.float32), "b": np.ones(6, np.float32)}
    for inputs, bias in ((["x", "w"], 0), (["x", "w", "b"], 5 * 6)):
        node = helper.make_node("Gemm", inputs, ["y"], transA=transposed, transB=1)
        path = write(tmp_path / "gemm.onnx", [node], {"x": (FLOAT, shape)}, weights)
        assert graph_flops(path, {"B": 5}).total == 2 * 5 * 4 * 6 + bias


def test_moves_and_integers_cost_nothing(tmp_path) -> None:
    """Shapes that are computed while the graph runs are followed; they, lookups and integer sums are free."""
    nodes = [
        helper.make_node("Gather", ["table", "codes"], ["a"]),
        helper.make_node("Shape", ["codes"], ["b"]),
        helper.make_node("Mul", ["b", "two"], ["c"]),
        helper.make_node("ReduceProd", ["c"], ["d"]),
        helper.make_node("Reshape", ["a", "d"], ["e"]),
        helper.make_node("Equal", ["codes", "codes"], ["f"]),
        helper.make_node("Cast", ["f"], ["g"], to=FLOAT),
        helper.make_node("Neg", ["e"], ["h"]),
    ]
    weights = {"table": np.ones((7, 4), np.float32), "two": np.array([2], np.int64)}
    path = write(tmp_path / "moves.onnx", nodes, {"codes": (INT, ["B", "L"])}, weights)
    assert graph_flops(path, {"B": 2, "L": 2}).by_operator == {"Neg": 2 * 2 * 4}


@pytest.mark.parametrize(("approximate", "each"), [("none", 5), ("tanh", 9)])
def test_both_gelus(tmp_path, approximate, each) -> None:
    """Gelu costs what its formula does."""
    node = helper.make_node("Gelu", ["x"], ["y"], approximate=approximate)
    path = write(tmp_path / "gelu.onnx", [node], {"x": (FLOAT, ["B"])})
    assert graph_flops(path, {"B": 10}).total == each * 10


@pytest.mark.parametrize("flat", [True, False])
def test_attention_is_its_products_and_softmax(tmp_path, flat) -> None:
    """Attention as one operator costs the same with its heads apart or side by side."""
    inputs = {"q": (FLOAT, ["B", 3, 8]), "k": (FLOAT, ["B", 5, 8]), "v": (FLOAT, ["B", 5, 12])}
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    if not flat:
        inputs = {"q": (FLOAT, ["B", 2, 3, 4]), "k": (FLOAT, ["B", 2, 5, 4]), "v": (FLOAT, ["B", 2, 5, 6])}
        heads = {}
    inputs["mask"] = (FLOAT, [3, 5])
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], **heads)
    path = write(tmp_path / "attention.onnx", [node], inputs, opset=23)
    pairs = 7 * 2 * 3 * 5
    scaling = 7 * (3 + 5) * 8
    assert graph_flops(path, {"B": 7}).total == 2 * pairs * 4 + 2 * pairs * 6 + (1 + 5) * pairs + scaling


def test_functions_of_the_graph_are_opened(tmp_path) -> None:
    """A function that the graph brings along is counted by what is in it."""
    body = [helper.make_node("Mul", ["x", "x"], ["z"]), helper.make_node("Add", ["z", "x"], ["y"])]
    function = helper.make_function("ours", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 20)])
    node = helper.make_node("Twice", ["x"], ["y"], domain="ours")
    path = write(tmp_path / "function.onnx", [node], {"x": (FLOAT, ["B"])}, functions=[function])
    assert graph_flops(path, {"B": 4}).by_operator == {"Mul": 4, "Add": 4}


def test_what_is_not_known_is_not_zero(tmp_path) -> None:
    """An operator without a count, one with branches and a dimension without a size are errors that name them."""
    node = helper.make_node("Det", ["x"], ["y"], name="odd")
    path = write(tmp_path / "det.onnx", [node], {"x": (FLOAT, ["B", 2, 2])})
    with pytest.raises(ValueError, match=r"ai\.onnx\.Det \(node 'odd'\)"):
        graph_flops(path, {"B": 1})
    with pytest.raises(ValueError, match="no size is given for the dimension 'B' of 'x'"):
        graph_flops(path, {"C": 1})
    value = helper.make_tensor_value_info("z", INT, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["i"], ["z"])], "branch", [], [value])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    path = write(tmp_path / "if.onnx", [node], {"yes": (BOOL, [1]), "i": (INT, [1])})
    with pytest.raises(ValueError, match=r"ai\.onnx\.If"):
        graph_flops(path, {})


def test_a_candidate_costs_the_same_whichever_it_is(tiny) -> None:
    """The scorer's operations are affine in the candidates; per candidate they fall towards the slope."""
    scorer = tiny.bundle.scorer_path
    two, three, four = (graph_flops(scorer, {"K": 1, "C": count}).total for count in (2, 3, 4))
    assert four - three == three - two > 0
    assert three - two < four / 4 < three / 3


def test_an_encoder_costs_more_with_a_longer_history(tiny) -> None:
    """The encoder is counted with every operator known, and its products grow with the history."""
    short, longer = (graph_flops(tiny.bundle.encoder_path, {"B": 1, "L": length}) for length in (4, 8))
    assert longer.by_operator["MatMul"] > short.by_operator["MatMul"]
    assert longer.total > short.total
