"""Convolutions and pools with every kind of padding, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree, in_runtime

RANDOM = np.random.default_rng(0)


def picture(*sizes: int) -> Any:
    return RANDOM.normal(size=sizes).astype("f")


WAYS: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1]},
    {"pads": [0, 2, 1, 0], "strides": [2, 1]},
    {"dilations": [2, 1], "pads": [1, 0, 1, 0]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID", "strides": [1, 2]},
]


@pytest.mark.parametrize("way", WAYS)
def test_convolutions_pad_as_onnx_runtime_does(way: dict[str, Any]) -> None:
    weight, bias = picture(6, 2, 3, 2), picture(6)
    for opset in (7, 11, NEWEST_OPSET):
        agree("Conv", [picture(2, 4, 7, 8), weight, bias], opset, group=2, **way)


def test_convolutions_have_one_to_three_axes() -> None:
    agree("Conv", [picture(2, 3, 9), picture(4, 3, 3)], 11, pads=[1, 0], strides=[2])
    agree("Conv", [picture(1, 2, 5, 6, 4), picture(3, 2, 2, 3, 2), picture(3)], 11, pads=[0, 1, 0, 1, 1, 1])


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 1]},
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "output_padding": [1, 0]},
        {"dilations": [2, 1]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [3, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [12, 14]},
        {"strides": [3, 3], "output_shape": [16, 19], "output_padding": [1, 1]},
        {"strides": [3, 3], "output_shape": [18, 21]},
        {"strides": [2, 2], "auto_pad": "VALID"},
        {"group": 2},
    ],
)
def test_transposed_convolutions_cut_and_add_as_onnx_runtime_does(way: dict[str, Any]) -> None:
    for opset in (7, 11, NEWEST_OPSET):
        agree("ConvTranspose", [picture(2, 4, 6, 7), picture(4, 3, 3, 2), picture(3 * way.get("group", 1))], opset, **way)


def test_transposed_convolutions_have_one_to_three_axes() -> None:
    agree("ConvTranspose", [picture(2, 3, 5), picture(3, 4, 3)], 11, strides=[2], pads=[1, 0])
    agree("ConvTranspose", [picture(1, 2, 3, 4, 3), picture(2, 3, 2, 3, 2)], 11, strides=[2, 1, 2])


POOLS: list[dict[str, Any]] = [
    *WAYS[:2],
    {"pads": [0, 1, 2, 0], "strides": [2, 1]},
    WAYS[3],
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID"},
    {"ceil_mode": 1, "strides": [2, 2]},
    {"ceil_mode": 1, "strides": [3, 2], "pads": [1, 1, 1, 0]},
]


@pytest.mark.parametrize("way", POOLS)
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pools_pad_as_onnx_runtime_does(operator: str, way: dict[str, Any]) -> None:
    for opset in (7, 10, 11, 19, NEWEST_OPSET):
        if ("ceil_mode" in way and opset < 10) or ("dilations" in way and opset < (10 if operator == "MaxPool" else 19)):
            continue
        agree(operator, [picture(2, 3, 8, 9)], opset, kernel_shape=[3, 2], **way)
        if operator == "AveragePool":
            agree(operator, [picture(2, 3, 8, 9)], opset, kernel_shape=[3, 2], count_include_pad=1, **way)


@given(
    operator=st.sampled_from(["MaxPool", "AveragePool"]),
    opset=st.sampled_from([10, 11, 19, 22]),
    size=st.integers(3, 12),
    length=st.integers(1, 4),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.integers(0, 1),
    included=st.integers(0, 1),
)
@settings(max_examples=120, deadline=None)
def test_pools_of_any_window_agree_with_onnx_runtime(
    operator: str,
    opset: int,
    size: int,
    length: int,
    stride: int,
    dilation: int,
    pads: tuple[int, int],
    ceil: int,
    included: int,
) -> None:
    assume(max(pads) < length and dilation * (length - 1) + 1 <= size)
    attributes: dict[str, Any] = {"kernel_shape": [length], "strides": [stride], "pads": list(pads), "ceil_mode": ceil}
    if operator == "AveragePool":
        attributes["count_include_pad"] = included
    if dilation > 1 and (operator == "MaxPool" or opset >= 19):
        attributes["dilations"] = [dilation]
    value = picture(1, 2, size)
    expected = in_runtime(operator, [value], opset, attributes, 1, "")[0]
    assume(np.isfinite(expected).all() and np.abs(expected).max() < 1e30)
    agree(operator, [value], opset, **attributes)


def test_pools_have_one_to_three_axes_and_take_bytes() -> None:
    for operator in ("MaxPool", "AveragePool", "LpPool"):
        agree(operator, [picture(2, 3, 9)], 11, kernel_shape=[3], strides=[2])
        agree(operator, [picture(1, 2, 5, 6, 4)], 11, kernel_shape=[2, 3, 2], pads=[0, 1, 0, 1, 0, 0])
    for kind in ("i1", "u1"):
        agree("MaxPool", [(picture(1, 2, 5, 5) * 20).astype(kind)], 12, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("power", [1, 2])
def test_norms_are_pooled(power: int) -> None:
    for way in POOLS[:3]:
        agree("LpPool", [picture(2, 3, 7, 8)], 11, kernel_shape=[3, 2], p=power, **way)
    agree("LpPool", [picture(2, 3, 7, 8)], 18, kernel_shape=[3, 2], p=power, dilations=[2, 1])
    agree("GlobalLpPool", [picture(2, 3, 7, 8)], 7, p=power)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_whole_pictures_are_pooled(operator: str) -> None:
    for sizes in ((2, 3, 5), (2, 3, 5, 4), (1, 2, 3, 4, 5)):
        agree(operator, [picture(*sizes)], 13)
