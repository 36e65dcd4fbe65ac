"""Small ONNX models for timing one layer, or the pair in its place: several copies of the layer.

Copies of a layer whose output has its input's shape form a chain; others are parallel, with outputs added up. The slope
between two numbers of copies is the time of one copy, without overhead: a single layer is 20 to 26 % off, because its input
and output are reordered. Each copy has its own weights, as in a network: constants that the runtime fills when it loads the
file, so files have a few hundred bytes whatever the layer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from lrexport.lowrank.layers.kernels import TRANSPOSED, spec_of
from lrexport.torch_tools.tracing import LayerCall

COPIES = (2, 6)
_OPSET = 18
# Old enough for runtimes on boards.
_IR_VERSION = 8


def layer_model(layers: nn.Module, call: LayerCall, copies: int, batch: int = 1) -> onnx.ModelProto:
    """``copies`` of a layer, or of a pair in an nn.Sequential, each followed by a ReLU, on the input of ``call``."""
    halves: list[Any] = list(layers) if isinstance(layers, nn.Sequential) else [layers]
    shape = _shape(halves[0], spec_of(halves[0]).in_channels, call.input, call.samples * batch)
    result = _shape(halves[-1], spec_of(halves[-1]).out_channels, call.output, call.samples * batch)
    # Means of values of both signs would be small beside the rounding errors of Winograd's kernels, and compared with it.
    nodes = [helper.make_node("Abs", ["x"], ["given"])]
    value, total = "given", ""
    for copy in range(copies):
        hidden = value if shape == result else "given"
        for position, half in enumerate(halves):
            nodes += _nodes(half, hidden, f"h{copy}_{position}", copy)
            hidden = f"h{copy}_{position}"
        value = f"y{copy}"
        nodes.append(helper.make_node("Relu", [hidden], [value]))
        if shape != result:
            nodes += [helper.make_node("Add", [total, value], [f"t{copy}"])] if total else []
            total = f"t{copy}" if total else value
    output = value if shape == result else total
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, result)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _shape(layer: Any, channels: int, positions: tuple[int, ...], samples: int) -> list[int]:
    return [samples, channels] if isinstance(layer, nn.Linear) else [samples, channels, *positions]


def _nodes(layer: Any, given: str, result: str, copy: int) -> Iterable[onnx.NodeProto]:
    """The layer as one node, with its padding before it where that is not zeros, and the constants it needs."""
    weight = list(layer.weight.shape)
    fan_in = max(1, int(np.prod(weight)) // spec_of(layer).out_channels)
    # Roughly averages the input, so that signals neither grow nor become denormal along the chain.
    yield from _constant(f"{result}_w", weight, (1 + 1e-3 * copy) / fan_in)
    inputs = [given, f"{result}_w"]
    if layer.bias is not None:
        yield from _constant(f"{result}_b", [spec_of(layer).out_channels], 1e-3 * (copy + 1))
        inputs.append(f"{result}_b")
    if isinstance(layer, nn.Linear):
        yield helper.make_node("Gemm", inputs, [result], transB=1)
        return
    settings = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation}
    before, after = _padding(layer)
    if isinstance(layer, TRANSPOSED):
        settings["output_padding"] = layer.output_padding
    elif layer.padding_mode != "zeros" and any((*before, *after)):
        pads = [0, 0, *before, 0, 0, *after]
        yield helper.make_node("Constant", [], [f"{result}_p"], value_ints=pads)
        mode = "edge" if layer.padding_mode == "replicate" else "reflect"  # `wrap` costs the same but is not in this opset
        yield helper.make_node("Pad", [given, f"{result}_p"], [f"{result}_x"], mode=mode)
        inputs[0], before, after = f"{result}_x", [0] * len(before), [0] * len(after)
    kind = "ConvTranspose" if isinstance(layer, TRANSPOSED) else "Conv"
    yield helper.make_node(kind, inputs, [result], group=layer.groups, pads=[*before, *after], **settings)


def _padding(layer: Any) -> tuple[list[int], list[int]]:
    """Padding before and after along each axis; for "same" it is uneven if the kernel is even (torch's rule)."""
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size), [0] * len(layer.kernel_size)
    if layer.padding == "same":
        whole = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [total // 2 for total in whole], [total - total // 2 for total in whole]
    return list(layer.padding), list(layer.padding)


def _constant(name: str, shape: list[int], value: float) -> Iterable[onnx.NodeProto]:
    """A tensor filled with one value when the file is loaded."""
    yield helper.make_node("Constant", [], [f"{name}_shape"], value_ints=shape)
    filled = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    yield helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=filled)
