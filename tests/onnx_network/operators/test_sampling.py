"""Resizing, sampling, quantisation and recurrent operators, and those of com.microsoft, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree

RANDOM = np.random.default_rng(0)
PICTURE = RANDOM.normal(size=(2, 3, 7, 5)).astype("f")
COORDINATES = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def floats(*numbers: float) -> Any:
    return np.array(numbers, "f")


def longs(*numbers: int) -> Any:
    return np.array(numbers, "i8")


def is_undecided(coordinates: str, nearest: str) -> bool:
    """Left to ONNX Runtime: it decides ties between two values by roundings that are not known."""
    return (coordinates, nearest) in (
        ("half_pixel_symmetric", "floor"),
        ("half_pixel_symmetric", "ceil"),
        ("asymmetric", "round_prefer_ceil"),
    )


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_finds_the_coordinates_of_every_mode(coordinates: str, mode: str) -> None:
    for opset in (11, 13, 18, 19, NEWEST_OPSET):
        if opset < 19 and coordinates == "half_pixel_symmetric":
            continue
        for nearest in NEAREST if mode == "nearest" else ["floor"]:
            if mode == "nearest" and is_undecided(coordinates, nearest):
                continue
            attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
            no_region = None if opset >= 13 else floats()
            for scales in ((1, 1, 2, 2), (1, 1, 1.7, 0.6), (1, 1, 0.5, 3)):
                agree("Resize", [PICTURE, no_region, floats(*scales)], opset, **attributes)
            for sizes in ((2, 3, 14, 3), (2, 3, 4, 9), (2, 3, 1, 1)):
                empty = None if opset >= 13 else floats()
                agree("Resize", [PICTURE, no_region, empty, longs(*sizes)], opset, **attributes)


@given(
    size=st.integers(2, 40),
    scale=st.floats(0.125, 4, width=32),
    coordinates=st.sampled_from(["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]),
    nearest=st.sampled_from(["round_prefer_floor", "floor", "ceil"]),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    other=st.sampled_from([1.0, 1.1, 2.0]),
)
@settings(max_examples=250, deadline=None)
def test_resized_values_are_onnx_runtimes_for_any_scale(
    size: int, scale: float, coordinates: str, nearest: str, mode: str, other: float
) -> None:
    if int(np.float32(size) * np.float32(scale)) < 1:
        return
    value = np.arange(3 * size, dtype="f").reshape(1, 1, size, 3)
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest, "mode": mode}
    agree("Resize", [value, None, floats(1, 1, scale, other)], 13, closeness=5e-5, **attributes)


def test_resize_takes_axes_policies_and_other_ranks() -> None:
    for mode in ("nearest", "linear"):
        agree("Resize", [PICTURE, None, floats(2, 1.5)], 18, mode=mode, axes=[-2, -1])
        agree("Resize", [PICTURE, None, None, longs(9, 3)], 18, mode=mode, axes=[3, 2])
        agree("Resize", [PICTURE[0], None, floats(1, 1, 1.5)], 19, mode=mode)
        for policy in ("stretch", "not_larger", "not_smaller"):
            for sizes in ((9, 9), (5, 20), (20, 3)):
                made = {"mode": mode, "axes": [2, 3], "keep_aspect_ratio_policy": policy}
                agree("Resize", [PICTURE, None, None, longs(*sizes)], 18, **made)
    for excluding in (0, 1):
        for factor in (-0.5, -0.75):
            made = {"mode": "cubic", "exclude_outside": excluding, "cubic_coeff_a": factor}
            agree("Resize", [PICTURE, None, floats(1, 1, 1.7, 0.6)], 13, **made)


def test_upsample_and_the_first_resize_agree() -> None:
    for mode in ("nearest", "linear"):
        for scales in ((1, 1, 2, 2), (1, 1, 1.7, 1.3), (1, 1, 3, 1)):
            for opset in (7, 8):
                agree("Upsample", [PICTURE], opset, mode=mode, scales=list(map(float, scales)))
            agree("Upsample", [PICTURE, floats(*scales)], 9, mode=mode)
            agree("Resize", [PICTURE, floats(*scales)], 10, mode=mode)
        agree("Resize", [PICTURE, floats(1, 1, 0.3, 0.7)], 10, mode=mode)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("corners", [0, 1])
def test_grids_sample_pictures_and_volumes(padding: str, corners: int) -> None:
    grid = RANDOM.uniform(-1.3, 1.3, size=(2, 4, 3, 2)).astype("f")
    attributes = {"padding_mode": padding, "align_corners": corners}
    for old, new in (("bilinear", "linear"), ("nearest", "nearest"), ("bicubic", "cubic")):
        agree("GridSample", [PICTURE, grid], 16, mode=old, **attributes)
        agree("GridSample", [PICTURE, grid], 20, mode=new, **attributes)
    volume = RANDOM.normal(size=(1, 2, 3, 4, 5)).astype("f")
    places = RANDOM.uniform(-1.3, 1.3, size=(1, 2, 3, 2, 3)).astype("f")
    for mode in ("linear", "nearest"):
        agree("GridSample", [volume, places], 20, mode=mode, **attributes)


def test_affine_grids_agree() -> None:
    for corners in (0, 1):
        agree("AffineGrid", [RANDOM.normal(size=(2, 2, 3)).astype("f"), longs(2, 3, 4, 5)], 20, align_corners=corners)
        agree("AffineGrid", [RANDOM.normal(size=(1, 3, 4)).astype("f"), longs(1, 2, 3, 4, 5)], 20, align_corners=corners)


@pytest.mark.parametrize("kind", ["u1", "i1"])
def test_values_are_quantised_and_back(kind: str) -> None:
    value = (RANDOM.normal(size=(2, 3, 40)) * 30).astype("f")
    zero, zeros = np.array(3, kind), np.array([1, 2, 3], kind)
    for opset in (10, 13, 19, 21):
        agree("QuantizeLinear", [value, np.array(0.25, "f"), zero], opset)
        agree("DequantizeLinear", [value.astype(kind), np.array(0.25, "f"), zero], opset)
        if opset >= 13:
            agree("QuantizeLinear", [value, floats(0.1, 0.2, 0.7), zeros], opset)
            agree("QuantizeLinear", [value.swapaxes(1, 2), floats(0.1, 0.2, 0.7), zeros], opset, axis=-1)
            agree("DequantizeLinear", [value.astype(kind), floats(0.1, 0.2, 0.7), zeros], opset, axis=1)
            agree("DequantizeLinear", [value.astype(kind), floats(0.1, 0.2, 0.7)], opset, axis=-2)


def test_ties_are_quantised_to_even_and_the_type_is_a_byte_without_a_zero() -> None:
    agree("QuantizeLinear", [floats(-1.5, 0.5, 1.5, 2.5, 300), np.array(1, "f")], 13)
    agree("DequantizeLinear", [np.array([-5, 70000], "i4"), np.array(0.5, "f")], 13)
    agree("DynamicQuantizeLinear", [(RANDOM.normal(size=(3, 9)) * 2).astype("f")], 11, outputs=3)


RECURRENT: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"activations": ["Sigmoid", "Tanh", "Tanh"]}),
    ("GRU", {}),
    ("GRU", {"linear_before_reset": 1}),
    ("RNN", {}),
]


@pytest.mark.parametrize(("kind", "attributes"), RECURRENT)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_operators_agree_in_every_direction(kind: str, attributes: dict[str, Any], direction: str) -> None:
    gates, count = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 2 if direction == "bidirectional" else 1
    steps, batch, inputs, hidden = 5, 3, 4, 6
    shapes = ((steps, batch, inputs), (count, gates * hidden, inputs), (count, gates * hidden, hidden))
    value, into, recurrent = (RANDOM.normal(size=shape).astype("f") for shape in shapes)
    bias = RANDOM.normal(size=(count, 2 * gates * hidden)).astype("f")
    states = [RANDOM.normal(size=(count, batch, hidden)).astype("f") for _ in range(2 if kind == "LSTM" else 1)]
    made: dict[str, Any] = {"direction": direction, "hidden_size": hidden, **attributes}
    if "activations" in made:
        made["activations"] = made["activations"] * count
    outputs = 3 if kind == "LSTM" else 2
    full = np.full(batch, steps, "i4")
    for opset in (7, 14, NEWEST_OPSET):
        agree(kind, [value, into, recurrent], opset, outputs, **made)
        agree(kind, [value, into, recurrent, bias], opset, outputs, **made)
        agree(kind, [value, into, recurrent, bias, full, *states], opset, outputs, **made)


def test_operators_of_microsoft_agree() -> None:
    value = RANDOM.normal(size=(2, 3, 4)).astype("f")
    bias, scale = (RANDOM.normal(size=4).astype("f") for _ in range(2))
    made: dict[str, Any] = {"opset": 13, "domain": "com.microsoft"}
    agree("Gelu", [value], **made)
    agree("QuickGelu", [value], **made, alpha=1.5)
    agree("QuickGelu", [value], **made)
    agree("BiasGelu", [value, bias], **made)
    agree("FastGelu", [value, bias], **made, closeness=1e-4)
    agree("FastGelu", [value], **made, closeness=1e-4)
    agree("SkipLayerNormalization", [value, value + 1, scale, bias, bias], **made, epsilon=1e-5)
    other = RANDOM.normal(size=(2, 5, 4)).astype("f")
    agree("FusedMatMul", [value, other], **made, transB=1, alpha=0.5)
    agree("FusedMatMul", [value.swapaxes(1, 2), other.swapaxes(1, 2)], **made, transA=1)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("Relu", []), ("Sigmoid", []), ("Tanh", []), ("LeakyRelu", [0.2]), ("Clip", [-0.5, 0.5]), ("HardSigmoid", [0.3, 0.4])],
)
def test_activations_within_convolutions_agree(name: str, numbers: list[float]) -> None:
    made: dict[str, Any] = {"opset": 13, "domain": "com.microsoft", "activation": name, "pads": [1, 1, 1, 1]}
    if numbers:
        made["activation_params"] = numbers
    weight, bias = RANDOM.normal(size=(4, 3, 3, 3)).astype("f"), RANDOM.normal(size=4).astype("f")
    agree("FusedConv", [PICTURE, weight, bias], **made)
    if not numbers:
        agree("FusedConv", [PICTURE, weight, bias, RANDOM.normal(size=(2, 4, 7, 5)).astype("f")], **made)
