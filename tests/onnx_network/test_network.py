"""An ONNX file as a network: what it computes, and what is written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold_layer
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.pairs import put
from lrexport.lowrank.layers.schemes import CONV_SCHEMES, SCHEMES
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.onnx_network.reading import read_network
from lrexport.onnx_network.writing import to_onnx
from lrexport.torch_tools.copying import copy_network
from tests.onnx_network.graphs import graph, outputs_of, saved, two_convolutions, weight


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def in_pairs(network: OnnxNetwork, share: float = 1.0) -> OnnxNetwork:
    """A copy with every layer that can be one as a pair, at this share of its full rank."""
    folded = copy_network(network)
    svd = decompose(copy_network(network), network.signature, "auto")
    assert svd.layers
    for name, layer in svd.layers.items():
        rank = max(1, round(share * layer.schemes[layer.scheme].full_rank))
        put(folded, name, fold_layer(network.get_submodule(name), layer.scheme, rank))
    return folded


def assert_equal(mine: list[np.ndarray], other: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for one, two in zip(mine, other, strict=True):
        assert one.shape == two.shape
        assert np.abs(one - two).max() <= tolerance * (np.abs(two).max() or 1)


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_the_network_computes_what_onnx_runtime_does_for_any_number_of_samples(tmp_path: Path, batch: int | str) -> None:
    model = two_convolutions(batch)
    network = read_network(saved(model, tmp_path))
    images = pixels(4, 3, 16, 16)
    runs = [images[start : start + 1] for start in range(4)] if batch == 1 else [images]
    expected = np.concatenate([outputs_of(model, {"x": each})[0] for each in runs])
    assert_equal([network(torch.from_numpy(images)).detach().numpy()], [expected])
    assert len(network(torch.from_numpy(images[:3]))) == 3


def test_in_double_precision_it_computes_in_double_even_what_the_graph_makes_float32(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["1"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["1", "w"], ["y"], "product"),
    ]
    model = graph(nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, {"w": weight(8, 4)})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    network = read_network(saved(model, tmp_path))
    given = torch.arange(8, dtype=torch.int32)[None]
    doubled = copy_network(network).double()(given)
    assert doubled.dtype == torch.float64
    torch.testing.assert_close(doubled, network(given).double(), rtol=1e-5, atol=1e-6)


def test_layers_are_named_after_their_weights(tmp_path: Path) -> None:
    network = read_network(saved(two_convolutions(), tmp_path))
    assert [layer.path for layer in network.layers] == ["a", "b", "head"]


def test_a_file_whose_layers_did_not_change_is_written_byte_for_byte(tmp_path: Path) -> None:
    model = two_convolutions()
    model.metadata_props.add(key="author", value="somebody")
    model.graph.doc_string = "kept"
    network = read_network(saved(model, tmp_path))
    assert to_onnx(network).SerializeToString() == model.SerializeToString()


def test_at_full_rank_the_rewritten_file_equals_the_file(tmp_path: Path) -> None:
    model = two_convolutions()
    network = read_network(saved(model, tmp_path))
    written = to_onnx(in_pairs(network))
    onnx.checker.check_model(written, full_check=True)
    images = pixels(2, 3, 16, 16)
    assert_equal(outputs_of(written, {"x": images}), outputs_of(model, {"x": images}))


def test_a_pair_is_two_nodes_named_after_the_layers_and_nothing_else_changes(tmp_path: Path) -> None:
    model = two_convolutions()
    network = read_network(saved(model, tmp_path))
    folded = copy_network(network)
    put(folded, "b", fold_layer(network.get_submodule("b"), "spatial", 5))
    written = to_onnx(folded)
    assert [node.name for node in written.graph.node if "node_b" in node.name] == ["node_b.first", "node_b.second"]
    others = [node for node in written.graph.node if "node_b" not in node.name]
    assert others == [node for node in model.graph.node if node.name != "node_b"]
    kept = {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer if tensor.name != "b.weight"}
    assert kept.items() <= {tensor.name: tensor.SerializeToString() for tensor in written.graph.initializer}.items()
    assert "b.weight" not in {tensor.name for tensor in written.graph.initializer}
    assert (written.graph.input, written.graph.output) == (model.graph.input, model.graph.output)
    images = torch.from_numpy(pixels(2, 3, 16, 16))
    assert_equal([folded(images).detach().numpy()], outputs_of(written, {"x": images.numpy()}))


def test_uneven_padding_stays_with_the_axes_that_have_it(tmp_path: Path) -> None:
    for more in ({"pads": [0, 1, 2, 0]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}):
        node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", strides=[2, 2], kernel_shape=[3, 4], **more)
        model = graph([node], {"x": ["n", 8, 15, 17]}, {"y": ["n", 12, None, None]}, {"w": weight(12, 8, 3, 4)})
        network = read_network(saved(model, tmp_path))
        for scheme in CONV_SCHEMES:
            folded = copy_network(network)
            layer = network.get_submodule("conv")
            put(folded, "conv", fold_layer(layer, scheme, SCHEMES[scheme].full_rank(spec_of(layer))))
            written = to_onnx(folded)
            images = pixels(2, 8, 15, 17)
            assert_equal(outputs_of(written, {"x": images}), outputs_of(model, {"x": images}))


def test_gradients_reach_the_layers(tmp_path: Path) -> None:
    network = read_network(saved(two_convolutions(), tmp_path))
    assert network.without_gradient == ()
    network(torch.from_numpy(pixels(2, 3, 16, 16))).square().sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())


def test_changed_weights_are_written_back(tmp_path: Path) -> None:
    network = read_network(saved(two_convolutions(), tmp_path))
    with torch.no_grad():
        network.get_submodule("head").bias += 1
    written = to_onnx(network)
    images = pixels(2, 3, 16, 16)
    assert_equal(outputs_of(written, {"x": images}), [network(torch.from_numpy(images)).detach().numpy()])
