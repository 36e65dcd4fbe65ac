"""torch's lazy layers, whose sizes one input gives them."""

from __future__ import annotations

import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.signature import Signature
from lrexport.torch_tools.batch import call
from lrexport.torch_tools.forward_errors import forward_error
from lrexport.torch_tools.tracing import example_input


def fill_lazy_layers(network: nn.Module, signature: Signature) -> None:
    """Turn torch's lazy layers into plain layers, with the sizes that one input gives them."""
    if not _lazy_weights(network):
        return
    try:
        with torch.no_grad():
            call(network, example_input(network, signature))
    except Exception as error:
        raise forward_error(error, signature) from error
    if left := _lazy_weights(network):
        raise InputError(
            f"lazy layers that no input reaches, so their sizes are unknown: {', '.join(left[:10])}",
            "Build these layers with their sizes, or remove them.",
        )


def _lazy_weights(network: nn.Module) -> list[str]:
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]
