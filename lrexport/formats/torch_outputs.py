"""A network's outputs in torch, as the truth for other formats, and its rounding errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrexport.errors import InputError
from lrexport.formats.agreement import Array, ComparedOutputs, Rounding
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors

# Inputs for measuring rounding errors: double precision takes several times as long.
_MEASURED = 3


@torch.no_grad()
def outputs_in_torch(network: nn.Module, given: Batch) -> list[Tensor]:
    """The network's outputs on the CPU, copied: they may be views of the input, which the network may change."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with eval_mode(network):
        return [tensor.detach().cpu().clone() for tensor in flat_tensors(call(network, given.to(device, copy=True)))]


def refuse_nan(inputs: Mapping[str, Batch], outputs: list[list[Tensor]]) -> None:
    """Raise InputError if the outputs for an input, by its label, hold NaN."""
    for label, tensors in zip(inputs, outputs, strict=True):
        for output in tensors:
            if output.is_floating_point() and output.isnan().any():
                share = f"{int(output.isnan().sum()):,} of {output.numel():,} values"
                raise InputError(
                    f"the network returns NaN for {label}: {share}",
                    "Check its weights, and whether it accepts inputs of this range.",
                )


def rounding_of(network: nn.Module, inputs: list[Batch], expected: list[list[Tensor]], number: int) -> Rounding:
    """Rounding errors of float32 in output ``number`` for a few of the inputs, whose outputs are ``expected``.

    Those of torch, and those of ONNX Runtime where it is known to round otherwise (:class:`_RoundedSigmoid`).
    """
    last = len(inputs) - 1
    chosen = sorted({round(last * part / (_MEASURED - 1)) for part in range(_MEASURED)})

    def measure() -> Sequence[Array]:
        pairs = []
        for index in chosen:
            others = [_more_exact(network, inputs[index])[number]]
            with _RoundedSigmoid() as mode:
                rounded = outputs_in_torch(network, inputs[index])[number]
            others += [rounded] if mode.used else []
            pairs += [ComparedOutputs("", array_of(other), array_of(expected[index][number])) for other in others]
        return [np.where(np.isfinite(pair.difference), pair.difference, 0.0) for pair in pairs]

    return measure


def _more_exact(network: nn.Module, given: Batch) -> list[Tensor]:
    """The network's outputs in double precision; if it always computes in float32, its outputs for an input that differs
    in its last bits."""
    tensors = dict(network.named_parameters(remove_duplicate=False)) | dict(network.named_buffers(remove_duplicate=False))
    wide = {name: tensor.detach().double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    try:
        with torch.no_grad(), eval_mode(network):
            positional, named = given.map(_double).arguments(network)
            result = torch.func.functional_call(network, wide, positional, named, tie_weights=True)
            return [tensor.detach().cpu().clone() for tensor in flat_tensors(result)]
    except Exception:  # a forward that creates float32 tensors; whatever the reason, the network itself runs
        return outputs_in_torch(network, given.map(_almost))


class _RoundedSigmoid(TorchDispatchMode):
    """Sigmoids with errors as ONNX Runtime has them: of float32's last place at 1, however small the value is.

    torch's errors are relative to each value, so that a vanishing probability would seem exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = False
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__.rstrip("_")
        if name not in ("sigmoid", "silu") or result.dtype != torch.float32:
            return result
        self.used = True
        signs = torch.randint(2, result.shape, generator=self._generator) * 2 - 1
        errors = (torch.finfo(torch.float32).eps * signs).to(result)
        return result.add_(errors * args[0] if name == "silu" else errors)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _almost(tensor: Tensor) -> Tensor:
    """A few units of float32's last place off."""
    if not tensor.is_floating_point():
        return tensor
    signs = torch.randint(2, tensor.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return tensor * (1 + 4 * torch.finfo(torch.float32).eps * signs).to(tensor)


def array_of(tensor: Tensor) -> Array:
    """A tensor on the CPU in float64, which holds all values of narrower types."""
    return tensor.to(torch.float64).numpy()
