"""Refuse, before any work, networks whose layers cannot be changed or whose weights are not ordinary tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.torch_tools.modules import type_name

# Modules of classes for quantised or simulated low-precision arithmetic, by prefix.
_QUANTISATION = (
    "torch.ao.quantization.fake_quantize",
    "torch.ao.quantization.observer",
    "torch.ao.quantization.pt2e",
    "torch.ao.nn.qat",
    "torch.ao.nn.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.ao.nn.intrinsic.qat",
    "torch.ao.nn.intrinsic.quantized",
    "torchao.",
)
# Classes among them that do nothing in a float network; torchvision's networks use them.
_HARMLESS = ("FloatFunctional", "FXFloatFunctional")


def check_workable(network: nn.Module, where: str) -> None:
    """Raise UsageError for layers that cannot be inspected or changed, and for networks prepared for quantisation.

    ``where`` begins the message: "MODEL 'x' returned a network".
    """
    for name, module in network.named_modules():
        what = f"{where}: {name!r} is" if name else f"{where} that is"
        if isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{what} TorchScript ({type_name(module)}), whose layers cannot be changed",
                "Return the network without torch.jit; scripted parts without weights may stay.",
            )
        if kind := _quantisation(module):
            raise UsageError(
                f"{what} prepared for quantisation ({kind})",
                "Return the float network, without prepare, prepare_qat or convert; "
                "lrexport onnx --int8 quantises the compressed one.",
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"{where} without values: {name!r} is on the meta device", "Build it on the CPU.")
        if tensor.is_quantized or type(tensor).__module__.startswith("torchao."):
            raise UsageError(f"{where} with quantised weights: {name!r}", "Return the float network.")
    for name, value in _state(network):
        if not isinstance(value, Tensor):
            raise UsageError(
                f"{where}: {name!r} in its state dict is a {type(value).__name__}; expected only tensors",
                "Register it as a buffer, or remove it from get_extra_state.",
            )


def _quantisation(module: nn.Module) -> str | None:
    """The name of the class that makes this a quantisation module; None if none does."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith(_QUANTISATION) and kind.__name__ not in _HARMLESS:
            return kind.__name__
    return None


def _state(network: nn.Module) -> Iterator[tuple[str, object]]:
    """Entries that get_extra_state adds to the state dict."""
    for name, module in network.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{name}._extra_state".lstrip("."), module.get_extra_state()
