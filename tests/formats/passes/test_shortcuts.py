"""Shortcuts of a strided slice and padded channels become constant convolutions that compute the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lrexport.formats.onnx import export_onnx
from lrexport.formats.passes.apply import with_passes
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.macs.onnx_macs import count_onnx
from lrexport.measure.node_layers import layer_times
from lrexport.networks.cifar_resnet import CifarResNet

LONGEST = np.iinfo(np.int64).max
Strided = tuple[list[int], list[int], list[int], list[int]]  # starts, ends, axes, steps


def graph(
    shape: list[Any],
    slices: list[Strided],
    pads: list[int],
    value: float | None = None,
    also: tuple[str, ...] = (),
    opset: int = 18,
    mode: str = "constant",
) -> onnx.ModelProto:
    """Slices one after another and a Pad of a Relu's result, to which 1 is added; tensors ``also`` are outputs too."""
    nodes, tensors = [helper.make_node("Relu", ["x"], ["t0"])], []

    def held(name: str, content: Any) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(content), name))
        return name

    for number, parts in enumerate(slices):
        named = [held(f"s{number}{place}", np.array(part, np.int64)) for place, part in enumerate(parts)]
        nodes.append(helper.make_node("Slice", [f"t{number}", *named], [f"t{number + 1}"]))
    given_to = [f"t{len(slices)}", held("pads", np.array(pads, np.int64))]
    given_to += [held("value", np.float32(value))] if value is not None else []
    nodes.append(helper.make_node("Pad", given_to, ["padded"], "the pad", mode=mode))
    nodes.append(helper.make_node("Add", [held("one", np.float32(1)), "padded"], ["y"]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape)) for name in ("y", *also)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    model = helper.make_model(
        helper.make_graph(nodes, "shortcut", inputs, outputs, tensors), opset_imports=[helper.make_opsetid("", opset)]
    )
    model.ir_version = 8
    return model


def run(model: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    channels=st.integers(1, 5),
    around=st.tuples(st.integers(0, 4), st.integers(0, 4)).filter(any),
    data=st.data(),
)
def test_any_sizes_steps_and_channels_give_the_same_to_rounding(
    sizes: list[int], channels: int, around: tuple[int, int], data: st.DataObject
) -> None:
    axes = list(range(2, 2 + len(sizes)))
    steps = data.draw(st.lists(st.integers(1, 3), min_size=len(axes), max_size=len(axes)).filter(lambda all: max(all) > 1))
    ends = [data.draw(st.sampled_from([LONGEST, size, size + 3])) for size in sizes]
    whole = ([0] * len(axes), ends, axes, steps)
    one_by_one = [([0], [end], [axis - len(axes) - 2], [step]) for end, axis, step in zip(ends, axes, steps, strict=True)]
    free = data.draw(st.sampled_from([False, True]))
    if free:  # at unknown sizes only such an end is the last one
        whole = (whole[0], [LONGEST] * len(axes), *whole[2:])
        one_by_one = [(first, [LONGEST], axis, step) for first, _, axis, step in one_by_one]
    pads = [0, around[0], *[0] * len(sizes), 0, around[1], *[0] * len(sizes)]
    shape = ["batch", channels, *(f"size{axis}" for axis in axes)] if free else [2, channels, *sizes]
    model = graph(shape, data.draw(st.sampled_from([[whole], one_by_one])), pads, data.draw(st.sampled_from([None, 0.0])))
    made, changed = with_passes(model)
    assert changed == {"shortcuts": 1}
    onnx.checker.check_model(made, full_check=True)
    assert operators(made) == {"Relu": 1, "Conv": 1, "Add": 1}
    x = np.random.default_rng(0).standard_normal((2, channels, *sizes)).astype(np.float32)
    np.testing.assert_allclose(run(made, x), run(model, x), rtol=0, atol=2e-6)


WHOLE: Strided = ([0, 0], [LONGEST, LONGEST], [2, 3], [2, 2])
AROUND = [0, 2, 0, 0, 0, 2, 0, 0]
OTHERS: dict[str, dict[str, Any]] = {
    "channels are cut off": {"pads": [0, -1, 0, 0, 0, 2, 0, 0]},
    "the padding is not zero": {"value": 1.0},
    "the padding repeats the edge": {"mode": "edge"},
    "pixels are padded as well": {"pads": [0, 2, 1, 0, 0, 2, 0, 0]},
    "samples are padded as well": {"pads": [1, 2, 0, 0, 0, 2, 0, 0]},
    "nothing is padded": {"pads": [0] * 8},
    "the first pixel is left out": {"slices": [([1, 0], [LONGEST] * 2, [2, 3], [2, 2])]},
    "the last pixel is left out": {"slices": [([0, 0], [-1, LONGEST], [2, 3], [2, 2])]},
    "pixels are taken backwards": {"slices": [([-1, 0], [-LONGEST, LONGEST], [2, 3], [-2, 2])]},
    "channels are left out": {"slices": [([0, 0], [LONGEST] * 2, [1, 2], [2, 2])]},
    "nothing is left out": {"slices": [([0, 0], [LONGEST] * 2, [2, 3], [1, 1])]},
    "nothing is sliced": {"slices": []},
    "the slice is an output too": {"also": ("t1",)},
    "the result is an output too": {"also": ("padded",)},
    "the number of channels is free": {"shape": [1, "channels", 8, 8]},
    "the last pixel is only known when it runs": {"shape": [1, 4, "h", "w"], "slices": [([0, 0], [8, 8], [2, 3], [2, 2])]},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_what_computes_something_else_stays_as_it_is(change: dict[str, Any]) -> None:
    model = graph(**{"shape": [1, 4, 8, 8], "slices": [WHOLE], "pads": AROUND, **change})
    before = model.SerializeToString(deterministic=True)
    made, changed = with_passes(model)
    assert not changed
    assert made is model
    assert made.SerializeToString(deterministic=True) == before


def test_a_slice_that_something_else_uses_stays_with_its_pad() -> None:
    model = graph([1, 4, 8, 8], [WHOLE], AROUND)
    model.graph.node.append(helper.make_node("Neg", ["t1"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    assert with_passes(model) == (model, {})


def test_a_result_that_is_not_only_added_stays_a_slice_and_a_pad() -> None:
    model = graph([1, 4, 8, 8], [WHOLE], AROUND)
    model.graph.node.append(helper.make_node("Neg", ["padded"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [None] * 4))
    assert with_passes(model) == (model, {})


def test_only_as_many_slices_are_taken_in_as_nothing_else_uses() -> None:
    first, second = ([0], [LONGEST], [2], [2]), ([0], [LONGEST], [3], [2])
    model = graph([1, 4, 8, 8], [first, second], AROUND, also=("t1",))
    made, changed = with_passes(model)
    assert changed == {"shortcuts": 1}
    assert operators(made) == {"Relu": 1, "Slice": 1, "Conv": 1, "Add": 1}
    x = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(made, x), run(model, x), rtol=0, atol=2e-6)


def test_in_older_opsets_too() -> None:
    model = graph([1, 4, 8, 8], [WHOLE], AROUND, opset=13)
    assert with_passes(model)[1] == {"shortcuts": 1}


class Block(nn.Module):
    def __init__(self, taken: str, wider: int = 4) -> None:
        super().__init__()
        self.conv, self.taken, self.wider = nn.Conv2d(3, 4, 3, padding=1), taken, wider
        self.next = nn.Conv2d(4, 4 + wider, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        half = self.wider // 2
        pixels = {
            "slice": lambda: x[:, :, ::2, ::2],
            "slice from the second": lambda: x[:, :, 1::2, 1::2],
            "mean of one": lambda: F.avg_pool2d(x, 1, 2),
            "largest of one": lambda: F.max_pool2d(x, 1, 2),
        }[self.taken]()
        return self.next(x) + F.pad(pixels, (0, 0, 0, 0, half, self.wider - half))


@pytest.mark.parametrize("taken", ["slice", "mean of one", "largest of one"])
@pytest.mark.parametrize("dynamic", [(), ("batch", "height", "width")], ids=["fixed", "free"])
def test_the_exported_file_has_convolutions_and_the_macs_of_torchs_count(
    tmp_path: Path, taken: str, dynamic: tuple[str, ...]
) -> None:
    block = Block(taken).eval()
    done = export_onnx(block, tmp_path / "m.onnx", (3, 10, 14), dynamic=dynamic)
    model = onnx.load(done.path)
    assert operators(model) == {"Conv": 3, "Relu": 1, "Add": 1}
    assert done.passes == {"shortcuts": 1}
    assert done.added_macs == 8 * 4 * 5 * 7
    assert done.cost.macs == count_torch_macs(block, (3, 10, 14)).total
    if dynamic:
        x = torch.randn(2, 3, 22, 18)
        session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], block(x).detach(), rtol=1e-4, atol=1e-5)


def test_an_export_without_passes_keeps_the_slice_and_its_cost(tmp_path: Path) -> None:
    done = export_onnx(Block("slice").eval(), tmp_path / "m.onnx", (3, 10, 14), passes=False)
    assert {"Slice", "Pad"} < {*operators(onnx.load(done.path))}
    assert (done.passes, done.added_macs) == ({}, 0)


def test_a_slice_that_is_no_shortcut_costs_nothing_in_either_count(tmp_path: Path) -> None:
    block = Block("slice from the second").eval()
    done = export_onnx(block, tmp_path / "m.onnx", (3, 10, 14))
    assert (done.passes, done.cost.macs) == ({}, count_torch_macs(block, (3, 10, 14)).total)


def test_a_pass_that_breaks_the_graph_does_not_reach_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(before: int, after: int, channels: int, axes: int) -> npt.NDArray[np.float32]:
        return np.ones((before + channels + after, channels, *(1,) * axes), np.float32)

    monkeypatch.setattr("lrexport.formats.passes.shortcuts._kernel", turned)
    done = export_onnx(Block("slice").eval(), tmp_path / "m.onnx", (3, 10, 14))
    assert (done.passes, done.simplified) == ({}, True)
    assert "Conv" in operators(onnx.load(done.path))


def test_resnet20_keeps_its_blocked_layout_and_its_sums_are_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    done = export_onnx(CifarResNet(20).eval(), tmp_path / "m.onnx", (3, 32, 32))
    assert done.passes == {"shortcuts": 2}
    assert done.added_macs == 2 * 131_072
    assert done.cost.macs == 40_551_040 + 2 * 131_072 == count_onnx(onnx.load(done.path)).macs
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 4
    onnxruntime.InferenceSession(str(done.path), options, providers=["CPUExecutionProvider"])
    optimised = operators(onnx.load(tmp_path / "optimised.onnx"))
    if "ReorderOutput" not in optimised:
        pytest.skip("ONNX Runtime has no blocked layout on this processor")
    assert optimised["ReorderOutput"] == 1
    assert not {"ReorderInput", "Add", "Relu"} & {*optimised}


def test_the_time_of_a_shortcut_belongs_to_no_layer(tmp_path: Path) -> None:
    done = export_onnx(Block("slice").eval(), tmp_path / "m.onnx", (3, 10, 14))
    model = onnx.load(done.path)
    nodes = {node.name: 1.0 for node in model.graph.node if node.op_type == "Conv"}
    assert layer_times(model.graph, nodes) == {"conv": 1.0, "next": 1.0, "": 1.0}
