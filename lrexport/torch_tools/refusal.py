"""Networks whose layers cannot be changed, or that are no networks of ordinary weights: refused by name, before any work."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.torch_tools.modules import type_name

# Where classes stand that simulate or do arithmetic of fewer bits, by the beginning of their module's name.
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
# Of these, what passes float numbers through in a network that is not prepared: torchvision's networks are made of it.
_HARMLESS = ("FloatFunctional", "FXFloatFunctional")


def check_workable(network: nn.Module, where: str) -> None:
    """Raise UsageError for layers that nobody can look into or change, and for networks that are prepared for int8.

    ``where`` begins the sentence: "MODEL 'x' returned a network".
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
                "lrexport onnx --int8 quantises what it became.",
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"{where} without values: {name!r} is on the meta device", "Build it on the CPU.")
        if tensor.is_quantized or type(tensor).__module__.startswith("torchao."):
            raise UsageError(f"{where} with quantised weights: {name!r}", "Return the float network.")
    for name, held in _state(network):
        if not isinstance(held, Tensor):
            raise UsageError(
                f"{where}: {name!r} of its state dict is a {type(held).__name__}, expected tensors alone",
                "Keep it elsewhere than in get_extra_state, or register it as a buffer.",
            )


def _quantisation(module: nn.Module) -> str | None:
    """The name of the class that makes it a module of quantisation, if one does."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith(_QUANTISATION) and kind.__name__ not in _HARMLESS:
            return kind.__name__
    return None


def _state(network: nn.Module) -> Iterator[tuple[str, object]]:
    """What get_extra_state adds to the state dict."""
    for name, module in network.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield f"{name}._extra_state".lstrip("."), module.get_extra_state()
