"""Nodes of convolutions and matrix products with constant weights as plain torch layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.onnx_network.body import Address, Body, Step
from lrexport.onnx_network.operators.convolutions import AUTOMATIC

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED: tuple[Any, ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# A kernel of more weights is kept in the graph; products of shapes of 1 or 2 values are no layers.
_LEAST_WEIGHTS = 2


@dataclass(frozen=True)
class Layer:
    """A node that is a module of the network at ``path``.

    ``padded``: zeros go around the input before the module is called, as torch pads both sides alike. ``weight`` and
    ``bias`` are the names of its tensors in the graph, ``origin`` the name of the tensor in the file.
    """

    path: str
    kind: str
    address: Address
    padded: bool
    weight: str
    bias: str | None
    origin: str


@dataclass(frozen=True)
class Made:
    """A module for a node, before it has a path."""

    module: nn.Module
    padded: bool
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


def _weight(step: Step, body: Body) -> Tensor | str:
    weight = body.constant(step.needs[1])
    if weight is None:
        return "its weight is computed by the graph"
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
    return Made(_filled(layer, body.origin(step.needs[1]), weight, bias[1], shared), not even, step.needs[1], bias[0])


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
    if step.facts.get("output_shape") is not None or step.facts.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its padding follows from the size of its output"
    pads = list(step.facts.get("pads") or [0] * (2 * axes))
    if pads[:axes] != pads[axes:]:
        return "its padding differs before and after"
    strides = tuple(step.facts.get("strides") or (1,) * axes)
    dilations = tuple(step.facts.get("dilations") or (1,) * axes)
    more = tuple(step.facts.get("output_padding") or (0,) * axes)
    if any(each >= max(stride, dilation) for each, stride, dilation in zip(more, strides, dilations, strict=True)):
        return "its output padding is as large as its stride"
    with torch.device("meta"):
        layer = _TRANSPOSED[axes - 1](
            weight.shape[0],
            outputs,
            tuple(weight.shape[2:]),
            strides,
            tuple(pads[:axes]),
            more,
            group,
            False,
            dilations,
        )
    return Made(_filled(layer, body.origin(step.needs[1]), weight, bias[1], shared), False, step.needs[1], bias[0])


def _gemm(step: Step, body: Body, shared: _Shared) -> Made | str:
    weight = _weight(step, body)
    if isinstance(weight, str):
        return weight
    if step.facts.get("transA", 0):
        return "it transposes its input"
    if step.facts.opset < 7:
        return f"Gemm of opset {step.facts.opset}"
    weight = weight if step.facts.get("transB", 0) else weight.T
    bias = _bias(step, body, weight.shape[0])
    if isinstance(bias, str):
        return bias
    alpha, beta = float(step.facts.get("alpha", 1.0)), float(step.facts.get("beta", 1.0))
    added = None if bias[1] is None else beta * bias[1]
    return _linear(step, body, alpha * weight if alpha != 1.0 else weight, (bias[0], added), shared)


def _mat_mul(step: Step, body: Body, shared: _Shared) -> Made | str | None:
    weight = _weight(step, body)
    if isinstance(weight, str):
        first = body.constant(step.needs[0])
        # A product of two computed values, such as attention's, has no weight.
        return "its weight is the first factor" if first is not None and first.is_floating_point() else None
    if weight.ndim != 2:
        return f"its weight has {weight.ndim} axes"
    return _linear(step, body, weight.T, (None, None), shared)


def _linear(step: Step, body: Body, weight: Tensor, bias: tuple[str | None, Tensor | None], shared: _Shared) -> Made | str:
    if weight.numel() < _LEAST_WEIGHTS:
        return "it has a single weight"
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    name = f"{body.origin(step.needs[1])}:{step.facts.get('alpha', 1.0)}:{step.facts.get('transB', 0)}"
    return Made(_filled(layer, name, weight.contiguous(), bias[1], shared), False, step.needs[1], bias[0])


def path_of(step: Step, origin: str, taken: dict[str, bool]) -> str:
    """The place of a layer in the network: its weight's name without ``.weight``, else its node's or its output's name.

    ``taken`` maps the paths given so far, and the containers of theirs, to whether they are layers.
    """
    name = origin.removesuffix(".weight") if origin.endswith(".weight") else step.node.name or step.makes[0]
    parts = [re.sub(r"[^\w-]", "_", part) for part in name.replace("/", ".").split(".") if part] or ["_"]
    parts = [f"{part}_" if hasattr(nn.Module, part) else part for part in parts]
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
