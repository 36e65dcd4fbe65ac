"""Layers that stay in the graph as they are, with the reason: sparse ones, and those in loops and functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from lrexport import InputError, Macs, compress
from lrexport.onnx_network.reading import read_network
from lrexport.onnx_network.writing import to_onnx
from tests.onnx_network.graphs import graph, outputs_of, saved, weight

IMAGES = np.random.default_rng(1).standard_normal((2, 8, 6, 6)).astype(np.float32)


def with_a_sparse_weight(as_node: bool = False, flat: bool = True) -> onnx.ModelProto:
    """Two convolutions, the first with a sparse weight: an initializer or a Constant, its places flat or by axis."""
    kernel = weight(16, 8, 3, 3)
    kernel[kernel < 0.1] = 0
    places = np.argwhere(kernel) if not flat else np.flatnonzero(kernel)
    values = numpy_helper.from_array(kernel[kernel != 0], "" if as_node else "sparse.w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64)), list(kernel.shape))
    nodes = [
        helper.make_node("Conv", ["x", "sparse.w"], ["h"], "sparse", pads=[1] * 4),
        helper.make_node("Conv", ["h", "dense.w"], ["y"], "dense"),
    ]
    if as_node:
        attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
        nodes.insert(0, NodeProto(op_type="Constant", output=["sparse.w"], name="constant", attribute=[attribute]))
    model = graph(nodes, {"x": ["n", 8, 6, 6]}, {"y": ["n", 24, 4, 4]}, {"dense.w": weight(24, 16, 3, 3)})
    if not as_node:
        model.graph.sparse_initializer.append(sparse)
    return model


@pytest.mark.parametrize(("as_node", "flat"), [(False, True), (True, True), (False, False)])
def test_a_sparse_layer_stays_sparse_while_others_are_compressed(tmp_path: Path, as_node: bool, flat: bool) -> None:
    model = with_a_sparse_weight(as_node, flat)
    network = read_network(saved(model, tmp_path))
    assert network.graph_reasons == {"sparse": "its weight is sparse: a pair would have no zeros"}
    made = compress(network, network.signature, Macs(0.5))
    written = to_onnx(made.network)  # type: ignore[arg-type]
    assert written.graph.sparse_initializer == model.graph.sparse_initializer
    assert "dense.first" in [node.name for node in written.graph.node]
    if not as_node:  # ONNX Runtime knows sparse constants of two axes only
        (whole,) = outputs_of(to_onnx(network), {"x": IMAGES})
        assert np.array_equal(whole, outputs_of(model, {"x": IMAGES})[0])


def _outside(sparse: onnx.SparseTensorProto) -> None:
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(len(sparse.values.float_data) or 1) + 10**6))


def _huge(sparse: onnx.SparseTensorProto) -> None:
    sparse.dims[:] = [1 << 20, 1 << 20, 3, 3]


@pytest.mark.parametrize("spoil", [_outside, _huge])
def test_a_sparse_tensor_that_lies_is_refused(tmp_path: Path, spoil: Callable[[onnx.SparseTensorProto], None]) -> None:
    model = with_a_sparse_weight()
    spoil(model.graph.sparse_initializer[0])
    with pytest.raises(InputError, match="sparse"):
        read_network(saved(model, tmp_path))


def _floats(name: str, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def with_a_scan() -> onnx.ModelProto:
    state, given = _floats("s", [1, 16]), _floats("e", [1, 16])
    nodes = [
        helper.make_node("MatMul", ["s", "w"], ["h"], "inner"),
        helper.make_node("MatMul", ["s", "h2"], ["h3"], "no layer"),
        helper.make_node("Add", ["h", "e"], ["next"]),
        helper.make_node("Identity", ["next"], ["made"]),
    ]
    nodes[1:1] = [helper.make_node("Transpose", ["e"], ["h2"])]
    body = helper.make_graph(nodes, "body", [state, given], [_floats("next", [1, 16]), _floats("made", [1, 16])])
    outer = [
        helper.make_node("MatMul", ["x", "before.w"], ["e0"], "before"),
        helper.make_node("Scan", ["s0", "e0"], ["last", "y"], "scan", body=body, num_scan_inputs=1),
    ]
    tensors = {"w": weight(16, 16), "before.w": weight(32, 16), "s0": np.zeros((1, 16), np.float32)}
    return graph(outer, {"x": [5, 1, 32]}, {"y": [5, 1, 16]}, tensors)


def with_a_branch_in_a_loop() -> onnx.ModelProto:
    then = helper.make_graph([helper.make_node("MatMul", ["s", "w"], ["t"], "deep")], "then", [], [_floats("t")])
    other = helper.make_graph([helper.make_node("Identity", ["s"], ["u"])], "else", [], [_floats("u")])
    flag = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("c", "c2")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    nodes = [
        helper.make_node("If", ["c"], ["next"], "if", then_branch=then, else_branch=other),
        helper.make_node("Identity", ["c"], ["c2"]),
    ]
    body = helper.make_graph(nodes, "body", [count, flag[0], _floats("s")], [flag[1], _floats("next")])
    outer = [
        helper.make_node("MatMul", ["x", "before.w"], ["e"], "before"),
        helper.make_node("Loop", ["three", "", "e"], ["y"], "loop", body=body),
    ]
    tensors = {"w": weight(16, 16), "before.w": weight(32, 16), "three": np.array(3, np.int64)}
    return graph(outer, {"x": ["n", 32]}, {"y": ["n", 16]}, tensors)


@pytest.mark.parametrize(
    ("model", "inside"),
    [
        (with_a_scan(), {"inner": "it is in the body of Scan"}),
        (with_a_branch_in_a_loop(), {"deep": "it is in the body of Loop"}),
    ],
    ids=["scan", "a branch in a loop"],
)
def test_layers_in_loops_stay_while_those_before_are_compressed(
    tmp_path: Path, model: onnx.ModelProto, inside: dict[str, str]
) -> None:
    network = read_network(saved(model, tmp_path))
    assert network.graph_reasons == inside
    made = compress(network, network.signature, Macs(0.9))
    written = to_onnx(made.network)  # type: ignore[arg-type]
    assert [node.name for node in written.graph.node][:2] == ["before.first", "before.second"]
    assert written.graph.node[-1] == model.graph.node[-1]


def in_bfloat16(where: str) -> onnx.ModelProto:
    """A convolution: its input, its output or itself is bfloat16, or only its weight as it is stored."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    kinds = {"x": TensorProto.FLOAT, "y": TensorProto.FLOAT}
    if where == "weight":
        nodes.insert(0, helper.make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT))
    elif where == "inside":
        nodes[0].input[0], nodes[0].output[0] = "half", "made"
        nodes.insert(0, helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16))
        nodes.append(helper.make_node("Cast", ["made"], ["y"], to=TensorProto.FLOAT))
    elif where == "output":
        nodes[0].output[0] = "made"
        nodes.insert(0, helper.make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Cast", ["made"], ["y"], to=TensorProto.BFLOAT16))
        kinds["y"] = TensorProto.BFLOAT16
    else:
        kinds = dict.fromkeys(kinds, TensorProto.BFLOAT16)
    model = graph(nodes, {"x": ["n", 8, 6, 6]}, {"y": ["n", 16, 4, 4]}, {}, opset=22)
    model.ir_version = 10
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = kinds[item.name]
    name = "stored" if where in ("weight", "output") else "w"
    kernel = weight(16, 8, 3, 3)
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.BFLOAT16, kernel.shape, kernel.reshape(-1)))
    return model


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("input", "input 'x' is bfloat16"),
        ("inside", "Could not find an implementation for Conv"),
        ("output", r"its output 'y' is tensor\(bfloat16\)"),
    ],
)
def test_what_onnx_runtime_lacks_for_bfloat16_is_named_with_what_to_do(tmp_path: Path, where: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        read_network(saved(in_bfloat16(where), tmp_path))
    assert "Convert the file to float32 or float16" in str(refused.value.hint)


def test_weights_stored_in_bfloat16_are_compressed(tmp_path: Path) -> None:
    network = read_network(saved(in_bfloat16("weight"), tmp_path))
    made = compress(network, network.signature, Macs(0.5))
    assert [entry.scheme for entry in made.plan.values()] == ["spatial"]  # type: ignore[union-attr]
