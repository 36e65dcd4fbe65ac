"""MACs of operators beyond plain convolutions and products, against their closed forms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from lrexport.measure.macs.onnx_macs import count_onnx
from tests.measure.graphs import model, zeros

node = helper.make_node
MICROSOFT = "com.microsoft"


def recurrent(operator: str, gates: int, directions: int = 1) -> onnx.ModelProto:
    """Seven steps of a batch of one, five numbers each, into three of state."""
    direction = "bidirectional" if directions == 2 else "forward"
    made = node(operator, ["x", "w", "r"], ["y"], hidden_size=3, direction=direction)
    weights = {"w": zeros(directions, gates * 3, 5), "r": zeros(directions, gates * 3, 3)}
    return model([made], {"x": [7, 1, 5]}, {"y": None}, weights)


@pytest.mark.parametrize(
    ("made", "macs"),
    [
        (recurrent("LSTM", 4), 7 * 4 * 3 * (5 + 3)),
        (recurrent("GRU", 3, 2), 7 * 2 * 3 * 3 * (5 + 3)),
        (recurrent("RNN", 1), 7 * 3 * (5 + 3)),
    ],
)
def test_every_gate_of_every_step_multiplies_the_input_and_the_state(made: onnx.ModelProto, macs: int) -> None:
    cost = count_onnx(made)
    assert (cost.macs, cost.uncounted) == (macs, ())
    assert cost.nodes[0].params == cost.params


@pytest.mark.parametrize(
    ("shapes", "attributes", "macs"),
    [
        ({"q": [1, 2, 6, 4], "k": [1, 2, 9, 4], "v": [1, 2, 9, 5]}, {}, 2 * 6 * 9 * (4 + 5)),
        ({"q": [1, 4, 6, 8], "k": [1, 2, 9, 8], "v": [1, 2, 9, 8]}, {}, 4 * 6 * 9 * 16),
        ({"q": [1, 6, 8], "k": [1, 9, 8], "v": [1, 9, 8]}, {"q_num_heads": 2, "kv_num_heads": 2}, 2 * 6 * 9 * 8),
    ],
)
def test_attention_is_its_scores_and_their_product_with_the_values(
    shapes: dict[str, list[int]], attributes: dict[str, int], macs: int
) -> None:
    cost = count_onnx(model([node("Attention", list("qkv"), ["y"], **attributes)], shapes, {"y": None}, opset=23))
    assert (cost.macs, cost.uncounted) == (macs, ())


def test_past_keys_are_attended_to_as_well() -> None:
    shapes = {name: [1, 2, 3, 4] for name in "qkv"} | {name: [1, 2, 10, 4] for name in ("pk", "pv")}
    made = node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"])
    assert count_onnx(model([made], shapes, {"y": None}, opset=23)).macs == 2 * 3 * 13 * 8


@pytest.mark.parametrize(
    ("made", "macs", "shape"),
    [
        (node("FusedConv", ["x", "w"], ["y"], activation="Relu"), 8 * 27 * 36, (8, 3, 3, 3)),
        (node("NhwcConv", ["n", "w"], ["y"]), 8 * 27 * 36, (8, 3, 3, 3)),
        (node("FusedMatMul", ["a", "b"], ["y"], transB=1, alpha=0.5), 2 * 5 * 7 * 6, None),
        (node("FusedGemm", ["g", "h"], ["y"], activation="Relu"), 5 * 6 * 7, (6, 7)),
        (node("MatMulNBits", ["t", "p", "s"], ["y"], K=64, N=10, bits=4, block_size=32), 2 * 5 * 64 * 10, (64, 10)),
        (node("MultiHeadAttention", ["t", "u", "u"], ["y"], num_heads=4), 5 * 9 * (64 + 64) * 2, None),
        (node("Attention", ["t", "q"], ["y"], num_heads=4), 2 * 5 * 64 * 192 + 2 * 5 * 5 * 128, (64, 192)),
        (node("GroupQueryAttention", ["t", "v", "v", "", ""], ["y"], num_heads=8, kv_num_heads=2), 2 * 8 * 5 * 5 * 16, None),
    ],
)
def test_operators_of_onnx_runtime_count_as_what_they_stand_for(
    made: onnx.NodeProto, macs: int, shape: tuple[int, ...] | None
) -> None:
    made.domain = MICROSOFT
    shapes = {
        "x": [1, 3, 8, 8], "n": [1, 8, 8, 3], "a": [2, 5, 6], "b": [2, 7, 6], "g": [5, 6],
        "t": [2, 5, 64], "u": [2, 9, 64], "v": [2, 5, 16],
    }  # fmt: skip
    weights = {"w": zeros(8, 3, 3, 3), "h": zeros(6, 7), "q": zeros(64, 192)}
    weights |= {"p": np.zeros((10, 2, 16), np.uint8), "s": zeros(20)}
    # What it makes goes on to a product, whose size tells whether its shape is known.
    after = node("Reshape", ["y", "flat"], ["f"])
    last = node("MatMul", ["f", "one"], ["z"])
    weights |= {"flat": np.array([-1, 1]), "one": zeros(1, 1)}
    cost = count_onnx(model([made, after, last], shapes, {"z": None}, weights, domains=[MICROSOFT]))
    assert cost.uncounted == ()
    first = cost.nodes[0]
    assert (first.macs, first.weight_shape) == (macs, shape)


def test_a_causal_convolution_counts_as_the_depthwise_one_that_it_is() -> None:
    made = node("CausalConvWithState", ["x", "w"], ["y", "state"])
    cost = count_onnx(model([made], {"x": [1, 16, 20]}, {"y": None}, {"w": zeros(16, 1, 4)}, opset=27))
    assert (cost.macs, cost.uncounted) == (16 * 20 * 4, ())


@pytest.mark.parametrize(
    ("made", "opset", "domains", "reason"),
    [
        (node("LinearAttention", list("xxx"), ["y", "z"], q_num_heads=4, kv_num_heads=4), 27, (), "LinearAttention"),
        (node("DFT", ["x"], ["y"]), 17, (), "DFT"),
        (node("Det", ["x"], ["y"]), 17, (), "Det"),
        (node("MoE", ["x", "x", "x"], ["y"], domain=MICROSOFT), 17, (MICROSOFT,), "com.microsoft.MoE"),
        (node("Rfft", ["x"], ["y"], domain=MICROSOFT), 17, (MICROSOFT,), "com.microsoft.Rfft"),
        (node("Conv", ["x"], ["y"], domain="mine"), 17, ("mine",), "mine.Conv"),
        (
            node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml"),
            17,
            ("ai.onnx.ml",),
            "ai.onnx.ml.TreeEnsembleRegressor",
        ),
        (node("NotThereYet", ["x"], ["y"]), 17, (), "NotThereYet"),
    ],
)
def test_what_computes_and_is_not_known_is_said_and_never_0(
    made: onnx.NodeProto, opset: int, domains: tuple[str, ...], reason: str
) -> None:
    cost = count_onnx(model([made], {"x": [1, 8, 8]}, {"y": None}, opset=opset, domains=domains))
    assert cost.uncounted == (reason,)
    assert [unknown.operator for unknown in cost.unknown] == [reason]


def test_every_operator_of_the_standard_is_free_counted_or_left_out_on_purpose() -> None:
    from lrexport.measure.macs.onnx_operators import is_free, rule_of

    left_out = {
        "AffineGrid", "DFT", "Det", "FlexAttention", "If", "ImageDecoder", "LinearAttention", "Loop", "MelWeightMatrix",
        "NegativeLogLikelihoodLoss", "STFT", "Scan", "SequenceMap", "SoftmaxCrossEntropyLoss", "TfIdfVectorizer",
    }  # fmt: skip
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in names if not is_free(node(name, [], [])) and rule_of(node(name, [], [])) is None} <= left_out


def test_a_linear_model_multiplies_every_coefficient_once_a_row() -> None:
    made = node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0] * 12, targets=3)
    cost = count_onnx(model([made], {"x": [5, 4]}, {"y": None}, domains=["ai.onnx.ml"]))
    assert (cost.macs, cost.uncounted) == (5 * 12, ())


def test_a_quantised_lstm_counts_as_one_and_what_follows_knows_its_shape() -> None:
    names = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    made = node("DynamicQuantizeLSTM", names, ["y", "h"], domain=MICROSOFT, hidden_size=3, direction="bidirectional")
    weights: dict[str, np.ndarray] = {
        "w": np.zeros((2, 5, 12), np.int8),
        "r": np.zeros((2, 3, 12), np.int8),
        "m": zeros(3, 2),
    }
    weights |= {name: zeros(2) for name in ("ws", "rs")} | {name: np.zeros(2, np.int8) for name in ("wz", "rz")}
    after = [node("MatMul", ["y", "m"], ["z"]), node("MatMul", ["h", "m"], ["u"])]
    cost = count_onnx(model([made, *after], {"x": [7, 1, 5]}, {"z": None, "u": None}, weights, domains=[MICROSOFT]))
    assert (cost.macs, cost.uncounted) == (7 * 2 * 12 * (5 + 3) + 7 * 2 * 6 + 2 * 6, ())
    assert cost.params == 2 * 12 * (5 + 3) + 6


@pytest.mark.parametrize("shape", [[], [4], [4, 4], [2, 3, 4, 5], [1, 1, 1, 1, 1, 1]])
def test_inputs_of_a_rank_that_an_operator_does_not_take_leave_it_uncounted_or_counted_and_never_fail(
    shape: list[int],
) -> None:
    from lrexport.measure.macs.onnx_operators import _RULES

    names = [f"i{number}" for number in range(8)]
    sizes = {"num_heads": 2, "kv_num_heads": 1, "q_num_heads": 2, "hidden_size": 3, "N": 4, "qkv_hidden_sizes": [4, 4]}
    for domain, operator in _RULES:
        for inputs in (names, names[:1], names[:2], names[:3]):
            made = node(operator, inputs, ["y"], domain=domain, **sizes)
            after = node("MatMul", ["y", "y"], ["z"])
            count_onnx(model([made, after], dict.fromkeys(names, shape), {"z": None}, opset=23, domains=[domain or "d"]))
