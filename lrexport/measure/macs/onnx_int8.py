"""Nodes of a quantised graph that multiply in int8."""

from __future__ import annotations

import onnx

_PRODUCTS = {"MatMul", "Gemm"}


def int8_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the convolutions and matrix products of a QDQ graph that ONNX Runtime computes in int8.

    It does so if both operands come from DequantizeLinear of 8-bit integers and, for a convolution, the result only goes to
    QuantizeLinear. It has no such kernel for ConvTranspose.
    """
    graph = model.graph
    small = {item.name for item in graph.initializer if item.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    dequantised: set[str] = set()
    read_as_float = {item.name for item in graph.output}
    for node in graph.node:
        # The third input is the zero point; its type is that of the integers.
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in small:
            dequantised.update(node.output)
        if node.op_type != "QuantizeLinear":
            read_as_float.update(node.input)
    return {
        node.name
        for node in graph.node
        if dequantised.issuperset(node.input[:2])
        and (node.op_type in _PRODUCTS or (node.op_type == "Conv" and node.output[0] not in read_as_float))
    }
