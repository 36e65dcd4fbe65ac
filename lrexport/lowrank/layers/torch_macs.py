"""MACs of a torch network, layer by layer, counted by fvcore (why not by torch: docs/decisions.md, "By libraries").

Convention: multiply–accumulates of convolutions and matrix products for one input; 1 MAC = 2 FLOPs, and fvcore's "flops" are
MACs. Not counted: bias, normalisation, pooling, element-wise operators, and layers with constant inputs, of which an
exported graph contains only the result. Counted as the convolution that an exported graph has: a shortcut of a strided slice
with zeros for new channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.einsum import einsum_macs
from lrexport.errors import InputError
from lrexport.lowrank.layers.constants import constant_layers
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch, InputsLike, call, signature_of
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors
from lrexport.torch_tools.tracing import example_input

# Matrix products that sum over the last axis of one input, and the place of that input.
_PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "inner": 0}
_PRODUCTS |= {"addmm": 1, "addmv": 1, "baddbmm": 1}
# Operators that multiply but are not counted; they are reported.
_UNCOUNTED = {"lstm", "gru", "rnn_tanh", "rnn_relu", "bilinear", "_trilinear", "deform_conv2d", "conv_tbc", "cdist", "kron"}
_UNCOUNTED |= {"chain_matmul", "linalg_multi_dot", "linalg_matrix_power", "linalg_matrix_exp", "linalg_vecdot"}
_UNCOUNTED |= {"cov", "corrcoef", "pdist", "_sparse_mm"}
# Operators of other libraries, scripted functions and autograd functions may multiply; a trace does not show their content.
_OPEN = {"aten", "prim", "prims", "profiler", "torchvision"}
_SCRIPTED, _AUTOGRAD = "prim::CallFunction", "prim::PythonOp"
_POOLS = tuple(f"aten::{kind}_pool{axes}d" for kind in ("avg", "max") for axes in (1, 2, 3))
_SUMS = ("aten::add", "aten::add_")
_Handle = Callable[[list[Any], list[Any]], int]


@dataclass(frozen=True)
class TorchMacs:
    """MACs for one input: ``total``, and ``by_layer`` for modules without children.

    ``uncounted`` names operators that multiply, or may, and are not in ``total``.
    """

    total: int
    by_layer: dict[str, int]
    uncounted: tuple[str, ...]


def count_torch_macs(network: nn.Module, inputs: InputsLike) -> TorchMacs:
    """Count for one sample of ``inputs``, a shape say, in eval mode; the network's mode is restored.

    Raises InputError if the network does not accept an input of this shape, or torch cannot trace it.
    """
    from fvcore.nn import FlopCountAnalysis

    signature = signature_of(inputs, network)
    layers: dict[nn.Module, str] = {module: name for name, module in network.named_modules() if isinstance(module, WEIGHTED)}
    constant = {layers[layer] for layer in constant_layers(network, layers, signature)}
    example = example_input(network, signature)
    with eval_mode(network), _without_fused_attention(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # fvcore uses torch.jit.trace, which is deprecated
        analysis = FlopCountAnalysis(_Outputs(network, example.names), example.tensors).unsupported_ops_warnings(False)
        handles = {f"aten::{operator}": handle for operator, handle in _HANDLES.items()}
        analysis = analysis.uncalled_modules_warnings(False).tracer_warnings("none").set_op_handle(**handles)
        by_layer: dict[str, int] = {}
        modules = dict(network.named_modules())
        for name, counts in _of_network(analysis).items():
            own = sum(count for operator, count in counts.items() if operator in _COUNTED)
            if own and not any(modules[name].children()):
                by_layer[name] = int(own)
        operators = analysis.by_operator()
        left_out = set(filter(None, map(_left_out, analysis.unsupported_ops())))
    total = int(sum(operators[name] for name in _COUNTED if name in operators))
    total -= sum(by_layer.pop(name, 0) for name in constant)
    return TorchMacs(total, by_layer, tuple(sorted(left_out)))


def _left_out(operator: str) -> str | None:
    """The name in reports of an operator that fvcore does not count; None if it multiplies nothing."""
    library, _, name = operator.rpartition("::")
    if operator.startswith(_SCRIPTED):
        return "a scripted function"
    if operator.startswith(_AUTOGRAD):
        return operator.removeprefix(f"{_AUTOGRAD}.")
    if library not in _OPEN:
        return operator
    return name if name in _UNCOUNTED else None


class _Outputs(nn.Module):
    """A network that returns a flat tuple of all tensors in its output, as torch.jit.trace requires."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat_tensors(call(self.network, Batch(given, self.names))))


def _of_network(analysis: Any) -> dict[str, Any]:
    """fvcore's counts by module of the network and operator. Raises InputError if torch cannot trace the network."""
    try:
        counts = analysis.by_module_and_operator()
    except Exception as error:  # torch's tracer raises errors of all types
        why = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            f"cannot count the MACs of the network: torch.jit.trace fails on it: {why}",
            "Its forward must compute tensors from a tensor.",
        ) from error
    within = "network."
    inside = {name.removeprefix(within): count for name, count in counts.items() if name.startswith(within)}
    return {"": counts[within.rstrip(".")], **inside}


def _product_macs(summed: int) -> _Handle:
    """One MAC for each output and each entry of the summed axis, the last of input ``summed``.

    fvcore does not count products of vectors, nor all of those whose second operand is broadcast.
    """

    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        return prod(outputs[0].type().sizes()) * inputs[summed].type().sizes()[-1]

    return handle


def _summed_batch_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """(B, N, M) by (B, M, P), also summed over the batch."""
    first, second = (given.type().sizes() for given in inputs[1:3])
    return prod(first) * second[-1]


def _contraction_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """√(first · second · output): each axis is in two of the three, in one operand and the output or summed in both."""
    sizes = [prod(value.type().sizes()) for value in (*inputs[:2], outputs[0])]
    return isqrt(prod(sizes))


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    """Query (…, L, E) by key (…, S, E), and the result by value (…, S, V)."""
    query, key, value = (given.type().sizes() for given in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _string_padded_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """A convolution with padding="same" or "valid", which is another operator and unknown to fvcore."""
    weight, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    return output[0] * prod(weight) * prod(output[2:])


def _shortcut_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Zeros around the channels of a strided slice, then added: exported as a convolution (lrexport/formats/passes)."""
    if any(use.user.kind() not in _SUMS for use in outputs[0].uses()):
        return 0
    given, output = inputs[0].type().sizes(), outputs[0].type().sizes()
    amounts, filled = _values(inputs[1]), inputs[-1].toIValue()
    around = amounts[2 * (len(output) - 2) :][:2]  # from the last axis to the first
    only_there = len(around) == 2 and sum(map(abs, amounts)) == sum(around) and min(around) >= 0
    return prod(output) * given[1] if only_there and not filled and _is_strided(inputs[0].node()) else 0


def _is_strided(node: Any) -> bool:
    """Whether a node, with those before it, takes single pixels in steps, from the first to the last."""
    strided = False
    while node.kind() in ("aten::slice", *_POOLS):
        given = list(node.inputs())
        if node.kind() == "aten::slice":
            axis, start, end, step = (value.toIValue() for value in given[1:])
            if start or (end is not None and end < given[0].type().sizes()[axis]):
                return False
            strided |= axis >= 2 and step > 1
        else:
            size, step = (_values(value) for value in given[1:3])
            if max(size) > 1:
                return False
            strided |= max(step) > 1
        node = given[0].node()
    return strided


def _values(value: Any) -> list[int]:
    """The numbers in a list of a traced graph."""
    return [item.toIValue() for item in value.node().inputs()] if value.toIValue() is None else list(value.toIValue())


def _einsum_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """An exact count where possible, because fvcore rounds its to four digits."""
    from fvcore.nn.jit_handles import einsum_flop_jit

    shapes = [tuple(value.type().sizes()) for value in inputs[1].node().inputs()]
    macs = einsum_macs(inputs[0].toIValue(), shapes)
    return int(einsum_flop_jit(inputs, outputs)) if macs is None else macs


_HANDLES: dict[str, _Handle] = {operator: _product_macs(summed) for operator, summed in _PRODUCTS.items()}
_HANDLES |= {"pad": _shortcut_macs, "constant_pad_nd": _shortcut_macs}
_HANDLES |= {"addbmm": _summed_batch_macs, "tensordot": _contraction_macs, "einsum": _einsum_macs}
_HANDLES |= {"scaled_dot_product_attention": _attention_macs, "_convolution_mode": _string_padded_macs}
_COUNTED = ("conv", *_HANDLES)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Disable the fast path of MultiheadAttention and the encoder layer, one operator that hides their products."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
