"""Inference of types, shapes and small contents of a node's outputs from its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, domain_of
from lrexport.measure.macs.onnx_values import (
    MOST_NUMBERS,
    Shape,
    Value,
    attributes_of,
    constant_of,
    like,
    names_in,
    of_data,
    tensor_type,
)

# Operators that compute sizes, axes, indices and conditions. Contents of other results are not needed for a count.
_FOLDED = names_in(
    """
    Abs Add And ArgMax ArgMin Cast CastLike Ceil Clip Compress Concat ConstantOfShape CumSum Div Equal Expand Flatten Floor
    Gather GatherElements GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Mean Min Mod Mul Neg NonZero Not
    Or Pow Range ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Round ScatterElements ScatterND Sign Slice
    Split Sqrt Squeeze Sub Sum Tile TopK Transpose Unsqueeze Where Xor
    """
)
# The results are at most as long as the inputs; their length depends on the contents.
_SHORTENED = frozenset(("Compress", "NonZero"))
# These operators keep the stored weight behind a value.
_PASSED = frozenset(
    ("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
)
# Results of the type of the first input: most nodes of a graph, inferred without onnx.
_UNCHANGED = names_in(
    """
    Abs Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Reciprocal
    Relu Round Selu Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu
    """
)
# Their floating-point contents determine sizes.
_SCALED = frozenset(("Resize", "Upsample", "Range"))
# Characters that the standard allows in an Einsum equation. onnx 1.23 loops forever on others.
_OF_EQUATIONS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.-> ")


@dataclass(frozen=True)
class _Twin:
    """A standard operator with the same output shape as one of ONNX Runtime's own: its name and its inputs."""

    operator: str
    inputs: tuple[int, ...]
    attributes: frozenset[str] = frozenset()


_CONV = frozenset(("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"))
_TWINS: Mapping[str, _Twin] = {
    "FusedConv": _Twin("Conv", (0, 1), _CONV),
    "QLinearConv": _Twin("Conv", (0, 3), _CONV),
    "FusedGemm": _Twin("Gemm", (0, 1), frozenset(("transA", "transB"))),
    "QGemm": _Twin("Gemm", (0, 3), frozenset(("transA", "transB"))),
    "GemmFastGelu": _Twin("MatMul", (0, 1)),
    "MatMulIntegerToFloat": _Twin("MatMul", (0, 1)),
    "MatMulInteger16": _Twin("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": _Twin("MatMul", (0, 1)),
    "QLinearMatMul": _Twin("MatMul", (0, 3)),
    "QLinearAdd": _Twin("Add", (0, 3)),
    "QLinearMul": _Twin("Mul", (0, 3)),
    "QLinearWhere": _Twin("Where", (0, 1, 4)),
    "QLinearAveragePool": _Twin(
        "AveragePool", (0,), frozenset(("auto_pad", "ceil_mode", "kernel_shape", "pads", "strides"))
    ),
    "QLinearGlobalAveragePool": _Twin("GlobalAveragePool", (0,)),
    "Pad": _Twin("Pad", (0, 1), frozenset(("mode",))),
}
# Outputs with the shape of the first input.
_ALIKE = names_in(
    """
    BiasAdd BiasDropout BiasGelu BiasSoftmax CausalConvWithState DequantizeLinear FastGelu Gelu GroupNorm
    GroupQueryAttention LayerNormalization QLinearLeakyRelu QLinearSigmoid QLinearSoftmax QuantizeLinear QuickGelu
    RotaryEmbedding SkipLayerNormalization SkipSimplifiedLayerNormalization SimplifiedLayerNormalization Trilu
    """
)
_LAST = frozenset(("NhwcConv", "NhwcFusedConv"))


@dataclass
class Inference:
    """Infers outputs of single nodes with onnx. ``opsets`` are versions by domain, ``ir_version`` is the file's."""

    opsets: Mapping[str, int]
    ir_version: int
    _schemas: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def _imports(self) -> list[Any]:
        import onnx

        return [onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]

    def outputs(self, node: Any, inputs: Sequence[Value | None]) -> list[Value]:
        """A value for every output of the node, empty if onnx cannot infer it."""
        if node.op_type == "Constant" and domain_of(node) == "":
            return list(constant_of(node)) or [Value()]
        made = self._typed(node, inputs)
        made = self._with_data(node, inputs, made)
        return _with_origin(node, inputs, made)

    def _typed(self, node: Any, inputs: Sequence[Value | None]) -> list[Value]:
        # Before the standard had LayerNormalization, it was ONNX Runtime's own in the standard domain.
        if domain_of(node) == MICROSOFT or (node.op_type in _ALIKE and self._schema(node) is None):
            return self._of_runtime(node, inputs)
        return self._standard(node, inputs)

    def _standard(self, node: Any, inputs: Sequence[Value | None]) -> list[Value]:
        import onnx

        unknown = [Value() for _ in node.output]
        first = inputs[0] if inputs else None
        if node.op_type in _UNCHANGED and first is not None and first.type is not None and len(node.output) == 1:
            return [Value(first.type)]
        schema = self._schema(node)
        if schema is None or _is_endless(node):
            return unknown
        # Two inputs with the same name are one value. An unknown value is declared as a tensor: shapes that depend on
        # other inputs, as for Reshape, are still inferred.
        known = {name: value for name, value in zip(node.input, inputs, strict=False) if name and value is not None}
        types = {name: value.type if value.type is not None else tensor_type(None) for name, value in known.items()}
        data = {
            name: onnx.numpy_helper.from_array(value.data, name)
            for name, value in known.items()
            if value.data is not None and (value.data.dtype.kind != "f" or node.op_type in _SCALED)
        }
        try:
            made = onnx.shape_inference.infer_node_outputs(schema, node, types, data, None, self._imports, self.ir_version)
        except Exception:  # the node does not fit its inputs; the runtime will report it
            return unknown
        return [Value(made[name]) if name and name in made else Value() for name in node.output]

    def _schema(self, node: Any) -> Any:
        import onnx

        domain = domain_of(node)
        key = (domain, node.op_type)
        if key not in self._schemas:
            try:
                self._schemas[key] = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
            except (onnx.defs.SchemaError, TypeError):  # TypeError: a version beyond 32 bits
                self._schemas[key] = None
        return self._schemas[key]

    def _of_runtime(self, node: Any, inputs: Sequence[Value | None]) -> list[Value]:
        """Shapes of ONNX Runtime's own operators, by a standard operator with the same shape or in closed form."""
        rest = [Value() for _ in node.output[1:]]
        first = inputs[0] if inputs else None
        if node.op_type in _ALIKE:
            return [like(first, first.shape if first else None), *rest]
        attributes = attributes_of(node)
        twin = _TWINS.get(node.op_type)
        if node.op_type == "QLinearConcat":
            twin = _Twin("Concat", tuple(range(2, len(inputs), 3)), frozenset(("axis",)))
        if twin is not None and not attributes.get("channels_last", 0):
            return [self._as_twin(node, twin, inputs), *rest]
        if node.op_type == "DynamicQuantizeLSTM":
            return [like(first, shape) for shape in _recurrent(attributes, first.shape if first else None)][
                : len(node.output)
            ]
        return [like(first, _closed_form(node, attributes, inputs)), *rest]

    def _as_twin(self, node: Any, twin: _Twin, inputs: Sequence[Value | None]) -> Value:
        import onnx

        used = [inputs[i] if i < len(inputs) else None for i in twin.inputs]
        names = [f"i{i}" for i in range(len(used))]
        proxy = onnx.helper.make_node(twin.operator, names, ["o"])
        proxy.attribute.extend(a for a in node.attribute if a.name in twin.attributes)
        floats = [like(None, value.shape) if value is not None and value.data is None else value for value in used]
        return Inference({"": max(self.opsets.get("", 1), 13)}, self.ir_version)._standard(proxy, floats)[0]

    def _with_data(self, node: Any, inputs: Sequence[Value | None], made: list[Value]) -> list[Value]:
        import numpy as np

        if domain_of(node) != "" or not made:
            return made
        first = inputs[0] if inputs else None
        if node.op_type in ("Shape", "Size") and first is not None and first.sizes is not None:
            sizes = np.array(first.sizes, np.int64)
            if node.op_type == "Size":
                return [of_data(np.array(prod(first.sizes), np.int64))]
            attributes = attributes_of(node)
            return [of_data(sizes[attributes.get("start", 0) : attributes.get("end", None)])]
        if node.op_type not in _FOLDED or any(value is not None and value.data is None for value in inputs):
            return made
        if node.op_type not in _SHORTENED and not all(_is_small(value) for value in made):
            return made
        return self._evaluated(node, inputs) or made

    def _evaluated(self, node: Any, inputs: Sequence[Value | None]) -> list[Value] | None:
        """The result of onnx's reference implementation for known contents."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        feeds = {name: value.data for name, value in zip(node.input, inputs, strict=False) if name and value is not None}
        opsets = [onnx.helper.make_opsetid("", self.opsets.get("", 1))]
        try:
            body = onnx.helper.make_function("", "folded", list(feeds), list(node.output), [node], opsets)
            results = ReferenceEvaluator(body).run(None, feeds, attributes={})
            return [of_data(result) for result in results]
        except Exception:  # no reference for this version, or unsuitable contents
            return None


def _is_endless(node: Any) -> bool:
    """Whether onnx's inference would loop forever: an Einsum with characters that the standard does not allow."""
    if node.op_type != "Einsum":
        return False
    return any(set(attribute.s) - _OF_EQUATIONS for attribute in node.attribute if attribute.name == "equation")


def _is_small(value: Value) -> bool:
    return value.sizes is not None and prod(value.sizes) <= MOST_NUMBERS


def _with_origin(node: Any, inputs: Sequence[Value | None], made: list[Value]) -> list[Value]:
    """The outputs, the first one with the stored weight behind it."""
    if made and inputs and inputs[0] is not None and node.op_type in _PASSED and inputs[0].constant is not None:
        made[0] = replace(made[0], constant=inputs[0].constant)
    elif made and inputs and node.op_type in ("Mul", "Div", "Add", "Sub") and all(v and v.constant for v in inputs):
        # A weight that is scaled at run time, as in weight normalisation.
        constants = [value.constant for value in inputs if value is not None and value.constant is not None]
        made[0] = replace(made[0], constant=max(constants, key=lambda constant: constant.numbers))
    return made


def _closed_form(node: Any, attributes: Mapping[str, Any], inputs: Sequence[Value | None]) -> Shape | None:
    """Output shapes of ONNX Runtime's own operators without a standard equivalent."""
    shapes = [value.shape if value is not None else None for value in inputs]
    first, second = shapes[0] if shapes else None, shapes[1] if len(shapes) > 1 else None
    if first is None:
        return None
    if node.op_type in ("MatMulNBits", "MatMulBnb4"):
        return (*first[:-1], attributes.get("N"))
    if node.op_type in ("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation") and second is not None:
        return _matrix_product(first, second, attributes)
    if node.op_type in ("Attention", "QAttention") and second is not None and len(second) == 2 and len(first) == 3:
        widths = attributes.get("qkv_hidden_sizes")
        width = widths[-1] if widths else second[1] // 3 if second[1] is not None else None
        return (first[0], first[1], width)
    if node.op_type == "MultiHeadAttention":
        return _multi_head(attributes, shapes)
    if node.op_type in _LAST or node.op_type == "QLinearConv":
        position = 3 if node.op_type == "QLinearConv" else 1
        return _channels_last(attributes, first, shapes[position] if position < len(shapes) else None)
    return None


def _matrix_product(first: Shape, second: Shape, attributes: Mapping[str, Any]) -> Shape | None:
    if len(first) < 2 or len(second) < 2 or attributes.get("transBatchA", 0) or attributes.get("transBatchB", 0):
        return None
    rows = first[-1] if attributes.get("transA", 0) else first[-2]
    columns = second[-2] if attributes.get("transB", 0) else second[-1]
    batches = max(first[:-2], second[:-2], key=len)
    shorter = min(first[:-2], second[:-2], key=len)
    padded = (*(1,) * (len(batches) - len(shorter)), *shorter)
    both = [a if b == 1 else b if a == 1 or a is None else a for a, b in zip(batches, padded, strict=True)]
    return (*both, rows, columns)


def _recurrent(attributes: Mapping[str, Any], first: Shape | None) -> list[Shape | None]:
    """All states, the last state and the last cell state, for an input (steps, batch, features)."""
    hidden = attributes.get("hidden_size")
    if first is None or len(first) != 3 or not isinstance(hidden, int):
        return [None] * 3
    directions = 2 if attributes.get("direction", b"forward") == b"bidirectional" else 1
    last = (directions, first[1], hidden)
    return [(first[0], directions, first[1], hidden), last, last]


def _multi_head(attributes: Mapping[str, Any], shapes: Sequence[Shape | None]) -> Shape | None:
    query = shapes[0]
    if query is None or len(query) not in (3, 5):
        return None
    if len(query) == 5:
        return (query[0], query[1], None if None in query[2:] else (query[2] or 0) * (query[4] or 0))
    value = shapes[2] if len(shapes) > 2 else None
    if value is not None and len(value) == 3:
        return (query[0], query[1], value[2])
    if value is not None and len(value) == 4 and value[3] is not None:
        return (query[0], query[1], attributes.get("num_heads", 0) * value[3])
    return query


def _channels_last(attributes: Mapping[str, Any], first: Shape, kernel: Shape | None) -> Shape | None:
    """The output shape of a convolution over (N, *positions, C)."""
    if kernel is None or len(kernel) != len(first) or attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return None
    count = len(first) - 2
    if count < 1:
        return None
    pads = attributes.get("pads") or [0] * 2 * count
    strides, dilations = (attributes.get(name) or [1] * count for name in ("strides", "dilations"))
    if len(pads) != 2 * count or not len(strides) == len(dilations) == count or 0 in strides:
        return None
    positions: list[int | None] = []
    for axis in range(count):
        size, width = first[1 + axis], kernel[2 + axis]
        if size is None or width is None:
            positions.append(None)
        else:
            free = size + pads[axis] + pads[axis + count] - dilations[axis] * (width - 1) - 1
            positions.append(free // strides[axis] + 1)
    return (first[0], *positions, kernel[0])
