"""Which first axis is the batch: what the graph proves, and what counts whole because it may be a sequence."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import NodeProto, helper

from lrexport.measure.macs.onnx_macs import count_onnx
from tests.measure.graphs import model, zeros

node = helper.make_node
CONV = node("Conv", ["x", "w"], ["c"], pads=[1] * 4)
ONE_IMAGE = 8 * 27 * 64


def images(rest: list[NodeProto], **weights: np.ndarray) -> tuple[int, tuple[int | None, ...] | None]:
    """MACs of a convolution over five images and what follows it, and the sizes that they are said to be of."""
    made = model([CONV, *rest], {"x": [5, 3, 8, 8]}, {"y": None}, {"w": zeros(8, 3, 3, 3), **weights})
    cost = count_onnx(made)
    assert not cost.uncounted
    return cost.macs, dict(cost.inputs)["x"]


@pytest.mark.parametrize(
    "rest",
    [
        [node("Relu", ["c"], ["y"])],
        [node("GlobalAveragePool", ["c"], ["p"]), node("Flatten", ["p"], ["f"]), node("Gemm", ["f", "v"], ["y"])],
        [node("ReduceMean", ["c"], ["m"], axes=[2, 3], keepdims=0), node("MatMul", ["m", "v"], ["y"])],
        [node("Reshape", ["c", "rows"], ["t"]), node("Softmax", ["t"], ["s"], axis=-1), node("MatMul", ["s", "t"], ["u"]),
         node("Concat", ["u", "token"], ["y"], axis=1)],
    ],
)  # fmt: skip
def test_a_fixed_batch_of_images_counts_for_one(rest: list[NodeProto]) -> None:
    sizes = {"rows": np.array([5, 8, -1])}
    if any(one.op_type == "MatMul" and one.input[0] == "s" for one in rest):
        rest = [one for one in rest if one.op_type != "MatMul"]
        rest[2].input[0] = "s"
        sizes["token"] = zeros(5, 1, 64)
    macs, counted_for = images(rest, v=zeros(8, 10), **sizes)
    head = 80 if any(one.op_type in ("Gemm", "MatMul") for one in rest) else 0
    assert (macs, counted_for) == (ONE_IMAGE + head, (1, 3, 8, 8))


@pytest.mark.parametrize(
    "rest",
    [
        [node("ReduceMean", ["c"], ["y"], axes=[0], keepdims=0)],
        [node("Transpose", ["c"], ["t"], perm=[1, 0, 2, 3]), node("Softmax", ["t"], ["y"], axis=1)],
        [node("Add", ["c", "frame"], ["y"])],
        [node("CumSum", ["c", "axis"], ["y"])],
        [node("Slice", ["c", "axis", "four", "axis"], ["s"]), node("Relu", ["s"], ["y"])],
        [node("Reshape", ["c", "turned"], ["y"])],
    ],
)
def test_frames_that_the_network_tells_apart_or_mixes_count_whole(rest: list[NodeProto]) -> None:
    numbers = {"frame": zeros(5, 1, 1, 1), "axis": np.array([0]), "four": np.array([4]), "turned": np.array([8, -1])}
    macs, counted_for = images(rest, **numbers)
    assert (macs, counted_for) == (5 * ONE_IMAGE, (5, 3, 8, 8))


@pytest.mark.parametrize("sizes", [[197, 1, 64], ["tokens", 1, 64], ["batch", 197, 64], [197, "batch", 64]])
def test_a_sequence_counts_with_all_of_its_steps_or_is_unknown(sizes: list[int | str]) -> None:
    cost = count_onnx(model([node("MatMul", ["x", "a"], ["y"])], {"x": sizes}, {"y": None}, {"a": zeros(64, 10)}))
    if "tokens" in sizes:
        assert (cost.macs, cost.uncounted) == (0, ("MatMul of unknown shape",))
    else:
        assert (cost.macs, cost.uncounted) == (197 * 64 * 10, ())


def test_a_batch_that_is_given_counts_for_one_image_and_a_sequence_that_is_given_whole() -> None:
    made = model([CONV], {"x": ["N", 3, "H", "W"]}, {"c": None}, {"w": zeros(8, 3, 3, 3)})
    assert count_onnx(made, {"x": (4, 3, 8, 8)}).macs == ONE_IMAGE
    tokens = model([node("MatMul", ["x", "a"], ["y"])], {"x": ["tokens", 1, 64]}, {"y": None}, {"a": zeros(64, 10)})
    assert count_onnx(tokens, {"x": (197, 1, 64)}).macs == 197 * 640
