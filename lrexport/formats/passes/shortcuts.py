"""A shortcut without parameters, every second pixel with zeros for new channels → one constant 1×1 convolution.

Option A of He et al. 2016 (arXiv 1512.03385, section 4.2) is exported as a strided Slice and a Pad of channels. ONNX Runtime
has neither in its blocked layout: tensors are reordered there and back, and what follows is not fused. ncnn has no strided
slice at all. The kernel has a single 1 for each channel of the input, so the results are equal where inputs are
finite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from lrexport.artifacts.onnx_graphs import SHORTCUT_KERNEL, STANDARD
from lrexport.formats.passes.facts import Facts, attribute, drop_unused, integers

# Pad has its amounts as an input from this opset on; the value then is the third.
_PADS_AS_INPUT = 11
_POOLS = ("AveragePool", "MaxPool")
_CHANNELS = 1
_BEFORE_SPACE = 2  # axes of batch and channels


def convolved_shortcuts(model: onnx.ModelProto) -> int:
    """Replace such shortcuts, in place, and return how many there were.

    A Slice that starts at the first pixel, with steps along axes of space only, or several, or a pooling of single pixels,
    and a Pad of the result with zeros along the channels, are replaced if the result is only added to something, nothing
    else uses what is between them, and the number of channels is known. Sizes and the batch may be free.
    """
    if not any(node.op_type == "Pad" for node in model.graph.node):
        return 0
    facts, replaced = Facts(model), 0
    for place, node in enumerate(list(model.graph.node)):
        made = _convolution(facts, node)
        if made is not None:
            convolution, kernel = made
            model.graph.node.remove(node)
            model.graph.node.insert(place, convolution)
            model.graph.initializer.append(kernel)
            replaced += 1
    if replaced:
        drop_unused(model.graph)
    return replaced


def _convolution(facts: Facts, pad: onnx.NodeProto) -> tuple[onnx.NodeProto, onnx.TensorProto] | None:
    """The convolution for a Pad node and what it pads, with its kernel; None if they are no such shortcut."""
    if pad.op_type != "Pad" or pad.domain not in STANDARD or set(facts.users(pad.output[0])) != {"Add"}:
        return None
    if not facts.is_float32(pad.input[0]):
        return None
    sizes = facts.sizes(pad.input[0])
    channels = sizes[_CHANNELS] if sizes is not None and len(sizes) > _BEFORE_SPACE else None
    if sizes is None or channels is None:
        return None
    around = _zeros_around(facts, pad, len(sizes))
    steps, source = [1] * len(sizes), pad.input[0]
    while around and facts.is_used_once(source):
        node = facts.maker(source)
        taken = None if node is None else _steps(facts, node, len(sizes))
        if node is None or taken is None:
            break
        steps, source = [one * two for one, two in zip(steps, taken, strict=True)], node.input[0]
    if not around or max(steps) == 1:
        return None
    kernel = _kernel(*around, channels, len(sizes) - _BEFORE_SPACE)
    name = f"{pad.output[0]}{SHORTCUT_KERNEL}"
    made = onnx.helper.make_node(
        "Conv", [source, name], [pad.output[0]], name=pad.name, strides=steps[_BEFORE_SPACE:], kernel_shape=kernel.shape[2:]
    )
    return made, onnx.numpy_helper.from_array(kernel, name)


def _kernel(before: int, after: int, channels: int, axes: int) -> npt.NDArray[np.float32]:
    """(before + channels + after, channels, 1, …): each channel of the input goes to one of the output."""
    kernel = np.eye(before + channels + after, channels, -before, np.float32)
    return kernel.reshape(*kernel.shape, *(1,) * axes)


def _zeros_around(facts: Facts, pad: onnx.NodeProto, axes: int) -> tuple[int, int] | None:
    """How many channels of zeros a Pad puts before and after those of its input; None if it does anything else."""
    if attribute(pad, "mode", "constant") != "constant":
        return None
    amounts = integers(facts, pad, 1, "pads")
    if facts.opset < _PADS_AS_INPUT:
        value: Any = attribute(pad, "value", 0.0)
    elif len(pad.input) > 2 and pad.input[2]:
        value = facts.constant(pad.input[2])
    else:
        value = 0.0
    named = integers(facts, pad, 3, "axes") if len(pad.input) > 3 and pad.input[3] else list(range(axes))
    if amounts is None or named is None or value is None or np.any(value) or len(amounts) != 2 * len(named):
        return None
    by_axis = {
        axis % axes: (before, after)
        for axis, before, after in zip(named, amounts[: len(named)], amounts[len(named) :], strict=True)
    }
    around = by_axis.pop(_CHANNELS, (0, 0))
    if any(any(other) for other in by_axis.values()) or min(around) < 0 or not any(around):
        return None
    return around


def _steps(facts: Facts, node: onnx.NodeProto, axes: int) -> list[int] | None:
    """The steps in which a node takes pixels, by axis, from the first to the last; None if it does anything else."""
    if node.domain not in STANDARD:
        return None
    if node.op_type in _POOLS:
        return _pooled_steps(node, axes)
    return _sliced_steps(facts, node, axes) if node.op_type == "Slice" else None


def _pooled_steps(node: onnx.NodeProto, axes: int) -> list[int] | None:
    kernel, pads = attribute(node, "kernel_shape", [0]), attribute(node, "pads", [0])
    if any(size != 1 for size in kernel) or any(pads) or len([name for name in node.output if name]) > 1:
        return None
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attribute(node, "ceil_mode", 0):
        return None
    steps = attribute(node, "strides", [1] * (axes - _BEFORE_SPACE))
    return [1] * _BEFORE_SPACE + list(steps)


def _sliced_steps(facts: Facts, node: onnx.NodeProto, axes: int) -> list[int] | None:
    sizes = facts.sizes(node.input[0])
    starts, ends = integers(facts, node, 1, "starts"), integers(facts, node, 2, "ends")
    if sizes is None or starts is None or ends is None:
        return None
    named = _optional(facts, node, 3, "axes", range(len(starts)))
    by_axis = _optional(facts, node, 4, "steps", [1] * len(starts))
    if named is None or by_axis is None:
        return None
    steps = [1] * axes
    for axis, start, end, step in zip(named, starts, ends, by_axis, strict=True):
        size = sizes[axis % axes]
        first = start == 0 or (size is not None and start == -size)
        is_whole = end >= np.iinfo(np.int32).max or (size is not None and end >= size)
        if not first or not is_whole or step < 1 or (step > 1 and axis % axes < _BEFORE_SPACE):
            return None
        steps[axis % axes] = step
    return steps


def _optional(facts: Facts, node: onnx.NodeProto, place: int, name: str, default: Any) -> list[int] | None:
    """As :func:`integers`, with a default for what is absent."""
    is_given = (len(node.input) > place and node.input[place]) or attribute(node, name) is not None
    return integers(facts, node, place, name) if is_given else list(default)
