"""The number of parameters of an ONNX model: the numbers in its constants that are weights, in any storage format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, bodies, domain_of
from lrexport.measure.macs.onnx_values import attributes_of

# Inputs with scales, zero points, sizes and limits, which are not weights.
_SETTINGS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "QuantizeLinear"): (1, 2),
    ("", "DequantizeLinear"): (1, 2),
    ("", "QLinearConv"): (1, 2, 4, 5, 6, 7),
    ("", "QLinearMatMul"): (1, 2, 4, 5, 6, 7),
    ("", "ConvInteger"): (2, 3),
    ("", "MatMulInteger"): (2, 3),
    ("", "Resize"): (1, 2, 3),
    ("", "Upsample"): (1,),
    ("", "Clip"): (1, 2),
    ("", "Pad"): (1, 2, 3),
    ("", "OneHot"): (1, 2),
    ("", "NonMaxSuppression"): (2, 3, 4),
    (MICROSOFT, "QuantizeLinear"): (1, 2),
    (MICROSOFT, "DequantizeLinear"): (1, 2),
    (MICROSOFT, "QLinearConv"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearMatMul"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QGemm"): (1, 2, 4, 5, 7, 8),
    (MICROSOFT, "QLinearAdd"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearMul"): (1, 2, 4, 5, 6, 7),
    (MICROSOFT, "QLinearWhere"): (2, 3, 5, 6, 7, 8),
    (MICROSOFT, "QAttention"): (3, 4, 6, 7),
    (MICROSOFT, "DynamicQuantizeMatMul"): (2, 3),
    (MICROSOFT, "MatMulIntegerToFloat"): (2, 3, 4, 5),
    (MICROSOFT, "DynamicQuantizeLSTM"): (8, 9, 10, 11),
    (MICROSOFT, "MatMulNBits"): (2, 3, 4),
    (MICROSOFT, "MatMulBnb4"): (2,),
    (MICROSOFT, "GatherBlockQuantized"): (2, 3),
    (MICROSOFT, "Pad"): (1, 2, 3),
}
_ONE_QUANTISED = ("AveragePool", "GlobalAveragePool", "LeakyRelu", "ReduceMean", "Sigmoid", "Softmax")
# Inputs with weights or biases of a quantised operator, in any number of bits: biases have 32.
_WEIGHTS: Mapping[tuple[str, str], tuple[int, ...]] = {
    ("", "DequantizeLinear"): (0,),
    (MICROSOFT, "DequantizeLinear"): (0,),
    ("", "QLinearConv"): (3, 8),
    ("", "ConvInteger"): (1,),
    ("", "MatMulInteger"): (1,),
    (MICROSOFT, "QLinearConv"): (3, 8),
    (MICROSOFT, "QGemm"): (3, 6),
}


def count_params(model: Any) -> int:
    """Numbers in constants that are weights: floating-point, of 8 bits or fewer, or of any type that is dequantised.

    A constant used by several nodes counts once, a sparse one by its stored values.
    """
    held = list(bodies(model))
    nodes = [node for body in held for node in body.node]
    settings = {name for node in nodes for name in _settings(node)}
    weights = {name for node in nodes for name in _named(node, _WEIGHTS)}
    packed = {name: count for node in nodes for name, count in _packed(node)}
    kinds = _kinds()
    return sum(
        packed.get(name, count)
        for body in held
        for name, kind, count in _stored(body)
        if name not in settings and (kind in kinds or name in weights)
    )


def _stored(body: Any) -> Iterator[tuple[str, int, int]]:
    """Name, type and size of constants with axes: initializers, which functions do not have, and Constant nodes."""
    from onnx import TensorProto

    for tensor in getattr(body, "initializer", ()):
        if tensor.dims:
            yield tensor.name, tensor.data_type, prod(tensor.dims)
    for tensor in getattr(body, "sparse_initializer", ()):
        yield tensor.values.name, tensor.values.data_type, prod(tensor.values.dims)
    for node in body.node:
        if node.op_type != "Constant" or domain_of(node) != "":
            continue
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.dims:
                yield node.output[0], attribute.t.data_type, prod(attribute.t.dims)
            elif attribute.name == "sparse_value":
                values = attribute.sparse_tensor.values
                yield node.output[0], values.data_type, prod(values.dims)
            elif attribute.name == "value_floats":
                yield node.output[0], TensorProto.FLOAT, len(attribute.floats)


def _kinds() -> frozenset[int]:
    """Whether a data type is one of weights."""
    from onnx import TensorProto

    names = ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"]
    known = TensorProto.DataType.keys()
    return frozenset(TensorProto.DataType.Value(name) for name in known if name in names or name.startswith("FLOAT8"))


def _settings(node: Any) -> Iterator[str]:
    if domain_of(node) == MICROSOFT and node.op_type == "QLinearConcat":
        yield from (name for i, name in enumerate(node.input) if i % 3 != 2)
    elif domain_of(node) == MICROSOFT and node.op_type.removeprefix("QLinear") in _ONE_QUANTISED:
        yield from node.input[1:]
    else:
        yield from _named(node, _SETTINGS)


def _named(node: Any, table: Mapping[tuple[str, str], tuple[int, ...]]) -> Iterator[str]:
    for position in table.get((domain_of(node), node.op_type), ()):
        if position < len(node.input) and node.input[position]:
            yield node.input[position]


def _packed(node: Any) -> Iterator[tuple[str, int]]:
    """The number of weights of few bits that are packed in bytes."""
    if domain_of(node) == MICROSOFT and node.op_type in ("MatMulNBits", "MatMulBnb4") and len(node.input) > 1:
        attributes = attributes_of(node)
        if isinstance(attributes.get("K"), int) and isinstance(attributes.get("N"), int):
            yield node.input[1], attributes["K"] * attributes["N"]
