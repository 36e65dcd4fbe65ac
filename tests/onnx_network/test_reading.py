"""Reading files: sizes that they leave free, runs that never end, and nodes that torch computes differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from lrexport.artifacts import onnx_files
from lrexport.errors import InputError
from lrexport.onnx_network import body
from lrexport.onnx_network.operators.facts import NodeFacts, Operator
from lrexport.onnx_network.reading import read_network, read_signature
from lrexport.signature import Signature
from tests.onnx_network.graphs import graph, outputs_of, saved, two_convolutions, weight


def test_a_file_whose_loop_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "_MORE_SECONDS", -5)  # 3 s in all
    inside = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Mul", ["v", "v"], ["squared"])],
        "inside",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("squared", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("Loop", ["", "always", "1"], ["y"], body=inside),
    ]
    tensors = {"w": weight(4, 4), "always": np.array(True)}
    path = saved(graph(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, tensors), tmp_path)
    with pytest.raises(InputError, match="running it once takes more than 3 s of CPU time"):
        read_network(path)


def test_a_file_that_onnx_runtime_does_not_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("Reshape", ["1", "sizes"], ["y"]),
    ]
    tensors = {"w": weight(4, 4), "sizes": np.array([3, 5])}
    path = saved(graph(nodes, {"x": ["n", 4]}, {"y": [3, 5]}, tensors), tmp_path)
    with pytest.raises(InputError, match=r"ONNX Runtime does not run .*net\.onnx: .*Reshape"):
        read_network(path)


def test_a_tensor_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("Expand", ["1", "sizes"], ["2"]),
        helper.make_node("ReduceSum", ["2"], ["y"], keepdims=0),
    ]
    tensors = {"w": weight(4, 4), "sizes": np.array([1 << 36, 1, 4])}
    path = saved(graph(nodes, {"x": ["n", 4]}, {"y": []}, tensors), tmp_path)
    with pytest.raises(InputError, match="ONNX Runtime does not run"):
        read_network(path)


def test_a_node_that_torch_computes_differently_runs_in_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = body.operator_of

    def wrong(facts: NodeFacts) -> Operator | None:
        return (lambda values: (values[0] + 1,)) if facts.operator == "Relu" else usual(facts)  # type: ignore[operator]

    monkeypatch.setattr(body, "operator_of", wrong)
    model = two_convolutions()
    network = read_network(saved(model, tmp_path))
    assert network.without_gradient == ("Relu",)
    assert network.untrainable == "Relu between its layers and outputs run in ONNX Runtime, which has no gradients"
    images = torch.randn(2, 3, 16, 16)
    expected = outputs_of(model, {"x": images.numpy()})[0]
    assert np.abs(network(images).detach().numpy() - expected).max() < 1e-5


def test_a_batch_behind_the_first_axis_is_one_sample(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("Add", ["1", "state"], ["new"]),
        helper.make_node("ReduceSum", ["new"], ["y"], keepdims=0),
    ]
    shapes = {"x": ["batch", 4], "state": [2, "batch", 4]}
    path = saved(graph(nodes, shapes, {"y": [], "new": [2, "batch", 4]}, {"w": weight(4, 4)}), tmp_path)
    network = read_network(path)
    assert str(network.signature) == "x 4, state 2 × 1 × 4"
    assert network.untrainable is None
    outputs = network(torch.ones(3, 4), torch.ones(3, 2, 1, 4))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {"y": (3,), "new": (3, 2, 1, 4)}


def test_all_sizes_are_given_where_the_first_axis_is_no_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["1"]),
        helper.make_node("ReduceMean", ["1"], ["y"], axes=[0], keepdims=0),
    ]
    path = saved(graph(nodes, {"x": ["steps", 4]}, {"y": [4]}, {"w": weight(4, 4)}), tmp_path)
    assert read_signature(path, Signature.parse(["x=7,4"])).shape == (7, 4)
    assert read_network(path, Signature.parse(["x=7,4"]))(torch.ones(2, 7, 4)).shape == (2, 4)
