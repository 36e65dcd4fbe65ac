"""A proof, on the graph, that the fixed first axis of its inputs is the batch.

A first size of 197 may be a sequence, one of 16 the frames of a video. It is the batch if a convolution or pooling, whose
first axis is a batch by definition, has it, and every operator from inputs to outputs keeps samples separate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, domain_of
from lrexport.measure.macs.onnx_inputs import inputs_of
from lrexport.measure.macs.onnx_values import Value, attributes_of, names_in

# The first axis is the batch by definition.
_BATCHED = names_in(
    """
    Conv ConvInteger QLinearConv ConvTranspose FusedConv AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool
    GlobalLpPool QLinearAveragePool QLinearGlobalAveragePool
    """
)
_SAMPLEWISE = frozenset(
    ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace", "SpaceToDepth")
)
_PRODUCTS = frozenset(("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "QGemm"))
_UNARY = names_in(
    """
    Abs Cast Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Tanh ThresholdedRelu QuantizeLinear
    DequantizeLinear QLinearSigmoid QLinearLeakyRelu
    """
)
_BROADCAST = names_in("Add Sub Mul Div Max Min Sum Mean Pow PRelu QLinearAdd QLinearMul")
# Operators along one axis, and its default.
_ALONG = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "LayerNormalization": -1,
    "LpNormalization": -1,
    "Concat": None,
    "Split": 0,
    "Gather": 0,
}
_REDUCED = names_in("ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare")


def batch_of(graph: Any, values: Mapping[str, Value]) -> int:
    """The fixed first size of all inputs if it is provably the batch, else 1."""
    shapes = [values.get(item.name, Value()).sizes for item in inputs_of(graph)]
    first = {shape[0] for shape in shapes if shape}
    if len(first) != 1 or not all(shapes):
        return 1
    (size,) = first
    if size <= 1:
        return 1
    samples = {item.name for item in inputs_of(graph)}
    is_shown = False
    for node in graph.node:
        carried = [name for name in node.input if name in samples]
        if not carried:
            continue
        if not _keeps_samples_apart(node, samples, values, size):
            return 1
        is_shown |= node.op_type in _BATCHED
        samples.update(name for name in node.output if name)
    return size if is_shown and all(item.name in samples for item in graph.output) else 1


def _keeps_samples_apart(node: Any, samples: set[str], values: Mapping[str, Value], size: int) -> bool:
    """Whether the first axis of the output holds the samples in the order of the inputs, without mixing them."""
    made = values.get(node.output[0], Value()).shape if node.output else None
    if domain_of(node) not in ("", MICROSOFT) or not made or made[0] is None or made[0] % size:
        return False
    kind, shapes = node.op_type, [values.get(name, Value()).shape for name in node.input]
    if kind in _BATCHED | _SAMPLEWISE:
        return node.input[0] in samples and not any(name in samples for name in node.input[1:])
    if kind in _UNARY:
        return node.input[0] in samples
    if kind in _BROADCAST:
        return all(name in samples or _is_alike_for_all(shape, made) for name, shape in zip(node.input, shapes, strict=True))
    if kind in _PRODUCTS:
        return _is_product_apart(node, samples, shapes, made)
    return _is_axis_apart(node, samples, values, made)


def _is_alike_for_all(shape: Sequence[int | None] | None, made: Sequence[int | None]) -> bool:
    """Whether a constant is broadcast over the first axis. One number per sample would treat samples differently."""
    return shape is not None and (len(shape) < len(made) or shape[0] == 1)


def _is_product_apart(
    node: Any, samples: set[str], shapes: Sequence[Sequence[int | None] | None], made: Sequence[int | None]
) -> bool:
    if attributes_of(node).get("transA", 0) or node.input[0] not in samples:
        return False
    others = [name for name in node.input[1:] if name in samples]
    if not others:
        return shapes[0] is not None and len(shapes[0]) == len(made)
    # If both operands carry samples, only a batch of products keeps them separate.
    return all(shape is not None and len(shape) == len(made) >= 3 for shape in shapes[:2]) and len(node.input) == 2


def _is_axis_apart(node: Any, samples: set[str], values: Mapping[str, Value], made: Sequence[int | None]) -> bool:
    kind, attributes = node.op_type, attributes_of(node)
    given = values.get(node.input[0], Value()).shape
    carried = [name in samples for name in node.input]
    # Constants, such as a class token that is the same for all, may be concatenated along another axis.
    if not given or not (any(carried) if kind == "Concat" else carried[0] and not any(carried[1:])):
        return False
    if kind in _ALONG:
        axis = attributes.get("axis", _ALONG[kind])
        return axis is not None and axis % len(given) != 0
    if kind in _REDUCED:
        axes = attributes.get("axes") or _numbers(node, 1, values)
        return axes is not None and len(axes) > 0 and all(axis % len(given) for axis in axes)
    if kind == "Transpose":
        return next(iter(attributes.get("perm", [1])), 1) == 0
    if kind in ("Slice", "Pad", "Resize"):
        return given[0] == made[0] and not _moves_first_axis(node, kind, attributes, values, len(given))
    # The order of elements is kept, and the first axis of the output is divisible by the batch.
    return kind in ("Flatten", "Reshape", "Squeeze", "Unsqueeze")


def _moves_first_axis(node: Any, kind: str, attributes: Mapping[str, Any], values: Mapping[str, Value], rank: int) -> bool:
    if kind == "Resize":
        return False
    if kind == "Pad":
        pads = attributes.get("pads") or _numbers(node, 1, values)
        return pads is None or len(pads) != 2 * rank or bool(pads[0] or pads[rank])
    axes = attributes.get("axes") or _numbers(node, 3, values)
    return axes is None or any(axis % rank == 0 for axis in axes)


def _numbers(node: Any, position: int, values: Mapping[str, Value]) -> list[int] | None:
    data = values.get(node.input[position], Value()).data if position < len(node.input) else None
    return [int(number) for number in data.reshape(-1)] if data is not None else None
