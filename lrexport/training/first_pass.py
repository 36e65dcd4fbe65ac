"""One pass through a network before any training: what training would end in after hours is said at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.errors import InputError
from lrexport.tasks.classification import check_numbers
from lrexport.text import first_line
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import in_mode
from lrexport.torch_tools.tracing import noise

_IMAGES = 8


def logits_of(output: object) -> Tensor:
    """What is trained on of a network's output in training mode: the output, or the first of a tuple or list.

    Raises InputError for anything else.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise InputError(
            f"in training mode the network returns a {type(output).__name__}, not the one tensor of eval mode",
            "Build it without its auxiliary outputs, or let it return a tuple whose first output is that tensor.",
        )
    return first


def check_trains(network: nn.Module, input_shape: tuple[int, ...], splits: Splits) -> str | None:
    """Run two inputs in training mode and a few held-out images in eval mode; a note on what of the output is trained on.

    The network is left as it is. Raises InputError where it raises or returns no logits in training mode, and where it gives
    NaN in eval mode.
    """
    classes = len(splits.data.classes)
    output = _in_training(network, input_shape)
    logits = logits_of(output)
    if logits.ndim == 0 or (logits.numel() == 1 and classes > 1):
        raise InputError(
            "in training mode the network returns a single number, as if it computed its loss itself",
            "Its forward must return the same logits in training and in eval mode, (batch, classes): the loss is ours.",
        )
    if tuple(logits.shape) != (2, classes) or not logits.is_floating_point():
        what = f"{str(logits.dtype).removeprefix('torch.')} of shape {tuple(logits.shape)}"
        raise InputError(
            f"in training mode the network returns {what} for two images of {classes} classes",
            f"Its forward must return the logits, floating-point numbers of shape (2, {classes}), as in eval mode.",
        )
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    images, _ = next(iter(splits.heldout.batches(_IMAGES, device)))
    check_numbers(network, images, "held-out images")
    if isinstance(output, Tensor):
        return None
    several = f"{len(output)} outputs" if isinstance(output, tuple | list) else "several outputs"
    return f"in training mode the network returns {several}: the first is trained on, the others are not"


def _in_training(network: nn.Module, input_shape: tuple[int, ...]) -> object:
    """Output for two inputs in training mode, buffers and random state left as they were."""
    images = torch.cat([noise(network, input_shape, seed) for seed in (0, 1)])
    images = fast_layout(network, images)
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=()), in_mode(network, training=True):
            try:
                with torch.no_grad():  # what it keeps of a pass must not hold on to a graph, with which it cannot be copied
                    return network(images.clone())
            except Exception:  # a penalty on gradients, say, needs them
                return network(images.clone())
    except Exception as error:
        raise InputError(
            f"in training mode the network raises {type(error).__name__}: {first_line(error)}",
            f"{place_in_code(error) or ''} It is called with images alone, without targets, and must return logits: "
            "the loss is computed outside.".strip(),
        ) from error
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
