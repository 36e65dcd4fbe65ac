"""Parameters and bytes of what is stored in few bits, in parts, more than once or beside numbers that are no weights."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.measure.macs.onnx_macs import count_onnx
from tests.measure.graphs import model, zeros

node = helper.make_node
MICROSOFT = "com.microsoft"


def test_scales_and_zero_points_of_a_quantised_convolution_are_not_parameters_and_its_bias_is() -> None:
    scale, zero = np.full((), 0.02, np.float32), np.zeros((), np.int8)
    weights = {
        "w": np.ones((16, 1, 3, 3), np.int8), "ws": np.ones(16, np.float32), "wz": np.zeros(16, np.int8),
        "xs": scale[None], "xz": zero[None], "ys": scale, "yz": zero, "b": np.ones(16, np.int32),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["p"], group=16),
        node("DequantizeLinear", ["p", "ys", "yz"], ["y"]),
    ]
    cost = count_onnx(model(nodes, {"x": [1, 16, 8, 8]}, {"y": None}, weights))
    assert (cost.params, cost.macs) == (16 * 9 + 16, 16 * 9 * 36)


def test_products_of_integers_have_no_parameters_in_their_zero_points() -> None:
    weights = {"w": np.ones((6, 7), np.uint8), "xz": np.zeros(1, np.uint8), "wz": np.zeros(7, np.uint8)}
    made = model([node("MatMulInteger", ["x", "w", "xz", "wz"], ["y"])], {}, {"y": None}, weights)
    made.graph.input.append(helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 6]))
    assert (count_onnx(made).params, count_onnx(made).macs) == (42, 42)


def test_weights_packed_in_blocks_count_by_their_number_and_bytes_as_stored() -> None:
    weights = {"p": np.zeros((10, 2, 16), np.uint8), "s": zeros(20), "z": np.zeros(10, np.uint8)}
    packed = node("MatMulNBits", ["x", "p", "s", "z"], ["y"], domain=MICROSOFT, K=64, N=10, bits=4, block_size=32)
    cost = count_onnx(model([packed], {"x": [1, 64]}, {"y": None}, weights, domains=[MICROSOFT]))
    assert (cost.params, cost.nodes[0].params, cost.nodes[0].bytes) == (640, 640, 320)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(TensorProto.INT4, 4), (TensorProto.UINT4, 4), (TensorProto.FLOAT8E4M3FN, 8), (TensorProto.FLOAT4E2M1, 4)],
)
def test_weights_of_few_bits_are_as_many_as_in_float32(kind: int, bits: int) -> None:
    stored = onnx.TensorProto(name="stored", data_type=kind, dims=(20, 7), raw_data=bytes(20 * 7 * bits // 8))
    made = model(
        [node("DequantizeLinear", ["stored", "scale"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        {"x": [1, 20]}, {"y": None}, {"scale": np.ones((), np.float32)}, opset=23,
    )  # fmt: skip
    made.graph.initializer.append(stored)
    cost = count_onnx(made)
    assert (cost.params, cost.macs, cost.nodes[0].bytes) == (140, 140, 20 * 7 * bits // 8)


def test_a_weight_that_two_nodes_share_counts_once_and_a_sparse_one_by_what_is_stored() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["i"]), node("MatMul", ["i", "s"], ["y"])]
    made = model(nodes, {"x": [1, 6]}, {"y": [1, 7]}, {"w": zeros(6, 6)})
    values = numpy_helper.from_array(np.ones(5, np.float32), "s")
    indices = numpy_helper.from_array(np.arange(5, dtype=np.int64), "at")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6, 7]))
    onnx.checker.check_model(made)
    cost = count_onnx(made)
    assert (cost.params, cost.macs, cost.uncounted) == (36 + 5, 2 * 36 + 42, ())


def test_sizes_limits_and_scales_of_other_operators_are_not_parameters() -> None:
    nodes = [
        node("Resize", ["x", "", "scales"], ["r"]), node("Clip", ["r", "low"], ["c"]),
        node("Pad", ["c", "pads", "with"], ["y"]), node("Constant", [], ["free"], value_floats=[1.0, 2.0]),
    ]  # fmt: skip
    weights = {"scales": np.array([1, 1, 2, 2], np.float32), "low": np.zeros(1, np.float32)}
    weights |= {"pads": np.zeros(8, np.int64), "with": np.zeros(1, np.float32)}
    assert count_onnx(model(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, weights)).params == 2
