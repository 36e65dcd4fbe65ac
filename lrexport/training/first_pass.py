"""One pass through a network before any training, to find faults at once instead of after hours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.errors import InputError
from lrexport.signature import Signature
from lrexport.tasks.classification import check_numbers
from lrexport.text import first_line
from lrexport.torch_tools.batch import call
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import in_mode
from lrexport.torch_tools.tracing import noise

_IMAGES = 8


def logits_of(output: object) -> Tensor:
    """The logits in a network's output in training mode: the output, or the first item of a tuple or list.

    Raises InputError for anything else.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise InputError(
            f"in training mode the network returns a {type(output).__name__}; expected one tensor, as in eval mode",
            "Build it without its auxiliary outputs, or return a tuple whose first item is that tensor.",
        )
    return first


def check_trains(network: nn.Module, signature: Signature, splits: Splits) -> str | None:
    """Run two inputs in training mode and a few held-out images in eval mode; returns a note if only a part is trained.

    The network is not changed. Raises InputError if it raises an error or returns no logits in training mode, or gives NaN
    in eval mode.
    """
    classes = len(splits.data.classes)
    output = _in_training(network, signature)
    logits = logits_of(output)
    if logits.ndim == 0 or (logits.numel() == 1 and classes > 1):
        raise InputError(
            "in training mode the network returns a single number, probably a loss; expected logits (batch, classes)",
            "Its forward must return the same logits in training and in eval mode; lrexport computes the loss.",
        )
    if tuple(logits.shape) != (2, classes) or not logits.is_floating_point():
        what = f"{str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)}"
        raise InputError(
            f"in training mode the network returns {what} for two images of {classes} classes",
            f"Its forward must return logits, floating-point numbers of shape (2, {classes}), as in eval mode.",
        )
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    images, _ = next(iter(splits.heldout.batches(_IMAGES, device)))
    check_numbers(network, images, "held-out images")
    if isinstance(output, Tensor):
        return None
    several = f"{len(output)} outputs" if isinstance(output, tuple | list) else "several outputs"
    return f"in training mode the network returns {several}: only the first is trained"


def _in_training(network: nn.Module, signature: Signature) -> object:
    """Output for two inputs in training mode; buffers and random state are restored."""
    inputs = fast_layout(network, noise(network, signature, samples=2))
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=()), in_mode(network, training=True):
            try:
                with torch.no_grad():  # otherwise results that the network stores have a graph, and it cannot be copied
                    return call(network, inputs.clone())
            except Exception:  # some networks need gradients, for example for a penalty on them
                return call(network, inputs.clone())
    except Exception as error:
        raise InputError(
            f"in training mode the network raises {type(error).__name__}: {first_line(error)}",
            f"{place_in_code(error) or ''} It is called with images only, without targets, and must return logits; "
            "lrexport computes the loss.".strip(),
        ) from error
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
