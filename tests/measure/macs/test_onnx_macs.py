"""MACs of single operators against their closed forms, and of whole graphs against fvcore."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.macs.onnx_macs import count_onnx


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
    assert count_onnx(graph("Det", [1, 4, 4], (1,))).uncounted == ("Det",)
    model = graph("Einsum", ["batch", "rows", 5], (5, 6), equation="bij,jk->bik")
    assert count_onnx(model).uncounted == ("Einsum of unknown shape",)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("equation", [b"bij;jk->bik", b"\xe9F\xe0I"])
def test_an_einsum_that_onnx_would_read_without_end_is_reported(equation: bytes) -> None:
    model = graph("Einsum", [1, 4, 5], (5, 6), equation="bij,jk->bik")
    model.graph.node[0].attribute[0].s = equation
    assert count_onnx(model).uncounted


def chain(
    nodes: list[onnx.NodeProto], given: list[int | str], found: list[int | str], **weights: np.ndarray
) -> onnx.ModelProto:
    """``nodes`` from ``x`` of the shape ``given`` to ``y`` of ``found``."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, found)]
    initializers = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    made = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("batch", "times"), [("batch", 1), (None, 1), (1, 1), (5, 5)])
def test_windows_of_an_input_count_each_and_a_first_size_that_may_be_a_sequence_counts_whole(
    batch: int | str | None, times: int
) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["p"])]
    nodes += [helper.make_node("Reshape", ["p", "whole"], ["y"])]
    weights = {"w": np.zeros((6, 7), np.float32), "shape": np.array([-1, 2, 6]), "whole": np.array([-1, 8, 7])}
    cost = count_onnx(chain(nodes, [batch, 8, 6], [batch, 8, 7], **weights))
    assert (cost.macs, cost.uncounted) == (times * 8 * 6 * 7, ())
    assert cost.inputs == (("x", (times, 8, 6)),)


def test_a_first_size_that_is_unknown_and_not_the_batch_is_reported() -> None:
    model = chain(
        [helper.make_node("MatMul", ["t", "w"], ["y"])], ["batch", 3], ["tokens", 7], w=np.zeros((6, 7), np.float32)
    )
    model.graph.input.append(helper.make_tensor_value_info("t", TensorProto.FLOAT, ["tokens", 6]))
    assert (count_onnx(model).macs, count_onnx(model).uncounted) == (0, ("MatMul of unknown shape",))


@pytest.mark.parametrize(("axis", "samples", "images"), [(0, 1, 1), (1, 3, 3)])
def test_an_input_without_a_batch_axis_is_not_divided_by_its_first_size(axis: int, samples: int, images: int) -> None:
    kernel = np.zeros((8, 3 // samples, 3, 3), np.float32)
    nodes = [helper.make_node("Unsqueeze", ["x", "axis"], ["h"]), helper.make_node("Conv", ["h", "w"], ["y"])]
    model = chain(nodes, [3, 8, 8], [samples, 8, 6, 6], w=kernel, axis=np.array([axis]))
    assert count_onnx(model).macs == samples * kernel.size * 36 // images
    clip = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("ReduceMean", ["h", "axis"], ["y"], keepdims=0)]
    model = chain(clip, [16, 6], [7], w=np.zeros((6, 7), np.float32), axis=np.array([0]))
    assert count_onnx(model).macs == 16 * 6 * 7


def test_a_product_of_two_vectors_is_counted() -> None:
    model = chain([helper.make_node("MatMul", ["x", "w"], ["y"])], [6], [], w=np.zeros(6, np.float32))
    assert (count_onnx(model).macs, count_onnx(model).uncounted) == (6, ())


def test_weights_in_constant_nodes_are_parameters_in_branches_too() -> None:
    kernel = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32))
    bias = numpy_helper.from_array(np.zeros(5, np.float32))
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=bias)],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [5])],
    )
    nodes = [
        helper.make_node("Constant", [], ["w"], value=kernel),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("If", ["which"], ["z"], then_branch=branch, else_branch=branch),
    ]
    model = chain(nodes, ["batch", 3, 8, 8], ["batch", 8, 6, 6], which=np.array(True))
    assert count_onnx(model).params == 216 + 2 * 5
    assert count_onnx(model).nodes[0].params == 216


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


class Windows(nn.Module):
    """(B, 3, 8, 8) → (B, 5): attention inside of the four quarters of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 8)
        x = (self.query(x) @ x.transpose(1, 2)).softmax(-1) @ x
        return self.head(x.reshape(-1, 64, 8).mean(1))


def test_windows_are_counted_as_torch_does_in_an_export_with_a_dynamic_batch(tmp_path) -> None:
    cost = export_onnx(Windows().eval(), tmp_path / "x.onnx", (3, 8, 8), batch=None).cost
    assert (cost.macs, cost.uncounted) == (count_torch_macs(Windows(), (3, 8, 8)).total, ())
    assert cost.macs == 64 * (3 * 8 + 8 * 8 + 2 * 16 * 8) + 40


class Product(nn.Module):
    """One product of (1, 4, 8) and a learned (8, 8)."""

    def __init__(self, multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
        self.multiply = multiply

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x, self.weight)


@pytest.mark.parametrize(
    ("multiply", "macs"),
    [
        (lambda x, w: x @ w[0], 4 * 8),
        (lambda x, w: x[0, 0] @ w, 8 * 8),
        (lambda x, w: x[None] @ torch.stack([w, w, w])[:, None], 3 * 4 * 8 * 8),
        (lambda x, w: torch.mv(x[0], w[0]), 4 * 8),
        (lambda x, w: torch.dot(x[0, 0], w[0]), 8),
        (lambda x, w: torch.vdot(x[0, 0], w[0]), 8),
        (lambda x, w: torch.inner(x, w), 4 * 8 * 8),
        (lambda x, w: torch.addmv(x[0, 0], w, x[0, 1]), 8 * 8),
        (lambda x, w: torch.addmm(w[0], x[0], w), 4 * 8 * 8),
        (lambda x, w: torch.baddbmm(x, x, w[None]), 4 * 8 * 8),
        (lambda x, w: torch.addbmm(x[0], torch.cat([x, x]), torch.stack([w, w])), 2 * 4 * 8 * 8),
        (lambda x, w: torch.tensordot(x, w, 1), 4 * 8 * 8),
        (lambda x, w: torch.tensordot(x, w.reshape(4, 8, 2), ([1, 2], [0, 1])), 4 * 8 * 2),
    ],
)
def test_every_matrix_product_of_torch_is_counted(
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], macs: int
) -> None:
    found = count_torch_macs(Product(multiply), (4, 8))
    assert (found.total, found.uncounted) == (macs, ())


@pytest.mark.parametrize(
    ("multiply", "operator"),
    [
        (lambda x, w: torch.linalg.multi_dot([x[0], w, w]), "linalg_multi_dot"),
        (lambda x, w: torch.linalg.matrix_power(w, 3) + x.sum(), "linalg_matrix_power"),
        (lambda x, w: torch.cdist(x, w[None]), "cdist"),
        (lambda x, w: torch.kron(x[0], w), "kron"),
    ],
)
def test_a_product_of_unknown_cost_is_reported(
    multiply: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], operator: str
) -> None:
    assert count_torch_macs(Product(multiply), (4, 8)).uncounted == (operator,)


class Pooled(nn.Module):
    """(B, 16, 8) → (B, 5): positions pooled by a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query, self.head = nn.Linear(8, 8), nn.Parameter(torch.ones(8)), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x * (x @ self.query).softmax(1)[..., None]).sum(1))


def test_attention_pooling_by_a_learned_vector_is_counted_as_on_the_exported_graph(tmp_path) -> None:
    found = count_torch_macs(Pooled().eval(), (16, 8))
    assert found.total == 16 * 8 * 8 + 16 * 8 + 40
    assert export_onnx(Pooled().eval(), tmp_path / "x.onnx", (16, 8)).cost.macs == found.total


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


def test_a_transposed_convolution_of_a_number_is_not_counted() -> None:
    cost = count_onnx(graph("ConvTranspose", [], (4, 6, 3, 3)))
    assert cost.uncounted
    assert cost.macs == 0
