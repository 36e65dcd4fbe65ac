"""What a rewritten file keeps: everything but the replaced nodes and the weights that nothing else uses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from lrexport.config.goals import Macs
from lrexport.formats.rewritten import export_rewritten, other_sizes
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold, fold_layer
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.pairs import put
from lrexport.lowrank.layers.schemes import SCHEMES, schemes_of
from lrexport.lowrank.selection.select import select
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.reading import read_network
from lrexport.onnx_network.writing import to_onnx
from lrexport.signature import Signature
from lrexport.torch_tools.copying import copy_network
from tests.onnx_network.graphs import graph, outputs_of, saved, weight


def rewritten(network: OnnxNetwork) -> onnx.ModelProto:
    """The file with every layer as a pair of full rank; layers that share a weight share those of the pair."""
    folded = copy_network(network)
    pairs: dict[int, torch.nn.Module] = {}
    for layer in network.layers:
        module = network.get_submodule(layer.path)
        scheme = schemes_of(spec_of(module))[0]
        pair = fold_layer(module, scheme, SCHEMES[scheme].full_rank(spec_of(module)))
        for half, known in zip(pair, pairs.setdefault(id(module.weight), pair).children(), strict=True):
            half.weight = known.weight
        put(folded, layer.path, pair)
    written = to_onnx(folded)
    onnx.checker.check_model(written, full_check=True)
    return written


def assert_same_but(model: onnx.ModelProto, written: onnx.ModelProto, replaced: set[str], gone: set[str]) -> None:
    """All of the file is there, byte for byte and in order, but nodes that made ``replaced`` and the tensors ``gone``."""
    before, after = onnx.ModelProto(), onnx.ModelProto()
    before.CopyFrom(model)
    after.CopyFrom(written)
    bytes_of = [
        {tensor.name: tensor.SerializeToString() for tensor in each.graph.initializer if tensor.name not in gone}
        for each in (before, after)
    ]
    assert bytes_of[0].items() <= bytes_of[1].items()
    assert not gone & bytes_of[1].keys()
    nodes = [[node.SerializeToString() for node in each.graph.node] for each in (before, after)]
    kept = [node.SerializeToString() for node in before.graph.node if not {*node.output} & (replaced | gone)]
    assert [node for node in nodes[1] if node in nodes[0]] == kept
    for each in (before, after):
        del each.graph.initializer[:]
        del each.graph.node[:]
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def same(written: onnx.ModelProto, model: onnx.ModelProto, feed: dict[str, np.ndarray], tolerance: float = 1e-5) -> bool:
    pairs = zip(outputs_of(written, feed), outputs_of(model, feed), strict=True)
    return all(np.abs(one - two).max() <= tolerance * np.abs(two).max() for one, two in pairs)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(shape).astype(np.float32)


def test_names_types_metadata_and_foreign_operators_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["in:0", "kernel"], ["1"], "same", pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["1"], ["2"], "same.first", domain="com.microsoft"),
        helper.make_node("Conv", ["2", "kernel2"], ["3"]),
        helper.make_node("Relu", ["3"], ["out:0"], doc_string="the last"),
    ]
    tensors = {"kernel": weight(8, 4, 3, 3), "kernel2": weight(6, 8, 1, 1), "unused": weight(3)}
    model = graph(nodes, {"in:0": ["n", 4, "h", "w"]}, {"out:0": ["n", 6, "h", "w"]}, tensors)
    model.opset_import.add(domain="com.microsoft", version=1)
    model.opset_import.add(domain="somebody.else", version=3)
    model.producer_name, model.producer_version, model.model_version, model.domain = "me", "7", 12, "org.me"
    model.doc_string = model.graph.doc_string = "kept"
    model.metadata_props.add(key="b", value="1")
    model.metadata_props.add(key="a", value="2")
    model.graph.value_info.append(helper.make_tensor_value_info("1", TensorProto.FLOAT, ["n", 8, "h", "w"]))
    network = read_network(saved(model, tmp_path), Signature.parse(["in_0=4,9,9"]))  # a name as options can have it
    written = rewritten(network)
    assert_same_but(model, written, {"1", "3"}, {"kernel", "kernel2"})
    names = [node.name for node in written.graph.node]
    assert len(set(names)) == len(names) == 6
    assert same(written, model, {"in:0": noise(2, 4, 7, 5)})


def test_weights_that_are_outputs_or_used_elsewhere_stay(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "shown"], ["1"]),
        helper.make_node("MatMul", ["1", "summed"], ["2"]),
        helper.make_node("ReduceSum", ["summed"], ["3"], keepdims=0),
        helper.make_node("Add", ["2", "3"], ["y"]),
    ]
    tensors = {"shown": weight(6, 8), "summed": weight(8, 5)}
    outputs = {"y": ["n", 5], "shown": [6, 8], "x": ["n", 6]}
    model = graph(nodes, {"x": ["n", 6]}, outputs, tensors)
    written = rewritten(read_network(saved(model, tmp_path)))
    assert {tensor.name for tensor in written.graph.initializer} >= {"shown", "summed"}
    assert_same_but(model, written, {"1", "2"}, set())
    assert same(written, model, {"x": noise(3, 6)})


def test_weights_of_constant_nodes_and_behind_other_nodes(tmp_path: Path) -> None:
    quantised = np.random.default_rng(0).integers(-99, 99, (7, 5, 1, 1)).astype(np.int8)
    nodes = [
        helper.make_node("Constant", [], ["held"], value=numpy_helper.from_array(weight(8, 4, 3, 3))),
        helper.make_node("Conv", ["x", "held"], ["1"], "a"),
        helper.make_node("Transpose", ["turned"], ["straight"], perm=[3, 2, 0, 1]),
        helper.make_node("Identity", ["straight"], ["again"]),
        helper.make_node("Conv", ["1", "again"], ["2"], "b"),
        helper.make_node("DequantizeLinear", ["quantised", "scales", "zeros"], ["scaled"], axis=0),
        helper.make_node("Conv", ["2", "scaled"], ["y"], "c"),
    ]
    tensors = {"turned": weight(3, 3, 8, 5), "quantised": quantised}
    tensors |= {"scales": np.linspace(0.01, 0.02, 7, dtype=np.float32), "zeros": np.zeros(7, np.int8)}
    model = graph(nodes, {"x": ["n", 4, 9, 9]}, {"y": ["n", 7, 5, 5]}, tensors)
    network = read_network(saved(model, tmp_path))
    assert [layer.path for layer in network.layers] == ["a", "b", "c"]
    written = rewritten(network)
    assert {node.op_type for node in written.graph.node} == {"Conv"}
    assert same(written, model, {"x": noise(2, 4, 9, 9)})


def test_layers_with_one_weight_keep_one_weight(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"], "one"),
        helper.make_node("Tanh", ["1"], ["2"]),
        helper.make_node("MatMul", ["2", "w"], ["y"], "two"),
    ]
    model = graph(nodes, {"x": ["n", 6]}, {"y": ["n", 6]}, {"w": weight(6, 6)})
    network = read_network(saved(model, tmp_path))
    assert network.get_submodule("one").weight is network.get_submodule("two").weight
    written = rewritten(network)
    assert len(written.graph.initializer) == 2
    assert same(written, model, {"x": noise(2, 6)})


def test_layers_in_branches_are_rewritten_there(tmp_path: Path) -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}.weight"], [f"{name}.1"], name),
            helper.make_node(operator, [f"{name}.1"], [f"{name}.2"]),
        ]
        made = helper.make_tensor_value_info(f"{name}.2", TensorProto.FLOAT, ["n", 5])
        return helper.make_graph(nodes, name, [], [made], [numpy_helper.from_array(weight(6, 5), f"{name}.weight")])

    nodes = [
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Greater", ["count", "limit"], ["many"]),
        helper.make_node("If", ["many"], ["y"], then_branch=branch("then", "Relu"), else_branch=branch("else", "Tanh")),
    ]
    model = graph(nodes, {"x": ["n", 6]}, {"y": ["n", 5]}, {"limit": np.array(6)})
    network = read_network(saved(model, tmp_path))
    assert [layer.path for layer in network.layers] == ["then", "else"]
    written = rewritten(network)
    for samples in (1, 2):
        assert same(written, model, {"x": noise(samples, 6)})
    branches = [attribute.g for attribute in written.graph.node[-1].attribute]
    names = [node.name for each in branches for node in each.node if node.op_type == "MatMul"]
    assert sorted(names) == ["else.first", "else.second", "then.first", "then.second"]


def test_half_precision_and_weights_that_are_inputs_stay_so(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv")
    tensors = {"w": weight(8, 4, 3, 3).astype(np.float16), "b": weight(8).astype(np.float16)}
    model = graph([node], {"x": ["n", 4, 6, 6]}, {"y": ["n", 8, 4, 4]}, tensors, opset=9, kind=TensorProto.FLOAT16)
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, value.shape) for name, value in tensors.items()
    )
    network = read_network(saved(model, tmp_path))
    written = rewritten(network)
    assert {tensor.data_type for tensor in written.graph.initializer} == {TensorProto.FLOAT16}
    assert {tensor.name for tensor in written.graph.initializer} < {item.name for item in written.graph.input}
    assert [item.name for item in written.graph.input][:2] == ["x", "b"]
    assert same(written, model, {"x": noise(2, 4, 6, 6).astype(np.float16)}, 5e-3)


def test_weights_that_a_cast_makes_float32_are_kept_in_half_precision(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["w.half"], ["w"], "widened", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["1"], "one"),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("MatMul", ["2", "w"], ["y"], "two"),
    ]
    tensors = {"w.half": weight(32, 32).astype(np.float16)}
    model = graph(nodes, {"x": ["n", 32]}, {"y": ["n", 32]}, tensors)
    written = rewritten(read_network(saved(model, tmp_path)))
    assert [tensor.data_type for tensor in written.graph.initializer] == [TensorProto.FLOAT16] * 2  # shared by both layers
    assert [node.op_type for node in written.graph.node] == ["Cast", "Cast", "MatMul", "MatMul", "Relu", "MatMul", "MatMul"]
    assert same(written, model, {"x": noise(2, 32)}, 5e-3)


def test_external_data_and_functions_stay_readable(tmp_path: Path) -> None:
    inside = helper.make_function(
        "mine", "Twice", ["v"], ["w"], [helper.make_node("Add", ["v", "v"], ["w"])], [helper.make_opsetid("", 17)]
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"], "product"),
        helper.make_node("Twice", ["1"], ["y"], domain="mine"),
    ]
    model = graph(nodes, {"x": ["n", 64]}, {"y": ["n", 48]}, {"w": weight(64, 48)}, functions=[inside])
    model.opset_import.add(domain="mine", version=1)
    path = tmp_path / "net.onnx"
    large = onnx.ModelProto()
    large.CopyFrom(model)
    onnx.save(large, str(path), save_as_external_data=True, location="net.data", size_threshold=0)
    network = read_network(path)
    assert network.without_gradient == ("mine.Twice",)
    written = rewritten(network)
    assert written.functions == model.functions
    assert same(written, model, {"x": noise(2, 64)})


def test_sizes_that_the_file_itself_does_not_run_at_are_not_asked_of_the_new_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"], "product"),
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "second"], ["length"]),
        helper.make_node("Cast", ["length"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["longest", "real"], ["left"]),
        helper.make_node("Log", ["left"], ["2"]),  # not a number for lengths of more than 5
        helper.make_node("Add", ["1", "2"], ["y"]),
    ]
    tensors = {"w": weight(8, 6), "second": np.array(1), "longest": np.array(5.5, np.float32)}
    model = graph(nodes, {"x": ["n", "length", 8]}, {"y": ["n", "length", 6]}, tensors)
    network = read_network(saved(model, tmp_path), Signature.of({"x": (5, 8)}))
    svd = decompose(copy_network(network), network.signature)
    made = tmp_path / "made.onnx"
    export_rewritten(fold(svd, select(svd, Macs(0.9))), made, samples=None)
    assert {node.name for node in onnx.load(made).graph.node} >= {"product.first", "product.second"}
    assert [len(other.inputs[0].shape) for other in other_sizes(network)] == [2, 2]
