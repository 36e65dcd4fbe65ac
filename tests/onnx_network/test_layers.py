"""Forms of layers: at full rank, and with any weights, the rewritten file computes what the file and the network do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lrexport.lowrank.factors.fold import fold_layer
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.pairs import put
from lrexport.lowrank.layers.schemes import SCHEMES, schemes_of
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.reading import read_network
from lrexport.onnx_network.writing import to_onnx
from lrexport.signature import Signature
from lrexport.torch_tools.copying import copy_network
from tests.onnx_network.graphs import graph, outputs_of, saved, weight


def close(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and bool(np.abs(one - two).max() <= 1e-5 * np.abs(two).max())


def computed(network: OnnxNetwork, images: np.ndarray) -> np.ndarray:
    """The only output for the input as the file takes it."""
    array: np.ndarray = network.run({"x": torch.from_numpy(images)})["y"].detach().numpy()
    return array


def assert_pairs_are_written(model: onnx.ModelProto, folder: Path, shape: Sequence[int]) -> OnnxNetwork:
    """Pairs of the only layer at full rank equal the file, and at a low rank the network, in every scheme."""
    network = read_network(saved(model, folder))
    (layer,) = network.layers
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected = outputs_of(model, {"x": images})[0]
    module = network.get_submodule(layer.path)
    for scheme in schemes_of(spec_of(module)):
        for rank in (SCHEMES[scheme].full_rank(spec_of(module)), 1):
            folded = copy_network(network)
            put(folded, layer.path, fold_layer(module, scheme, rank))
            written = to_onnx(folded)
            onnx.checker.check_model(written, full_check=True)
            made = outputs_of(written, {"x": images})[0]
            assert close(computed(folded, images), made), (scheme, rank)
            assert rank == 1 or close(made, expected), scheme
    changed = copy_network(network)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.5).add_(0.1)
    made = outputs_of(to_onnx(changed), {"x": images})[0]
    assert close(computed(changed, images), made)
    return network


@pytest.mark.parametrize(
    ("attributes", "third"),
    [
        ({}, None),
        ({"transB": 1, "alpha": 0.5}, (6,)),
        ({"transA": 1}, (6,)),
        ({"transA": 1, "transB": 1, "beta": 2.0}, (1, 6)),
        ({"beta": 2.0}, (5, 6)),
        ({"transB": 1}, (5, 1)),
        ({"transA": 1, "alpha": -2.0}, (1,)),
        ({}, ()),
    ],
)
def test_gemm_with_every_third_input(tmp_path: Path, attributes: dict[str, Any], third: tuple[int, ...] | None) -> None:
    opset = 9 if third == (6,) else 17  # opset 9 requires the third input, of the first half too
    transposed = attributes.get("transA", 0)
    tensors = {"w": weight(6, 4) if attributes.get("transB") else weight(4, 6)}
    tensors |= {} if third is None else {"c": np.asarray(weight(*third, 2).sum(-1))}
    shape = [4, 5] if transposed else [5, 4]
    node = helper.make_node("Gemm", ["x", *tensors], ["y"], "gemm", **attributes)
    assert_pairs_are_written(graph([node], {"x": shape}, {"y": [5, 6]}, tensors, opset), tmp_path, shape)


@pytest.mark.parametrize(
    ("attributes", "third"),
    [({}, (6, 1)), ({"transA": 1}, None), ({"transB": 1, "alpha": 0.5}, (5,)), ({"beta": 2.0}, (6, 5))],
)
def test_gemm_whose_first_factor_is_the_weight(
    tmp_path: Path, attributes: dict[str, Any], third: tuple[int, ...] | None
) -> None:
    tensors = {"w": weight(4, 6) if attributes.get("transA") else weight(6, 4)}
    tensors |= {} if third is None else {"c": weight(*third, 2).sum(-1)}
    shape = [5, 4] if attributes.get("transB") else [4, 5]
    node = helper.make_node("Gemm", ["w", "x", *(["c"] if third else [])], ["y"], "gemm", **attributes)
    assert_pairs_are_written(graph([node], {"x": shape}, {"y": [6, 5]}, tensors), tmp_path, shape)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4, 5)])
def test_products_from_the_left(tmp_path: Path, shape: tuple[int, ...]) -> None:
    node = helper.make_node("MatMul", ["w", "x"], ["y"], "product")
    model = graph([node], {"x": shape}, {"y": [*shape[:-2], 6, 5]}, {"w": weight(6, 4)})
    assert_pairs_are_written(model, tmp_path, shape)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [0, 1, 1, 0], "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"pads": [1, 1, 0, 1], "output_padding": [1, 0], "strides": [2, 2], "dilations": [2, 1]},
        {"auto_pad": "VALID", "strides": [3, 1], "group": 2},
    ],
)
def test_transposed_convolutions_that_cut_unevenly(tmp_path: Path, attributes: dict[str, Any]) -> None:
    kernel = (3, 4) if attributes["strides"][1] > 1 else (4, 3)
    tensors = {"w": weight(8, 12 // attributes.get("group", 1), *kernel), "b": weight(12)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], "up", **attributes)
    model = graph([node], {"x": ["n", 8, 5, 7]}, {"y": ["n", 12, None, None]}, tensors)
    network = assert_pairs_are_written(model, tmp_path, (2, 8, 5, 7))
    assert network.graph_reasons == {}


@pytest.mark.parametrize("mode", [{}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}])
def test_transposed_convolutions_whose_output_has_a_size(tmp_path: Path, mode: dict[str, str]) -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 3], output_shape=[10, 20], **mode)
    tensors = {"w": weight(8, 12, 3, 4)}
    model = graph([node], {"x": ["n", 8, 5, 7]}, {"y": ["n", 12, 10, 20]}, tensors)
    network = assert_pairs_are_written(model, tmp_path, (2, 8, 5, 7))
    assert network.graph_reasons == {}


def test_a_transposed_convolution_stays_whose_padding_depends_on_the_input(tmp_path: Path) -> None:
    up = helper.make_node("ConvTranspose", ["x", "w"], ["h"], "up", strides=[2, 3], output_shape=[10, 20])
    nodes = [up, helper.make_node("Conv", ["h", "v"], ["y"], "after")]
    tensors = {"w": weight(8, 12, 3, 4), "v": weight(6, 12, 1, 1)}
    model = graph(nodes, {"x": ["n", 8, "h", "w"]}, {"y": ["n", 6, None, None]}, tensors)
    network = read_network(saved(model, tmp_path), Signature.of({"x": (8, 5, 7)}))
    assert network.graph_reasons == {"up": "its padding follows from the size of its output, and its input has free sizes"}


@pytest.mark.parametrize("lead", [(1,), (1, 1)])
def test_a_product_with_one_matrix_of_more_axes(tmp_path: Path, lead: tuple[int, ...]) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    model = graph([node], {"x": ["n", 3, 5, 8]}, {"y": ["n", 3, 5, 6]}, {"w": weight(*lead, 8, 6)})
    assert_pairs_are_written(model, tmp_path, (2, 3, 5, 8))


@pytest.mark.parametrize(
    ("given", "made", "shape", "reason"),
    [
        (["n", 4, 8], ["n", 4, 4, 6], (1, 4, 8, 6), "its weight has 4 axes, for 1 products"),
        (["n", 4, 5, 8], ["n", 4, 5, 6], (4, 8, 6), "its weight has 3 axes, for 4 products"),
    ],
)
def test_products_with_several_matrices_stay(
    tmp_path: Path, given: list[int | str], made: list[int | str], shape: tuple[int, ...], reason: str
) -> None:
    if shape[0] == 1:
        shape, made = (1, 1, *shape[2:]), [1, *made[:1], 4, 6]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "several"),
        helper.make_node("MatMul", ["h", "v"], ["y"], "one"),
    ]
    model = graph(nodes, {"x": given}, {"y": made}, {"w": weight(*shape), "v": weight(6, 6)})
    network = read_network(saved(model, tmp_path))
    assert network.graph_reasons == {"several": reason}
    assert [layer.path for layer in network.layers] == ["one"]


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_along_one_and_three_axes(tmp_path: Path, axes: int) -> None:
    pads = [1, 0, 2][:axes] + [0, 1, 1][:axes]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], "conv", pads=pads, strides=[2] * axes, group=2)
    tensors = {"w": weight(12, 4, *[3] * axes), "b": weight(12)}
    shape = ["n", 8, *[9] * axes]
    assert_pairs_are_written(
        graph([node], {"x": shape}, {"y": ["n", 12, *[None] * axes]}, tensors), tmp_path, (2, 8, *[9] * axes)
    )


@pytest.mark.parametrize("name", ["layers", "body", "source", "signature", "inputs", "types", "file", "forward", "training"])
def test_layers_may_have_the_names_of_the_networks_attributes(tmp_path: Path, name: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", f"{name}.0.weight"], ["h"], "one"),
        helper.make_node("Conv", ["h", f"{name}.weight"], ["y"], "two"),
    ]
    tensors = {f"{name}.0.weight": weight(12, 8, 3, 3), f"{name}.weight": weight(12, 12, 3, 3)}
    model = graph(nodes, {"x": ["n", 8, 8, 8]}, {"y": ["n", 12, 4, 4]}, tensors)
    network = read_network(saved(model, tmp_path))
    assert network.graph_reasons == {}
    paths = [layer.path for layer in network.layers]
    for path in paths:
        module = network.get_submodule(path)
        put(network, path, fold_layer(module, "spatial", SCHEMES["spatial"].full_rank(spec_of(module))))
    images = np.random.default_rng(1).standard_normal((2, 8, 8, 8)).astype(np.float32)
    assert close(computed(network, images), outputs_of(model, {"x": images})[0])
    assert len(copy_network(network).state_dict()) == 4
