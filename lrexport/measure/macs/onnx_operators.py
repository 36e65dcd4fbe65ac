"""Multiply–accumulates of single ONNX operators in closed form, and operators that are free by convention.

Matrix products are counted, also in convolutions, recurrent layers and attention. Data movement, element-wise operators,
reductions, normalisation, pooling and resampling are free by convention. Operators in neither list are reported as not
counted: an unknown operator may compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from lrexport.artifacts.onnx_graphs import MICROSOFT, domain_of
from lrexport.einsum import einsum_macs
from lrexport.measure.macs.onnx_values import Value, attributes_of, names_in

_MOVED = """
    Cast CastLike BitCast Compress Concat ConcatFromSequence Constant ConstantOfShape DepthToSpace Dropout Expand EyeLike
    Flatten Gather GatherElements GatherND Identity NonZero OneHot Optional OptionalGetElement OptionalHasElement Pad Range
    Reshape ReverseSequence Scatter ScatterElements ScatterND SequenceAt SequenceConstruct SequenceEmpty SequenceErase
    SequenceInsert SequenceLength Shape Size Slice SpaceToDepth Split SplitToSequence Squeeze TensorScatter Tile Transpose
    Trilu Unique Unsqueeze Where CenterCropPad Col2Im TopK ArgMax ArgMin NonMaxSuppression
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial HannWindow HammingWindow
    BlackmanWindow StringConcat StringNormalizer StringSplit RegexFullMatch
"""
_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos
    Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
    LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu RotaryEmbedding Round Selu Shrink
    Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum SwiGLU Swish Tan Tanh ThresholdedRelu Xor
    QuantizeLinear DequantizeLinear DynamicQuantizeLinear
"""
_REDUCED = """
    CumProd CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare BatchNormalization GroupNormalization InstanceNormalization LRN LayerNormalization LogSoftmax
    LpNormalization MeanVarianceNormalization RMSNormalization SimplifiedLayerNormalization Softmax Hardmax
    AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool MaxRoiPool MaxUnpool RoiAlign GridSample
    Resize Upsample
"""
_MICROSOFT_FREE = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax DequantizeLinear EmbedLayerNormalization ExpandDims FastGelu GatherND Gelu
    GroupNorm IsAllFinite NhwcMaxPool Pad QLinearAdd QLinearAveragePool QLinearConcat QLinearGlobalAveragePool
    QLinearLeakyRelu QLinearMul QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu
    Range RemovePadding RestorePadding RotaryEmbedding SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization Trilu Unique
"""
_ML_FREE = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer LabelEncoder Normalizer
    OneHotEncoder Scaler ZipMap
"""
_FREE: Mapping[str, frozenset[str]] = {
    "": names_in(_MOVED + _ELEMENTWISE + _REDUCED),
    MICROSOFT: names_in(_MICROSOFT_FREE),
    "ai.onnx.ml": names_in(_ML_FREE),
}

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """An operator with its inputs and outputs, as far as known; ``weights`` are the positions of inputs with weights."""

    proto: Any
    inputs: Sequence[Value | None]
    outputs: Sequence[Value]

    @property
    def attributes(self) -> dict[str, Any]:
        return attributes_of(self.proto)

    def given(self, position: int) -> Value | None:
        """An input; None if it is omitted."""
        return self.inputs[position] if position < len(self.inputs) else None

    def sizes(self, position: int) -> Sizes | None:
        """The sizes of an input; None if one of them is unknown or the input is omitted."""
        value = self.given(position)
        return value.sizes if value is not None else None

    def size(self, position: int, axis: int) -> int | None:
        """One size of an input; 0 for an omitted input: no past steps."""
        value = self.given(position)
        if value is None:
            return 0
        shape = value.shape
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    @property
    def result(self) -> Sizes | None:
        """The sizes of the first output."""
        return self.outputs[0].sizes if self.outputs else None


Formula = Callable[[Node, Mapping[str, Any]], int | None]


@dataclass(frozen=True)
class Rule:
    """How an operator is counted, and the positions of its weights among its inputs."""

    macs: Formula
    weights: tuple[int, ...] = (1,)


def is_free(node: Any) -> bool:
    """Whether the operator costs no MACs by convention."""
    return node.op_type in _FREE.get(domain_of(node), ())


def rule_of(node: Any) -> Rule | None:
    """How the operator is counted; None if it is unknown."""
    return _RULES.get((domain_of(node), node.op_type))


def _product(*factors: int | None) -> int | None:
    return None if any(factor is None for factor in factors) else prod(factor for factor in factors if factor is not None)


def _convolution(weight: int = 1, is_channels_last: bool = False) -> Formula:
    """Each weight once per position of the output, (N, C, *positions) or (N, *positions, C)."""

    def macs(node: Node, attributes: Mapping[str, Any]) -> int | None:
        result, kernel = node.result, node.sizes(weight)
        if result is None or kernel is None or len(result) < 2:
            return None
        is_last = is_channels_last or attributes.get("channels_last", 0)
        return result[0] * prod(result[1:-1] if is_last else result[2:]) * prod(kernel)

    return macs


def _transposed(node: Node, _attributes: Mapping[str, Any]) -> int | None:
    """Each weight once per position of the input."""
    given, kernel = node.sizes(0), node.sizes(1)
    return None if not given or kernel is None else given[0] * prod(given[2:]) * prod(kernel)


def _matrix_product(first: int = 0, second: int = 1) -> Formula:
    """The number of output elements times the length of the axis that is summed over."""

    def macs(node: Node, attributes: Mapping[str, Any]) -> int | None:
        result, left = node.result, node.given(first)
        axis = _summed_axis(attributes, left.shape if left else None)
        shared = node.size(first, axis) if left is not None and left.shape is not None else None
        if shared is None and node.given(second) is not None:
            right = node.given(second)
            is_turned = attributes.get("transB", 0)
            rank = len(right.shape) if right is not None and right.shape is not None else 0
            shared = node.size(second, -1 if is_turned or rank == 1 else -2)
        return None if result is None or shared is None else prod(result) * shared

    return macs


def _summed_axis(attributes: Mapping[str, Any], shape: Sequence[int | None] | None) -> int:
    """The summed axis of the left matrix; ``transBatchA`` of FusedMatMul moves a batch's first axis to the last but one."""
    if not attributes.get("transA", 0) or shape is None or len(shape) < 2:
        return -1
    return 0 if attributes.get("transBatchA", 0) else -2


def _packed_product(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """Weights of few bits in blocks, K × N in any layout."""
    result, width = node.result, attributes.get("K")
    return None if result is None or not isinstance(width, int) else prod(result) * width


def _einsum(node: Node, attributes: Mapping[str, Any]) -> int | None:
    shapes = [value.sizes if value else None for value in node.inputs]
    if any(shape is None for shape in shapes):
        return None
    if len(shapes) == 1:
        return 0  # a sum or another order of axes
    equation = attributes.get("equation", b"")
    return einsum_macs(equation.decode(errors="replace"), [shape for shape in shapes if shape is not None])


def _recurrent(gates: int, is_turned: bool = False) -> Formula:
    """Per step and direction, each gate has a product with the input and one with the state.

    The weight is (directions, gates·hidden, input); ``is_turned``: (directions, input, gates·hidden).
    """

    def macs(node: Node, attributes: Mapping[str, Any]) -> int | None:
        given, weight, state = node.sizes(0), node.sizes(1), node.sizes(2)
        if given is None or weight is None or state is None or not len(given) == len(weight) == len(state) == 3:
            return None
        directions, hidden = weight[0], state[1] if is_turned else state[2]
        steps_times_batch = given[0] * given[1]
        return steps_times_batch * directions * gates * hidden * (given[2] + hidden)

    return macs


def _attention(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """The standard's Attention: scores and their product with the values; (B, heads, S, D) or (B, S, heads·D)."""
    query, key, value = node.sizes(0), node.sizes(1), node.sizes(2)
    if query is None or key is None or value is None:
        return None
    if len(query) == len(key) == len(value) == 4:
        batch, heads, length, width = query
        steps, value_width = key[2], value[3]
    elif len(query) == len(key) == len(value) == 3:
        heads, groups = attributes.get("q_num_heads", 0), attributes.get("kv_num_heads", 0)
        if heads < 1 or groups < 1:
            return None
        batch, length, width = query[0], query[1], query[2] // heads
        steps, value_width = key[1], value[2] // groups
    else:
        return None
    return _product(batch, heads, length, _sum(steps, node.size(4, 2)), width + value_width)


def _sum(*parts: int | None) -> int | None:
    return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)


def _multi_head(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """com.microsoft's MultiHeadAttention: inputs separate, keys and values packed, or all packed (B, S, heads, 3, D)."""
    query, heads = node.sizes(0), attributes.get("num_heads", 0)
    if query is None or heads < 1:
        return None
    if len(query) == 5:
        return _product(query[0], heads, query[1], _sum(query[1], node.size(6, 2)), 2 * query[4])
    key, value = node.sizes(1), node.sizes(2)
    if key is None or len(query) != 3:
        return None
    width = query[2] // heads
    if len(key) == 5:
        steps, value_width = key[1], key[4]
    elif value is None or len(key) not in (3, 4) or len(value) not in (3, 4):
        return None
    else:
        steps = key[2] if len(key) == 4 else key[1]
        value_width = value[3] if len(value) == 4 else value[2] // heads
    return _product(query[0], heads, query[1], _sum(steps, node.size(6, 2)), width + value_width)


def _projected_attention(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """com.microsoft's Attention and QAttention, including the projection of the input to queries, keys and values."""
    given, weight = node.sizes(0), node.sizes(1)
    if given is None or weight is None or len(given) != 3 or len(weight) != 2:
        return None
    widths = attributes.get("qkv_hidden_sizes") or [weight[1] // 3] * 3
    if len(widths) != 3:
        return None
    past = node.size(8 if node.proto.op_type == "QAttention" else 4, 3)
    scores = _product(given[0], given[1], _sum(given[1], past), widths[0] + widths[2])
    return _sum(given[0] * given[1] * prod(weight), scores)


def _grouped_attention(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """com.microsoft's GroupQueryAttention over the number of steps in its seventh input, or all if there is no past."""
    query, heads, groups = node.sizes(0), attributes.get("num_heads", 0), attributes.get("kv_num_heads", 0)
    if query is None or len(query) != 3 or heads < 1 or groups < 1:
        return None
    is_packed = node.given(1) is None
    width = query[2] // (heads + 2 * groups if is_packed else heads)
    total = node.given(6)
    if total is not None and total.data is not None and total.data.size == 1:
        steps: int | None = int(total.data.reshape(()))
    else:
        steps = query[1] if node.given(3) is None else None
    return _product(query[0], heads, query[1], steps, 2 * width)


def _linear(node: Node, attributes: Mapping[str, Any]) -> int | None:
    """ai.onnx.ml's linear models: each number of a row once per class or target; weights are attributes."""
    given, coefficients = node.sizes(0), attributes.get("coefficients")
    if not given or coefficients is None:
        return None
    results = len(attributes.get("intercepts", ())) or len(coefficients) // max(given[-1], 1)
    return prod(given) * results


_CONV, _LAST = Rule(_convolution()), Rule(_convolution(is_channels_last=True))
_PRODUCT, _PACKED = Rule(_matrix_product()), Rule(_packed_product)

_RULES: Mapping[tuple[str, str], Rule] = {
    ("", "Conv"): _CONV,
    ("", "ConvInteger"): _CONV,
    ("", "CausalConvWithState"): _CONV,
    ("", "DeformConv"): _CONV,
    ("", "QLinearConv"): Rule(_convolution(3), (3,)),
    ("", "ConvTranspose"): Rule(_transposed),
    ("", "MatMul"): _PRODUCT,
    ("", "MatMulInteger"): _PRODUCT,
    ("", "QLinearMatMul"): Rule(_matrix_product(0, 3), (3,)),
    ("", "Gemm"): _PRODUCT,
    ("", "Einsum"): Rule(_einsum),
    ("", "LSTM"): Rule(_recurrent(4), (1, 2)),
    ("", "GRU"): Rule(_recurrent(3), (1, 2)),
    ("", "RNN"): Rule(_recurrent(1), (1, 2)),
    ("", "Attention"): Rule(_attention, ()),
    ("ai.onnx.ml", "LinearClassifier"): Rule(_linear, ()),
    ("ai.onnx.ml", "LinearRegressor"): Rule(_linear, ()),
    (MICROSOFT, "FusedConv"): _CONV,
    (MICROSOFT, "CausalConvWithState"): _CONV,
    (MICROSOFT, "NhwcConv"): _LAST,
    (MICROSOFT, "NhwcFusedConv"): _LAST,
    (MICROSOFT, "QLinearConv"): Rule(_convolution(3), (3,)),
    (MICROSOFT, "ConvTransposeWithDynamicPads"): Rule(_transposed),
    (MICROSOFT, "FusedMatMul"): _PRODUCT,
    (MICROSOFT, "TransposeMatMul"): _PRODUCT,
    (MICROSOFT, "FusedMatMulActivation"): _PRODUCT,
    (MICROSOFT, "FusedGemm"): _PRODUCT,
    (MICROSOFT, "GemmFastGelu"): _PRODUCT,
    (MICROSOFT, "MatMulIntegerToFloat"): _PRODUCT,
    (MICROSOFT, "MatMulInteger16"): _PRODUCT,
    (MICROSOFT, "DynamicQuantizeMatMul"): _PRODUCT,
    (MICROSOFT, "QLinearMatMul"): Rule(_matrix_product(0, 3), (3,)),
    (MICROSOFT, "QGemm"): Rule(_matrix_product(0, 3), (3,)),
    (MICROSOFT, "MatMulNBits"): _PACKED,
    (MICROSOFT, "MatMulBnb4"): _PACKED,
    (MICROSOFT, "DynamicQuantizeLSTM"): Rule(_recurrent(4, is_turned=True), (1, 2)),
    (MICROSOFT, "MultiHeadAttention"): Rule(_multi_head, ()),
    (MICROSOFT, "Attention"): Rule(_projected_attention),
    (MICROSOFT, "QAttention"): Rule(_projected_attention),
    (MICROSOFT, "GroupQueryAttention"): Rule(_grouped_attention, ()),
}
