"""MACs, parameters and bytes of an ONNX graph.

Convention: multiply–accumulates of convolutions and matrix products for one input (whatever the batch); bias,
normalisation, pooling and element-wise operators are not counted; 1 MAC = 2 FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

from lrexport.einsum import einsum_macs
from lrexport.measure.onnx_inputs import inputs_of, sizes_of, with_shapes

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


def count_onnx(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> GraphCost:
    """Cost of a graph for one input, from inferred shapes. ``uncounted`` lists operators that were left out, and why.

    ``shapes`` are sizes of inputs by name. Raises UsageError where they do not fit the graph's.
    """
    import onnx

    model = with_shapes(model, shapes or {})

    graph = onnx.shape_inference.infer_shapes(_with_batch_of_one(model), data_prop=True).graph
    known = {item.name: _shape(item) for item in (*graph.value_info, *graph.input, *graph.output) if _has_shape(item)}
    constants = {name: _constant(tensor, name) for name, tensor in _stored(graph)}
    known |= {name: constant.shape for name, constant in constants.items()}
    origin = _weights(graph, constants)
    batch = _batch(graph, known)
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
        macs = _node_macs(node, known, weight)
        if macs is None:
            uncounted.add(f"{node.op_type} of unknown shape")
        else:
            params = prod(weight) if weight else 0
            nodes.append(NodeCost(node.name, node.op_type, weight, macs // batch, params, size, name))
    return GraphCost(tuple(nodes), _params(model), tuple(sorted(uncounted)))


def _params(model: onnx.ModelProto) -> int:
    """Numbers in the constants that are weights: in floating point, in 8 bits, or of any type that is dequantised.

    Biases of a quantised graph have 32 bits. Its scales and zero points are no weights.
    """
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    kinds |= {TensorProto.INT8, TensorProto.UINT8}
    held = list(bodies(model))
    nodes = [node for body in held for node in body.node]
    dequantised = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
    scales = {name for node in nodes if node.op_type in _SCALED for name in node.input[1:3]}
    return sum(
        prod(tensor.dims)
        for body in held
        for name, tensor in _stored(body)
        if tensor.dims and name not in scales and (tensor.data_type in kinds or name in dequantised)
    )


def bodies(model: onnx.ModelProto) -> Iterator[Any]:
    """All that holds nodes: the graph, the functions, and the graphs inside of both, such as the branches of an If."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop()
        yield body
        for attribute in (attribute for node in body.node for attribute in node.attribute):
            waiting += [attribute.g] if attribute.HasField("g") else attribute.graphs


def _stored(body: Any) -> Iterator[tuple[str, Any]]:
    """Constants with their names: initializers, which a function does not have, and what Constant nodes hold."""
    for tensor in getattr(body, "initializer", ()):
        yield tensor.name, tensor
    for node in body.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            yield node.output[0], node.attribute[0].t


def _first_axis(graph: Any) -> Any:
    """The first size of the first input that has axes: the batch, as a rule. None without one."""
    return next((sizes[0] for item in inputs_of(graph) if (sizes := sizes_of(item))), None)


def _with_batch_of_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy with 1 for a dynamic batch.

    Sizes that follow from it, such as four windows an image, are then inferred; any other unknown one stays unknown.
    """
    batch = _first_axis(model.graph)
    if batch is None or batch.dim_value > 0:
        return model
    fixed = type(model)()
    fixed.CopyFrom(model)
    given = inputs_of(fixed.graph)
    if batch.dim_param:
        everywhere = (*given, *fixed.graph.output, *fixed.graph.value_info)
        same = [size for item in everywhere for size in sizes_of(item) if size.dim_param == batch.dim_param]
    else:  # a size without a name is the batch only where a batch is expected
        first = [sizes_of(item)[0] for item in given if sizes_of(item)]
        same = [size for size in first if size.dim_value <= 0 and not size.dim_param]
    for size in same:
        size.dim_value = 1
    return fixed


def _batch(graph: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """The first axis of the input, where convolutions and an output have it first, too; else the input has no batch."""
    axis = _first_axis(graph)
    size = 1 if axis is None else axis.dim_value
    samples = [shapes.get(node.output[0]) for node in graph.node if node.op_type in _CONVOLUTIONS and node.output]
    results = [shapes.get(item.name) for item in graph.output]
    is_batch = any(shape[0] in (0, size) for shape in results if shape)
    return size if is_batch and all(shape[0] % size == 0 for shape in samples if shape) else 1


def _has_shape(item: Any) -> bool:
    return item.type.tensor_type.HasField("shape")


def _shape(item: Any) -> tuple[int, ...]:
    """Sizes, 0 for an unknown one."""
    return tuple(max(dim.dim_value, 0) for dim in sizes_of(item))


def _constant(tensor: Any, name: str) -> _Constant:
    import onnx

    packed = tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    bits = 4 if packed else 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return _Constant(tuple(tensor.dims), (prod(tensor.dims) * bits + 7) // 8, name)


def _weights(graph: Any, constants: dict[str, _Constant]) -> dict[str, _Constant]:
    """Names that hold a constant weight, also behind DequantizeLinear or Transpose."""
    origin = dict(constants)
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Identity") and node.input[0] in origin:
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
    if output is None or 0 in output:
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
