"""Operators that move values, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree, implementation, tensor_type

CUBE = np.arange(2 * 3 * 4, dtype="f").reshape(2, 3, 4)
PICTURE = np.arange(2 * 4 * 6 * 8, dtype="f").reshape(2, 4, 6, 8)


def longs(*numbers: int) -> Any:
    return np.array(numbers, "i8")


@pytest.mark.parametrize("sizes", [(24,), (-1,), (0, -1), (4, 0, -1), (2, 3, 2, 2), (0, 0, 0, 1), (1, 24)])
def test_reshape_copies_and_infers_sizes(sizes: tuple[int, ...]) -> None:
    for opset in (7, 13, NEWEST_OPSET):
        agree("Reshape", [CUBE, longs(*sizes)] if sizes != (4, 0, -1) else [CUBE.reshape(2, 3, 4), longs(4, 3, -1)], opset)


def test_reshape_with_allowzero_makes_empty_tensors() -> None:
    agree("Reshape", [CUBE[:0], longs(3, 0, 2)], 14, allowzero=1)


@pytest.mark.parametrize("order", [None, (0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_transpose_turns_axes_round_without_an_order(order: tuple[int, ...] | None) -> None:
    agree("Transpose", [CUBE], 13, **({} if order is None else {"perm": order}))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_flatten_takes_axes_from_both_ends(axis: int) -> None:
    for opset in (9, 11, 13):
        if axis >= 0 or opset >= 11:
            agree("Flatten", [CUBE], opset, axis=axis)
    agree("Flatten", [CUBE[:0]], 13, axis=abs(axis))


def test_squeeze_and_unsqueeze_take_axes_from_attributes_then_from_inputs() -> None:
    value = CUBE.reshape(1, 2, 1, 12)
    for opset in (7, 11):
        agree("Squeeze", [value], opset)
        agree("Squeeze", [value], opset, axes=[2])
        agree("Unsqueeze", [value], opset, axes=[0, 3])
    agree("Unsqueeze", [value], 11, axes=[-1, 1])
    for opset in (13, NEWEST_OPSET):
        agree("Squeeze", [value], opset)
        agree("Squeeze", [value, longs(0, -2)], opset)
        agree("Unsqueeze", [value, longs(-1, 0, 2)], opset)


@given(
    start=st.integers(-7, 7),
    end=st.one_of(st.integers(-7, 7), st.sampled_from([2**31 - 1, -(2**31) + 1, 2**63 - 1, -(2**63)])),
    step=st.integers(-3, 3).filter(bool),
    axis=st.integers(-2, 1),
)
@settings(max_examples=100, deadline=None)
def test_slice_takes_any_start_end_and_step(start: int, end: int, step: int, axis: int) -> None:
    value = np.arange(15, dtype="f").reshape(3, 5)
    agree("Slice", [value, longs(start), longs(end), longs(axis), longs(step)], 13)


def test_slice_takes_attributes_before_opset_10_and_may_lack_axes() -> None:
    agree("Slice", [CUBE], 9, starts=[0, 1], ends=[1, -1], axes=[0, 2])
    agree("Slice", [CUBE], 7, starts=[1, 0], ends=[9, 2])
    agree("Slice", [CUBE, longs(1, 0), longs(2, 2)], 10)
    agree("Slice", [CUBE, longs(-1), longs(-9), longs(1), longs(-1)], 11)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_joins_along_any_axis(axis: int) -> None:
    agree("Concat", [CUBE, CUBE + 1, CUBE], 13, axis=axis)


def test_split_shares_evenly_unevenly_and_by_sizes() -> None:
    agree("Split", [CUBE], 7, outputs=2, axis=2)
    agree("Split", [CUBE], 11, outputs=3, axis=-2, split=[1, 1, 1])
    agree("Split", [CUBE], 11, outputs=2, axis=2, split=[1, 3])
    agree("Split", [CUBE, longs(3, 1)], 13, outputs=2, axis=-1)
    agree("Split", [CUBE], 13, outputs=2, axis=-1)
    agree("Split", [PICTURE], 18, outputs=3, axis=3, num_outputs=3)


@pytest.mark.parametrize("sizes", [(2, 3, 4), (1, 1, 1), (5, 1, 3, 1), (4,), (7, 2, 3, 4)])
def test_expand_broadcasts_both_ways(sizes: tuple[int, ...]) -> None:
    agree("Expand", [CUBE, longs(*sizes)], 8)
    agree("Expand", [CUBE[:, :1], longs(1, 3, 1)], 13)


def test_tile_repeats_every_axis() -> None:
    agree("Tile", [CUBE, longs(2, 1, 3)], 13)
    agree("Tile", [CUBE, longs(1, 0, 1)], 7)


@given(
    mode=st.sampled_from(["constant", "reflect", "edge", "wrap"]),
    pads=st.lists(st.integers(-2, 3), min_size=4, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_pad_adds_and_removes_in_every_mode(mode: str, pads: list[int]) -> None:
    value = np.arange(20, dtype="f").reshape(1, 4, 5)
    if mode != "constant":  # what ONNX Runtime does when as much is cut off as was added, it does not say
        pads = [abs(pad) for pad in pads]
    agree("Pad", [value, longs(0, *pads[:2], 0, *pads[2:])], 19 if mode == "wrap" else 13, mode=mode)


def test_pad_takes_values_and_axes() -> None:
    agree("Pad", [CUBE], 7, pads=[0, 1, 2, 0, 0, 1], value=1.5)
    agree("Pad", [CUBE], 10, pads=[0, 1, 2, 0, 0, 1], mode="edge")
    agree("Pad", [CUBE, longs(0, 1, 2, 0, 0, 1), np.array(1.5, "f")], 11)
    agree("Pad", [CUBE, longs(1, 2, 0, 3), np.array(-2, "f"), longs(-1, 0)], 18)
    agree("Pad", [CUBE, longs(1, 2), None, longs(1)], 18, mode="reflect")
    agree("Pad", [CUBE.astype("i8"), longs(1, 0, 0, 0, 0, 0), np.array(2**60 + 1, "i8")], 13)
    agree("Pad", [CUBE > 3, longs(1, 0, 0, 0, 0, 0), np.array(True)], 13)


@pytest.mark.parametrize(("start", "end"), [(None, None), (1, None), (-1, None), (0, -1), (-2, 9), (2, 1), (-9, 2)])
def test_shape_may_tell_some_axes_only(start: int | None, end: int | None) -> None:
    chosen = {name: number for name, number in (("start", start), ("end", end)) if number is not None}
    agree("Shape", [CUBE], 15, **chosen)
    agree("Shape", [CUBE], 7)
    agree("Size", [CUBE], 13)


def test_constants_have_their_types() -> None:
    from onnx import helper

    agree("ConstantOfShape", [longs(2, 3)], 9)
    for kind, number in (("INT64", 3), ("INT32", -1), ("BOOL", 1), ("UINT8", 7), ("DOUBLE", 1.5)):
        made = implementation("ConstantOfShape", value=_array(helper.make_tensor("v", tensor_type(kind), [1], [number])))
        assert made is not None
        value = made([_long_tensor(2, 3)])[0]
        assert (value == number).all()
        assert str(value.dtype).removeprefix("torch.") in kind.lower().replace("double", "float64")
    agree("Range", [np.array(1, "f"), np.array(2, "f"), np.array(0.1, "f")], 11)
    agree("Range", [np.array(9, "i8"), np.array(-4, "i8"), np.array(-3, "i8")], 11)
    agree("Range", [np.array(2, "i8"), np.array(-3, "i8"), np.array(1, "i8")], 11)
    agree("Range", [np.array(5, "i4"), np.array(5, "i4"), np.array(1, "i4")], 11)
    agree("EyeLike", [CUBE[0]], 9, k=1)
    agree("EyeLike", [CUBE[0]], 9, dtype=tensor_type("INT32"), k=-1)


def _array(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _long_tensor(*numbers: int) -> Any:
    import torch

    return torch.tensor(numbers)


@given(limits=st.tuples(st.floats(-20, 20, width=32), st.floats(-20, 20, width=32)), step=st.floats(0.125, 4, width=32))
@example(limits=(-(2.0**-47), 1.0), step=1.0)
@settings(max_examples=80, deadline=None)
def test_ranges_of_floats_have_onnx_runtimes_length(limits: tuple[float, float], step: float) -> None:
    agree("Range", [np.array(number, "f") for number in (*limits, step)], 11)


@pytest.mark.parametrize("source", ["f4", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("target", ["FLOAT", "INT8", "UINT8", "INT16", "INT32", "INT64", "BOOL"])
def test_casts_truncate_and_tell_zero_from_the_rest(source: str, target: str) -> None:
    value = np.array([0, 0.3, 1.9, 100.7], "f").astype(source)
    for opset in (9, 13, NEWEST_OPSET):
        agree("Cast", [value], opset, to=tensor_type(target))
    agree("CastLike", [value, np.zeros(1, {"FLOAT": "f"}.get(target, target.lower()))], 19)


def test_space_goes_into_depth_and_back() -> None:
    for mode in ("DCR", "CRD"):
        agree("DepthToSpace", [PICTURE], 11, blocksize=2, mode=mode)
    agree("DepthToSpace", [PICTURE], 7, blocksize=2)
    agree("SpaceToDepth", [PICTURE], 13, blocksize=2)


def test_dropout_does_nothing() -> None:
    agree("Dropout", [CUBE], 7, ratio=0.4)
    agree("Dropout", [CUBE], 10)
    agree("Dropout", [CUBE], 12, outputs=2)
    agree("Dropout", [CUBE, np.array(0.4, "f"), np.array(False)], 13, outputs=2)
