"""Operators that choose values by their places, and that find places, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.normal(size=(2, 3, 4)).astype("f")
TIES = RANDOM.integers(0, 3, size=(3, 5)).astype("f")


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("kind", ["i4", "i8"])
def test_gather_takes_negative_places_and_any_shape_of_them(axis: int, kind: str) -> None:
    for places in ([[0, -1], [1, -2]], [1], 0, -1):
        for opset in (11, NEWEST_OPSET):
            agree("Gather", [CUBE, np.array(places, kind)], opset, axis=axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_elements_are_gathered_and_scattered_along_an_axis(axis: int) -> None:
    places = np.array([[[0, -1, 1, 1]] * 3] * 2, "i8") if axis != -1 else np.array([[[3, -1], [0, 1], [2, -2]]] * 2, "i8")
    agree("GatherElements", [CUBE, places], 13, axis=axis)
    distinct = np.array([[[1, 0, 1, -2]]], "i8")
    updates = RANDOM.normal(size=distinct.shape).astype("f")
    agree("ScatterElements", [CUBE, distinct, updates], 13, axis=axis if axis != -1 else 0)
    agree("Scatter", [CUBE, distinct % 2, updates], 9, axis=axis if axis != -1 else 0)
    for how, since in (("add", 16), ("mul", 16), ("max", 18), ("min", 18)):
        agree("ScatterElements", [CUBE, places % 2, CUBE[:, :, : places.shape[2]]], since, axis=axis, reduction=how)


def test_gather_nd_takes_rows_values_and_batches() -> None:
    agree("GatherND", [CUBE, np.array([[0, -1], [1, 0]], "i8")], 13)
    agree("GatherND", [CUBE, np.array([[[0, 1, 2]], [[-1, 0, 3]]], "i8")], 13)
    agree("GatherND", [CUBE, np.array([[[1], [0]], [[2], [-1]]], "i8")], 13, batch_dims=1)
    agree("GatherND", [CUBE, np.array([[[1], [0], [2]], [[3], [-1], [0]]], "i8")], 13, batch_dims=2)


def test_scatter_nd_replaces_and_reduces() -> None:
    rows = np.array([[1, -1], [0, 0]], "i8")
    agree("ScatterND", [CUBE, rows, RANDOM.normal(size=(2, 4)).astype("f")], 11)
    twice = np.array([[[0, 1, 2]], [[0, 1, 2]]], "i8")
    for how, since in (("add", 16), ("mul", 16), ("max", 18), ("min", 18)):
        agree("ScatterND", [CUBE, twice, RANDOM.normal(size=(2, 1)).astype("f")], since, reduction=how)


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("keep", [0, 1])
def test_the_first_or_last_of_equal_extremes_is_found(operator: str, axis: int, keep: int) -> None:
    agree(operator, [TIES], 11, axis=axis, keepdims=keep)
    for last in (0, 1):
        agree(operator, [TIES], 13, axis=axis, keepdims=keep, select_last_index=last)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("largest", [0, 1])
def test_the_top_values_of_ties_are_the_first(axis: int, largest: int) -> None:
    agree("TopK", [TIES, np.array([2], "i8")], 11, outputs=2, axis=axis, largest=largest)
    agree("TopK", [TIES.astype("i8"), np.array([3], "i8")], 13, outputs=2, axis=axis, largest=largest)
    agree("TopK", [TIES, np.array([2], "i8")], 10, outputs=2, axis=axis)
    agree("TopK", [TIES], 7, outputs=2, axis=abs(axis), k=2)


def test_one_hot_has_nothing_for_places_outside() -> None:
    for kind in ("i8", "f4"):
        places = np.array([[0, 2], [-1, 7]], kind)
        for axis in (-1, 0, 1, -2):
            agree("OneHot", [places, np.array(3, kind), np.array([0.5, 2], "f")], 11, axis=axis)
    agree("OneHot", [np.array([1], "i8"), np.array([3], "i8"), np.array([0, 1], "i8")], 9)


def test_places_of_values_and_values_at_places_are_found() -> None:
    agree("NonZero", [TIES], 9)
    agree("NonZero", [TIES > 1], 13)
    chosen = np.array([True, False, True])
    agree("Compress", [TIES, chosen], 9, axis=0)
    agree("Compress", [TIES, chosen], 11, axis=-1)
    agree("Compress", [TIES, chosen], 11)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums_go_either_way_with_or_without_their_own_value(exclusive: int, reverse: int) -> None:
    for axis in (0, -1):
        for kind in ("f4", "i4", "i8"):
            value = TIES.astype(kind)
            agree("CumSum", [value, np.array(axis, "i4")], 11, exclusive=exclusive, reverse=reverse)


@pytest.mark.parametrize("upper", [0, 1])
def test_triangles_are_kept(upper: int) -> None:
    agree("Trilu", [CUBE], 14, upper=upper)
    for shift in (-2, 1, 5):
        agree("Trilu", [CUBE, np.array(shift, "i8")], 14, upper=upper)
