"""Nodes of convolutions and matrix products with constant weights as plain torch layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.artifacts.onnx_graphs import all_graphs, domain_of
from lrexport.onnx_network.body import Address, Body, Step
from lrexport.onnx_network.operators.convolutions import AUTOMATIC

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# A kernel of more weights is kept in the graph; products of shapes of 1 or 2 values are no layers.
_LEAST_WEIGHTS = 2


@dataclass(frozen=True)
class Form:
    """What a node does around its module.

    ``padded``: zeros go around the input before the module is called, as torch pads both sides alike; ``cut`` are the
    values that are cut off each axis of the output, before and after. ``left``: a product W x, whose module takes and gives
    the transposed; ``turned``: Gemm transposes its input. ``added`` is a tensor that is added afterwards, times ``times``.
    """

    padded: bool = False
    cut: tuple[tuple[int, int], ...] = ()
    left: bool = False
    turned: bool = False
    added: str | None = None
    times: float = 1.0


_PLAIN = Form()
_EMPTY = nn.Module()


@dataclass(frozen=True)
class Layer:
    """A node that is a module of the network at ``path``.

    ``weight`` and ``bias`` are the names of its tensors in the graph, ``origin`` the name of the tensor in the file.
    """

    path: str
    kind: str
    address: Address
    form: Form
    weight: str
    bias: str | None
    origin: str


@dataclass(frozen=True)
class Made:
    """A module for a node, before it has a path."""

    module: nn.Module
    form: Form
    weight: str
    bias: str | None


def module_of(step: Step, body: Body, shared: Callable[[str, Tensor], nn.Parameter]) -> Made | str | None:
    """The module of a node, the reason why it stays in the graph, or None if it is none of these layers.

    ``shared`` gives the parameter for a tensor of the file, the same for the same tensor and form.
    """
    kind = step.facts.operator
    if kind not in LAYERS or step.facts.domain:
        return None
    return {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _mat_mul}[kind](step, body, shared)


_Shared = Callable[[str, Tensor], nn.Parameter]


def _weight(step: Step, body: Body, place: int = 1) -> Tensor | str:
    weight = body.constant(step.needs[place])
    if weight is None:
        return "its weight is computed by the graph"
    if body.is_sparse(step.needs[place]):
        return "its weight is sparse: a pair would have no zeros"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}"
    return weight


def _bias(step: Step, body: Body, outputs: int) -> tuple[str | None, Tensor | None] | str:
    name = step.needs[2] if len(step.needs) > 2 else ""
    if not name:
        return None, None
    bias = body.constant(name)
    if bias is None:
        return "its bias is computed by the graph"
    if bias.numel() not in (1, outputs) or (bias.ndim and bias.shape[-1] != bias.numel()):
        return f"its bias has the shape {tuple(bias.shape)}"
    return name, bias.reshape(-1).expand(outputs).float()


def _filled(layer: Any, name: str, weight: Tensor, bias: Tensor | None, shared: _Shared) -> nn.Module:
    layer.weight = shared(f"{name}:{tuple(weight.shape)}", weight.float())
    layer.bias = None if bias is None else nn.Parameter(bias.clone())
    module: nn.Module = layer.eval()
    return module


def _conv(step: Step, body: Body, shared: _Shared) -> Made | str:
    weight = _weight(step, body)
    if isinstance(weight, str):
        return weight
    axes, group = weight.ndim - 2, int(step.facts.get("group", 1))
    if not 1 <= axes <= 3:
        return f"a convolution along {axes} axes"
    if weight.shape[0] % group:
        return f"{weight.shape[0]} channels in {group} groups"
    bias = _bias(step, body, weight.shape[0])
    if isinstance(bias, str):
        return bias
    if (automatic := step.facts.text("auto_pad", "NOTSET")) not in AUTOMATIC:
        return f"its padding is {automatic}"
    pads = list(step.facts.get("pads") or [0] * (2 * axes))
    even = automatic == "VALID" or (automatic == "NOTSET" and pads[:axes] == pads[axes:])
    padding = tuple(pads[:axes]) if even and automatic == "NOTSET" else (0,) * axes
    with torch.device("meta"):
        layer = _CONVOLUTIONS[axes - 1](
            weight.shape[1] * group,
            weight.shape[0],
            tuple(weight.shape[2:]),
            tuple(step.facts.get("strides") or (1,) * axes),
            padding,
            tuple(step.facts.get("dilations") or (1,) * axes),
            group,
            bias=False,
        )
    return Made(
        _filled(layer, body.origin(step.needs[1]), weight, bias[1], shared), Form(padded=not even), step.needs[1], bias[0]
    )


def _conv_transpose(step: Step, body: Body, shared: _Shared) -> Made | str:
    weight = _weight(step, body)
    if isinstance(weight, str):
        return weight
    axes, group = weight.ndim - 2, int(step.facts.get("group", 1))
    if not 1 <= axes <= 3:
        return f"a transposed convolution along {axes} axes"
    outputs = weight.shape[1] * group
    bias = _bias(step, body, outputs)
    if isinstance(bias, str):
        return bias
    strides = tuple(step.facts.get("strides") or (1,) * axes)
    dilations = tuple(step.facts.get("dilations") or (1,) * axes)
    more = tuple(step.facts.get("output_padding") or (0,) * axes)
    if any(each >= max(stride, dilation) for each, stride, dilation in zip(more, strides, dilations, strict=True)):
        return "its output padding is as large as its stride"
    lengths = [dilation * (length - 1) + 1 for length, dilation in zip(weight.shape[2:], dilations, strict=True)]
    spare = [length + each - stride for length, each, stride in zip(lengths, more, strides, strict=True)]
    cut = _cut(step, spare, strides, body.shapes.get(step.needs[0]))
    if isinstance(cut, str):
        return cut
    even = all(before == after for before, after in cut)
    with torch.device("meta"):
        layer = _TRANSPOSED[axes - 1](
            weight.shape[0],
            outputs,
            tuple(weight.shape[2:]),
            strides,
            tuple(before for before, _ in cut) if even else (0,) * axes,
            more,
            group,
            False,
            dilations,
        )
    form = _PLAIN if even else Form(cut=cut)
    return Made(_filled(layer, body.origin(step.needs[1]), weight, bias[1], shared), form, step.needs[1], bias[0])


def _cut(
    step: Step, spare: Sequence[int], strides: Sequence[int], shape: Sequence[int | None] | None
) -> tuple[tuple[int, int], ...] | str:
    """What is cut off the axes of a transposed convolution's output.

    ``spare`` is it in all for outputs of size × stride, ``shape`` that of the input if it is known.
    """
    axes, mode, given = len(spare), step.facts.text("auto_pad", "NOTSET"), step.facts.get("output_shape")
    if given is not None:
        sizes = list(shape or ())[2:]
        if len(sizes) != axes or None in sizes:
            return "its padding follows from the size of its output, and its input has free sizes"
        wanted = zip(spare, sizes, strides, list(given)[-axes:], strict=True)
        spare = [more + (size or 0) * stride - out for more, size, stride, out in wanted]
    if given is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        if any(each < 0 for each in spare):
            return "its output is padded"
        halves = [(each // 2, each - each // 2) for each in spare]
        return tuple(halves if mode == "SAME_UPPER" else [(after, before) for before, after in halves])
    pads = list(step.facts.get("pads") or [0] * (2 * axes)) if mode == "NOTSET" else [0] * (2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def _gemm(step: Step, body: Body, shared: _Shared) -> Made | str:
    facts = step.facts
    if facts.opset < 7:
        return f"Gemm of opset {facts.opset}"
    left = body.constant(step.needs[1]) is None and body.constant(step.needs[0]) is not None
    weight = _weight(step, body, 0 if left else 1)
    if isinstance(weight, str):
        return weight
    transposed = [bool(facts.get("transA", 0)), bool(facts.get("transB", 0))]
    # The matrix of the module is (outputs, inputs).
    matrix = weight.T if transposed[0 if left else 1] is left else weight
    alpha, beta = float(facts.get("alpha", 1.0)), float(facts.get("beta", 1.0))
    if not alpha:
        return "it multiplies by 0"
    form = Form(left=left, turned=transposed[1 if left else 0])
    name = step.needs[2] if len(step.needs) > 2 else ""
    bias = _gemm_bias(body, name, matrix.shape[0], left)
    if bias is not None:
        return _linear(step, body, alpha * matrix if alpha != 1.0 else matrix, (name, beta * bias), shared, form)
    if name:
        form = replace(form, added=name, times=beta)
    return _linear(step, body, alpha * matrix if alpha != 1.0 else matrix, (None, None), shared, form)


def _gemm_bias(body: Body, name: str, outputs: int, left: bool) -> Tensor | None:
    """The third input of Gemm as a bias (outputs,); None if it is something else."""
    bias = body.constant(name) if name else None
    if bias is None or not bias.is_floating_point() or bias.ndim > 2:
        return None
    whole = bias.reshape((1,) * (2 - bias.ndim) + tuple(bias.shape))
    whole = whole.T if left else whole
    if whole.shape[0] != 1 or whole.shape[1] not in (1, outputs):
        return None
    return whole[0].expand(outputs).float()


def _mat_mul(step: Step, body: Body, shared: _Shared) -> Made | str | None:
    constants = [body.constant(name) for name in step.needs[:2]]
    if all(value is None for value in constants):
        return None  # a product of two computed values, such as attention's, has no weight
    left = constants[1] is None
    weight = _weight(step, body, 0 if left else 1)
    if isinstance(weight, str):
        return weight
    if weight.ndim > 2 and not left and weight[..., 0, 0].numel() == 1:
        # Axes of length 1 before a matrix only matter if the input has fewer axes.
        shape = body.shapes.get(step.needs[0])
        weight = weight.flatten(0, -2) if shape is not None and len(shape) >= weight.ndim else weight
    if weight.ndim > 2:
        return f"its weight has {weight.ndim} axes, for {weight[..., 0, 0].numel()} products"
    if weight.ndim < 2:
        return "its weight is a vector"
    return _linear(step, body, weight if left else weight.T, (None, None), shared, Form(left=left))


def _linear(
    step: Step, body: Body, matrix: Tensor, bias: tuple[str | None, Tensor | None], shared: _Shared, form: Form
) -> Made | str:
    if matrix.numel() < _LEAST_WEIGHTS:
        return "it has a single weight"
    with torch.device("meta"):
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    facts, weight = step.facts, step.needs[0 if form.left else 1]
    name = f"{body.origin(weight)}:{facts.get('alpha', 1.0)}:{facts.get('transA', 0)}{facts.get('transB', 0)}:{form.left}"
    return Made(_filled(layer, name, matrix.contiguous(), bias[1], shared), form, weight, bias[0])


def layers_in(graphs: Iterable[Any]) -> Iterator[Any]:
    """The nodes of these kinds in graphs and in those inside them; of products those with a constant."""
    for graph in all_graphs(graphs):
        made = {name for node in graph.node for name in node.output if node.op_type != "Constant"}
        given = {item if isinstance(item, str) else item.name for item in graph.input}
        for node in graph.node:
            if node.op_type not in LAYERS or domain_of(node):
                continue
            if node.op_type != "MatMul" or any(name not in made | given for name in node.input):
                yield node


def path_of(step: Step, origin: str, taken: dict[str, bool]) -> str:
    """The place of a layer in the network: its weight's name without ``.weight``, else its node's or its output's name.

    ``taken`` maps the paths given so far, and the containers of theirs, to whether they are layers.
    """
    name = origin.removesuffix(".weight") if origin.endswith(".weight") else step.node.name or step.makes[0]
    parts = [re.sub(r"[^\w-]", "_", part) for part in name.replace("/", ".").split(".") if part] or ["_"]
    parts = [f"{part}_" if hasattr(_EMPTY, part) else part for part in parts]
    around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    if any(taken.get(outer, False) for outer in around):
        parts, around = ["_".join(parts)], []
    base, number = ".".join(parts), 1
    path = base
    while path in taken:
        number += 1
        path = f"{base}_{number}"
    taken |= dict.fromkeys(around, False)
    taken[path] = True
    return path
