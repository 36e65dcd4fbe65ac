"""Arithmetic, logic and activations against ONNX Runtime, in several opsets and types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree

RANDOM = np.random.default_rng(0)
OPSETS = (7, 9, 11, 13, 17, NEWEST_OPSET)
SPREAD = (RANDOM.normal(size=(2, 3, 4)) * 3).astype("f")
INSIDE = RANDOM.uniform(-0.95, 0.95, size=(2, 3)).astype("f")
POSITIVE = RANDOM.uniform(0.1, 4, size=(2, 3)).astype("f")
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997], "f")
INTEGERS = RANDOM.integers(-9, 9, size=(2, 3)).astype("i8")
NOT_NUMBERS = np.array([1, np.inf, -np.inf, np.nan], "f")

UNARY: list[tuple[str, Any, int]] = [
    *((name, SPREAD, 7) for name in ("Abs", "Ceil", "Cos", "Exp", "Floor", "Neg", "Relu", "Sigmoid", "Sin", "Softplus")),
    *((name, SPREAD, 9) for name in ("Erf", "Sign", "Sinh", "Cosh", "Asinh", "Softsign", "Tanh", "Atan")),
    *((name, INSIDE, 9) for name in ("Acos", "Asin", "Atanh", "Tan")),
    *((name, POSITIVE, 7) for name in ("Log", "Sqrt", "Reciprocal")),
    ("Acosh", POSITIVE + 1, 9),
    ("Round", HALVES, 11),
    ("Mish", SPREAD, 18),
    ("HardSwish", SPREAD, 14),
    ("Abs", INTEGERS, 7),
    ("Neg", INTEGERS, 7),
    ("Sign", INTEGERS, 9),
    ("Relu", INTEGERS.astype("i4"), 14),
    ("IsNaN", NOT_NUMBERS, 9),
    ("Not", SPREAD > 0, 7),
    ("BitwiseNot", INTEGERS.astype("i4"), 18),
    ("BitwiseNot", INTEGERS.astype("u1"), 18),
]


@pytest.mark.parametrize(("operator", "value", "since"), UNARY, ids=lambda each: each if isinstance(each, str) else "")
def test_functions_of_one_input_agree_with_onnx_runtime(operator: str, value: Any, since: int) -> None:
    for opset in OPSETS:
        if opset >= since:
            agree(operator, [value], opset)


BINARY: list[tuple[str, str, int]] = [
    *((name, kind, 7) for name in ("Add", "Sub", "Mul", "Div") for kind in ("f4", "f8", "i4", "i8")),
    ("Pow", "f4", 7),
    ("Pow", "i8", 13),
    *((name, kind, 11) for name in ("Equal", "Greater", "Less") for kind in ("f4", "i4", "i8")),
    *((name, "f4", 13) for name in ("GreaterOrEqual", "LessOrEqual")),
    *((name, "?", 7) for name in ("And", "Or", "Xor", "Equal")),
    *((name, kind, 18) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor") for kind in ("i4", "u1")),
    *((name, kind, 14) for name in ("Add", "Sub", "Mul") for kind in ("i1", "u1")),
]


@pytest.mark.parametrize(("operator", "kind", "since"), BINARY)
def test_functions_of_two_inputs_broadcast_as_onnx_runtime_does(operator: str, kind: str, since: int) -> None:
    one, other = ((RANDOM.uniform(1, 9, size=size)).astype(kind) for size in ((2, 1, 4), (3, 1)))
    if np.dtype(kind).kind in "fi" and operator not in ("Pow", "Mod"):
        one = (one * RANDOM.choice([-1, 1], size=one.shape).astype(kind)).astype(kind)
    if kind == "?":
        one, other = RANDOM.uniform(size=(2, 1, 4)) > 0.5, RANDOM.uniform(size=(3, 1)) > 0.5
    for opset in OPSETS:
        if opset >= since:
            agree(operator, [one, other], opset)


@given(
    one=st.lists(st.integers(-20, 20), min_size=1, max_size=6),
    other=st.integers(-7, 7).filter(bool),
    kind=st.sampled_from(["i4", "i8"]),
    operator=st.sampled_from(["Div", "Mod"]),
    fmod=st.sampled_from([0, 1]),
)
@settings(max_examples=60, deadline=None)
def test_division_and_remainder_of_integers_keep_onnx_runtimes_signs(
    one: list[int], other: int, kind: str, operator: str, fmod: int
) -> None:
    attributes = {"fmod": fmod} if operator == "Mod" else {}
    agree(operator, [np.array(one, kind), np.array([other], kind)], 13, **attributes)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_remainders_of_floats_have_the_sign_of_the_first(kind: str) -> None:
    agree("Mod", [np.array([5.3, -5.3, 5.3, -5.3], kind), np.array([2.1, 2.1, -2.1, -2.1], kind)], 13, fmod=1)


def test_powers_have_the_type_of_their_base() -> None:
    agree("Pow", [POSITIVE, np.array([2], "i8")], 13)
    agree("Pow", [INTEGERS, np.array([2.0], "f")], 13)
    agree("Pow", [INTEGERS.astype("i4"), np.array([3], "i8")], 13)


@pytest.mark.parametrize("operator", ["Min", "Max", "Sum", "Mean"])
def test_functions_of_any_number_of_inputs_agree(operator: str) -> None:
    for opset in (8, 13, NEWEST_OPSET):
        agree(operator, [SPREAD], opset)
        agree(operator, [SPREAD, SPREAD[:1, :, :1], SPREAD[0, 0]], opset)
    if operator in ("Min", "Max"):
        agree(operator, [INTEGERS, INTEGERS[:1]], 13)


ACTIVATIONS: list[tuple[str, dict[str, float], int]] = [
    ("LeakyRelu", {}, 7),
    ("LeakyRelu", {"alpha": 0.3}, 16),
    ("Elu", {"alpha": 1.7}, 7),
    ("Selu", {}, 7),
    ("Selu", {"alpha": 1.2, "gamma": 0.7}, 7),
    ("Celu", {}, 12),
    ("Celu", {"alpha": 2.5}, 12),
    ("ThresholdedRelu", {"alpha": 0.7}, 10),
    ("HardSigmoid", {}, 7),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 7),
    ("Shrink", {"lambd": 0.8, "bias": 0.3}, 9),
]


@pytest.mark.parametrize(("operator", "attributes", "since"), ACTIVATIONS)
def test_activations_use_their_attributes(operator: str, attributes: dict[str, float], since: int) -> None:
    for opset in {since, max(since, 13), NEWEST_OPSET}:
        agree(operator, [SPREAD], opset, **attributes)


def test_prelu_takes_slopes_that_broadcast() -> None:
    for slope in (np.array([0.2], "f"), np.array([[0.1], [0.2], [0.3]], "f"), SPREAD[0]):
        for opset in (7, 9, 16):
            agree("PRelu", [SPREAD, slope], opset)


def test_gelu_has_two_kinds() -> None:
    for kind in ("none", "tanh"):
        agree("Gelu", [SPREAD], 20, approximate=kind)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2])
def test_softmax_flattens_before_opset_13_only(operator: str, axis: int | None) -> None:
    for opset in (7, 11, 12, 13, NEWEST_OPSET):
        if axis is None or axis >= 0 or opset >= 11:
            agree(operator, [SPREAD], opset, **({} if axis is None else {"axis": axis}))


def test_clip_takes_limits_from_attributes_then_from_inputs() -> None:
    for attributes in ({}, {"min": -1.0}, {"max": 1.5}, {"min": -1.0, "max": 1.5}):
        agree("Clip", [SPREAD], 7, **attributes)
    low, high = np.array(-1, "f"), np.array(1.5, "f")
    for limits in ([], [low], [None, high], [low, high], [high, low]):
        for opset in (11, 12, 13):
            agree("Clip", [SPREAD, *limits], opset)
    agree("Clip", [INTEGERS, np.array(-2, "i8"), np.array(3, "i8")], 13)


def test_infinities_are_found_by_their_sign() -> None:
    for low in (0, 1):
        for high in (0, 1):
            agree("IsInf", [NOT_NUMBERS], 10, detect_negative=low, detect_positive=high)


def test_where_broadcasts_all_three() -> None:
    for kind in ("f4", "i8", "i4"):
        one, other = SPREAD.astype(kind), SPREAD[:, :1].astype(kind)
        agree("Where", [SPREAD[:1] > 0, one, other], 9)
