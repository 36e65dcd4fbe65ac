"""MACs of single operators against their closed forms, and of whole graphs against fvcore."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lrexport.export.onnx_export import export_onnx
from lrexport.measure.onnx_macs import count_onnx
from lrexport.measure.torch_macs import count_torch_macs


def graph(operator: str, given: list[int | str], weight: tuple[int, ...] | None, **attributes: object) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)]
    initializers = []
    if weight is None:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [*given[:-2], given[-1], 7]))
    else:
        initializers.append(numpy_helper.from_array(np.zeros(weight, np.float32), "w"))
    node = helper.make_node(operator, ["x", "w"], ["y"], **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph([node], "g", inputs, [output], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "macs"),
    [
        (graph("Conv", [1, 8, 10, 12], (6, 8, 3, 3), strides=[2, 1]), 6 * 8 * 9 * 4 * 10),
        (graph("Conv", ["batch", 8, 10, 10], (8, 1, 3, 3), group=8), 8 * 9 * 64),
        (graph("ConvTranspose", [1, 4, 5, 5], (4, 3, 2, 2), strides=[2, 2]), 4 * 3 * 4 * 25),
        (graph("Gemm", [1, 20], (20, 7)), 140),
        (graph("Gemm", [1, 20], (7, 20), transB=1), 140),
        (graph("MatMul", [1, 5, 20], (20, 7)), 5 * 140),
        (graph("MatMul", [1, 3, 5, 20], None), 3 * 5 * 20 * 7),
        (graph("Einsum", [1, 4, 5], (5, 6), equation="bij,jk->bik"), 4 * 5 * 6),
        (graph("Einsum", [1, 3, 4, 5], (3, 5, 6), equation="...ij, ...jk -> ...ik"), 3 * 4 * 5 * 6),
    ],
)
def test_macs_of_one_operator(model: onnx.ModelProto, macs: int) -> None:
    cost = count_onnx(model)
    assert cost.macs == macs
    assert not cost.uncounted


def test_an_operator_that_is_not_counted_is_reported() -> None:
    assert count_onnx(graph("GRU", [1, 4, 5], (1, 6, 5), hidden_size=2)).uncounted == ("GRU",)
    model = graph("Einsum", ["batch", "rows", 5], (5, 6), equation="bij,jk->bik")
    assert count_onnx(model).uncounted == ("Einsum of unknown shape",)


def test_fvcore_is_asked_for_products_only_and_layers_sum_to_the_whole() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    found = count_torch_macs(network.train(), (3, 9, 9))
    assert found.by_layer == {"0": 27 * 8 * 49, "4": 160}
    assert found.total == sum(found.by_layer.values())
    assert network.training
    assert torch.isfinite(network[1].running_mean).all()


class Encoder(nn.Module):
    """(B, 6, 8) → (B, 6, 8): self-attention of two heads and a feed-forward pair."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_products_inside_attention_are_counted_as_on_the_exported_graph(tmp_path) -> None:
    network = Encoder().eval()
    found = count_torch_macs(network, (6, 8))
    assert found.total == 6 * (8 * 24 + 8 * 8 + 8 * 16 + 16 * 8) + 2 * (6 * 6 * 8)
    assert found.uncounted == ()
    assert export_onnx(network, tmp_path / "x.onnx", (6, 8)).cost.macs == found.total
    assert torch.backends.mha.get_fastpath_enabled()


class Einsums(nn.Module):
    """(B, 3, 17, 19) → (B, 3, 17, 17)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("b h i d, b h j d -> b h i j", x, x.flip(2))


def test_einsums_are_counted_to_the_last_digit_as_on_the_exported_graph(tmp_path) -> None:
    found = count_torch_macs(Einsums().eval(), (3, 17, 19))
    assert found.total == 3 * 17 * 17 * 19
    assert found.uncounted == ()
    assert export_onnx(Einsums().eval(), tmp_path / "x.onnx", (3, 17, 19)).cost.macs == found.total


class Recurrent(nn.Module):
    """(B, 5, 3) → (B, 5, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


def test_an_operator_that_fvcore_does_not_count_is_reported() -> None:
    assert count_torch_macs(Recurrent(), (5, 3)).uncounted == ("lstm",)


@pytest.mark.parametrize(("kind", "bits"), [(TensorProto.INT8, 8), (TensorProto.INT4, 4), (TensorProto.FLOAT16, 16)])
def test_bytes_of_a_weight_are_those_stored_before_it_is_made_float(kind: int, bits: int) -> None:
    count = 20 * 7
    stored = helper.make_tensor("stored", kind, (20, 7), np.zeros(count * bits // 8, np.uint8).tobytes(), raw=True)
    scale = numpy_helper.from_array(np.array(1, np.float32), "scale")
    if kind == TensorProto.FLOAT16:
        first = helper.make_node("Identity", ["stored"], ["w"])
    else:
        first = helper.make_node("DequantizeLinear", ["stored", "scale"], ["w"])
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 20])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7])
    nodes = [first, helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = helper.make_graph(nodes, "g", [given], [output], [stored, scale])
    (node,) = count_onnx(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)).nodes
    assert (node.macs, node.bytes) == (count, count * bits // 8)


def test_parameters_of_a_quantised_graph_are_its_weights_and_biases_without_scales() -> None:
    weight = numpy_helper.from_array(np.ones((6, 8, 3, 3), np.int8), "weight")
    bias = numpy_helper.from_array(np.ones(6, np.int32), "bias")
    scales = numpy_helper.from_array(np.ones(6, np.float32), "scales")
    zeros = [numpy_helper.from_array(np.zeros(6, kind), name) for kind, name in ((np.int8, "zeros"), (np.int32, "zeros32"))]
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bias", "scales", "zeros32"], ["b"], axis=0),
        helper.make_node("Conv", ["x", "w", "b"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 5, 5])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", [given], [output], [weight, bias, scales, *zeros])
    cost = count_onnx(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    assert (cost.params, cost.macs) == (6 * 8 * 9 + 6, 6 * 8 * 9 * 9)
