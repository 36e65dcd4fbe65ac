"""Reductions, normalisation and products against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.onnx_network.operators.oracle import NEWEST_OPSET, agree

RANDOM = np.random.default_rng(0)
CUBE = RANDOM.normal(size=(2, 3, 4)).astype("f")
PICTURE = RANDOM.normal(size=(2, 6, 4, 5)).astype("f")
CHANNELS = [RANDOM.uniform(0.5, 2, size=6).astype("f") for _ in range(4)]

REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, (0,), (-1,), (0, -2), (0, 1, 2)])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_take_axes_from_attributes_then_from_inputs(name: str, axes: tuple[int, ...] | None, keep: int) -> None:
    value = np.abs(CUBE) if name == "LogSum" else CUBE
    since = 13 if name == "Sum" else 18
    for opset in (7, 11, 13, 17, 18, NEWEST_OPSET):
        if axes is not None and min(axes) < 0 and opset < 11:
            continue
        if opset >= since:
            more = [] if axes is None else [np.array(axes, "i8")]
            agree(f"Reduce{name}", [value, *more], opset, keepdims=keep)
        else:
            agree(f"Reduce{name}", [value], opset, keepdims=keep, **({} if axes is None else {"axes": list(axes)}))


def test_reductions_of_integers_stay_integers() -> None:
    value = RANDOM.integers(-9, 9, size=(3, 4)).astype("i4")
    for name in ("Sum", "Max", "Min", "Prod", "L1", "SumSquare", "Mean"):
        agree(f"Reduce{name}", [value, np.array([1], "i8")] if name == "Sum" else [value], 13)
    agree("ReduceMax", [value.astype("u1")], 13)
    agree("ReduceMax", [value > 0, np.array([1], "i8")], 20)


@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "Min", "Prod", "LogSumExp"])
def test_no_axes_may_mean_nothing_to_do(name: str) -> None:
    agree(f"Reduce{name}", [CUBE], 18, noop_with_empty_axes=1)
    agree(f"Reduce{name}", [CUBE, np.array([], "i8")], 18, noop_with_empty_axes=1)
    agree(f"Reduce{name}", [CUBE, np.array([], "i8")], 18)
    agree(f"Reduce{name}", [CUBE, np.array([1], "i8")], 18, noop_with_empty_axes=1)


def test_norms_of_networks_agree() -> None:
    for opset in (7, 9, 14, 15, NEWEST_OPSET):
        agree("BatchNormalization", [PICTURE, *CHANNELS], opset, epsilon=1e-3)
    agree("BatchNormalization", [PICTURE[:, :, 0, 0], *CHANNELS], 9)
    for value in (PICTURE, PICTURE[..., 0], PICTURE[:, :, :1, :1]):
        agree("InstanceNormalization", [value, *CHANNELS[:2]], 7, closeness=2e-5)
    for size in (1, 3, 5):
        agree("LRN", [PICTURE], 13, size=size, alpha=0.3, beta=0.6, bias=1.5)
    agree("MeanVarianceNormalization", [PICTURE], 13)
    agree("MeanVarianceNormalization", [PICTURE], 9, axes=[0, 1])


@pytest.mark.parametrize("axis", [-1, 1, 2, -3])
def test_layer_norms_start_at_any_axis_and_may_give_their_statistics(axis: int) -> None:
    scale, bias = (RANDOM.normal(size=PICTURE.shape[axis:]).astype("f") for _ in range(2))
    agree("LayerNormalization", [PICTURE, scale, bias], 17, axis=axis)
    agree("LayerNormalization", [PICTURE, scale], 17, outputs=3, axis=axis, epsilon=1e-3)
    agree("RMSNormalization", [PICTURE, scale], 23, axis=axis)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_group_norms_scale_groups_and_later_channels(groups: int) -> None:
    agree("GroupNormalization", [PICTURE, CHANNELS[0][:groups], CHANNELS[1][:groups]], 18, num_groups=groups)
    agree("GroupNormalization", [PICTURE, *CHANNELS[:2]], 21, num_groups=groups)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("axis", [0, -1, 2])
def test_vectors_are_divided_by_their_norm_and_zeros_stay(power: int, axis: int) -> None:
    agree("LpNormalization", [CUBE], 7, p=power, axis=axis)
    agree("LpNormalization", [np.zeros_like(CUBE)], NEWEST_OPSET, p=power, axis=axis)


def test_products_broadcast_and_turn() -> None:
    for one, other in (((3, 4), (4, 2)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (4, 2)), ((2, 3, 4), (4,)), ((4,), (4,))):
        for opset in (9, 13):
            agree("MatMul", [RANDOM.normal(size=one).astype("f"), RANDOM.normal(size=other).astype("f")], opset)
    agree("MatMul", [RANDOM.integers(-9, 9, size=(2, 3)), RANDOM.integers(-9, 9, size=(3, 2))], 13)
    for turn_one in (0, 1):
        for turn_other in (0, 1):
            one = RANDOM.normal(size=(4, 3) if turn_one else (3, 4)).astype("f")
            other = RANDOM.normal(size=(2, 4) if turn_other else (4, 2)).astype("f")
            for added in ((2,), (3, 1), (1,), (3, 2), ()):
                bias = RANDOM.normal(size=added).astype("f")
                settings: dict[str, Any] = {"transA": turn_one, "transB": turn_other, "alpha": 0.5, "beta": 1.5}
                agree("Gemm", [one, other, bias], 9, **settings)
    agree("Gemm", [one, other], 11, transA=1, transB=1)


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("ij,jk->ik", ((2, 3), (3, 4))),
        ("ij, jk", ((2, 3), (3, 4))),
        ("...ij,...jk->...ik", ((2, 2, 3), (2, 3, 4))),
        ("bhid,bhjd->bhij", ((2, 2, 3, 4), (2, 2, 5, 4))),
        ("ii->i", ((3, 3),)),
        ("ij->ji", ((2, 3),)),
        ("i,i->", ((4,), (4,))),
    ],
)
def test_sums_of_einstein_agree(equation: str, sizes: tuple[tuple[int, ...], ...]) -> None:
    agree("Einsum", [RANDOM.normal(size=size).astype("f") for size in sizes], 12, equation=equation)
