"""MACs, parameters and bytes of an ONNX graph.

Convention: multiply–accumulates of convolutions and matrix products for one input (whatever the batch); bias,
normalisation, pooling and element-wise operators are not counted; 1 MAC = 2 FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from lrexport.measure.einsum import einsum_macs

if TYPE_CHECKING:  # who only reads a count that another process made does without onnx
    import onnx

_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "ConvTranspose"}
_PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm", "Einsum"}
# Operators of ONNX Runtime's own domain that do what the standard's of the same name do, or that multiply nothing.
_SCALED = {"QuantizeLinear", "DequantizeLinear"}
_QUANTISED = {"QLinearConv", "QLinearMatMul", *_SCALED}
# Operators that multiply but whose cost is not counted here; they are reported, never ignored silently.
_UNCOUNTED = {"LSTM", "GRU", "RNN", "Attention", "DeformConv", "Loop", "If", "Scan"}


# How weights are named in an exported graph, after their layer: those of a pair, those of int8.
_ENDINGS = ("_quantized", ".weight", ".first", ".second")


@dataclass(frozen=True)
class NodeCost:
    """One node that multiplies: its name, operator, weight's shape (None for a product of activations) and MACs.

    ``bytes`` are those of the weight as it is stored, ``weight`` is its name in the graph.
    """

    name: str
    operator: str
    weight_shape: tuple[int, ...] | None
    macs: int
    params: int
    bytes: int
    weight: str | None = None


class _Constant(NamedTuple):
    """A constant of the graph, its size as it is stored, and its name."""

    shape: tuple[int, ...]
    bytes: int
    name: str


def layer_of(weight: str) -> str:
    """The layer's name from its weight's, the same for both halves of a pair."""
    for ending in _ENDINGS:
        weight = weight.removesuffix(ending)
    return weight


@dataclass(frozen=True)
class GraphCost:
    """``params`` counts weights of every kind, ``uncounted`` names operators whose MACs are unknown."""

    nodes: tuple[NodeCost, ...]
    params: int
    uncounted: tuple[str, ...]

    @property
    def macs(self) -> int:
        return sum(node.macs for node in self.nodes)


def count_onnx(model: onnx.ModelProto) -> GraphCost:
    """Cost of a graph for one input, from inferred shapes. ``uncounted`` lists operators that were left out, and why."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    shapes = {item.name: _shape(item) for item in (*graph.value_info, *graph.input, *graph.output)}
    initial = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    shapes |= {name: constant.shape for name, constant in initial.items()}
    origin = _weights(graph, initial)
    given = [_shape(item) for item in graph.input if item.name not in initial]
    batch = given[0][0] if given and given[0] else 1
    nodes: list[NodeCost] = []
    uncounted: set[str] = set()
    for node in graph.node:
        standard = node.domain in ("", "ai.onnx")
        if node.op_type in _UNCOUNTED or (not standard and node.op_type not in _QUANTISED):
            uncounted.add(node.op_type)  # an operator of a runtime's own may multiply: FusedConv, MatMulNBits, …
        if node.op_type not in _CONVOLUTIONS | _PRODUCTS or not (standard or node.op_type in _QUANTISED):
            continue
        if len(node.input) <= _weight_position(node):
            uncounted.add(f"{node.op_type} without a weight")
            continue
        constant = origin.get(node.input[_weight_position(node)])
        weight, size, name = constant if constant else (None, 0, None)
        macs = _node_macs(node, shapes, weight)
        if macs is None:
            uncounted.add(f"{node.op_type} of unknown shape")
        else:
            params = prod(weight) if weight else 0
            nodes.append(NodeCost(node.name, node.op_type, weight, macs // batch, params, size, name))
    return GraphCost(tuple(nodes), _params(graph), tuple(sorted(uncounted)))


def _params(graph: Any) -> int:
    """Numbers in the constants that are weights: in floating point, in 8 bits, or of any type that is dequantised.

    Biases of a quantised graph have 32 bits. Its scales and zero points are no weights.
    """
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    kinds |= {TensorProto.INT8, TensorProto.UINT8}
    dequantised = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    scales = {name for node in graph.node if node.op_type in _SCALED for name in node.input[1:3]}
    return sum(
        prod(tensor.dims)
        for tensor in graph.initializer
        if tensor.dims and tensor.name not in scales and (tensor.data_type in kinds or tensor.name in dequantised)
    )


def _shape(item: Any) -> tuple[int, ...]:
    """Sizes, with 1 for a dynamic batch (a first dimension without value) and 0 for any other unknown."""
    dims = item.type.tensor_type.shape.dim
    return tuple(max(dim.dim_value, 0) or (1 if index == 0 else 0) for index, dim in enumerate(dims))


def _constant(tensor: Any, name: str | None = None) -> _Constant:
    import onnx

    packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    bits = 4 if packed else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return _Constant(tuple(tensor.dims), (prod(tensor.dims) * bits + 7) // 8, name or tensor.name)


def _weights(graph: Any, initial: dict[str, _Constant]) -> dict[str, _Constant]:
    """Names that hold a constant weight, also behind DequantizeLinear, Transpose or a Constant node."""
    origin = dict(initial)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            origin[node.output[0]] = _constant(node.attribute[0].t, node.output[0])
        elif node.op_type in ("DequantizeLinear", "Identity") and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Transpose" and node.input[0] in origin:
            shape, size, name = origin[node.input[0]]
            permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), range(len(shape))[::-1])
            if sorted(permutation) == list(range(len(shape))):
                origin[node.output[0]] = _Constant(tuple(shape[i] for i in permutation), size, name)
    return origin


def _weight_position(node: Any) -> int:
    return 3 if node.op_type in ("QLinearConv", "QLinearMatMul") else 1


def _node_macs(node: Any, shapes: dict[str, tuple[int, ...]], weight: tuple[int, ...] | None) -> int | None:
    if node.op_type == "Einsum":
        equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
        return einsum_macs(equation, [shapes.get(name, ()) for name in node.input])
    output = shapes.get(node.output[0])
    if not output or 0 in output:
        return None
    second = weight or shapes.get(node.input[_weight_position(node)])
    if not second or 0 in second:
        return None
    if node.op_type == "ConvTranspose":
        source = shapes.get(node.input[0])
        return source[0] * prod(source[2:]) * prod(second) if source and 0 not in source else None
    if node.op_type in _CONVOLUTIONS:
        return output[0] * prod(output[2:]) * prod(second)
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return prod(output) * second[-1]
    return prod(output) * second[-2 if len(second) > 1 else 0]
