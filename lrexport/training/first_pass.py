"""One pass through a network before any training, to find faults at once instead of after hours."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lrexport.data.images import Splits
from lrexport.errors import InputError
from lrexport.signature import Signature
from lrexport.tasks.classification import Classification, logits_of
from lrexport.tasks.scoring import check_numbers, computed, measuring
from lrexport.tasks.task import Task
from lrexport.text import first_line
from lrexport.torch_tools.batch import call
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.memory_layout import fast_layout, run
from lrexport.torch_tools.modes import eval_mode, in_mode
from lrexport.torch_tools.tracing import noise

_IMAGES = 8


def check_trains(network: nn.Module, signature: Signature, splits: Splits, task: Task) -> str | None:
    """Run two inputs in training mode and a few held-out images in eval mode; returns a note if only a part is trained.

    The network is not changed. Raises InputError if it raises an error or returns no logits in training mode, or gives NaN
    in eval mode.
    """
    if not isinstance(task, Classification):
        _check_task(network, splits, task)
        return None
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


def _check_task(network: nn.Module, splits: Splits, task: Task) -> None:
    """The loss of two training samples, and the metrics of a few held-out ones. Raises InputError."""
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    batch, targets = next(iter(splits.train.batches(2, device)))
    buffers = [buffer.clone() for buffer in network.buffers()]
    try:
        with torch.random.fork_rng(devices=()), in_mode(network, training=True), measuring(task):
            loss, _ = task.training_loss(partial(call, network), fast_layout(network, batch), targets)
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point() or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(
            f"the loss of the task {task.name!r} is {what}; expected a single number that the weights have gradients of",
            "Return the mean over the batch, computed by torch from the outputs.",
        )
    batch, targets = next(iter(splits.heldout.batches(min(_IMAGES, task.score_batch), device)))
    check_numbers(network, batch, "held-out images")
    meter = task.meter()
    with torch.no_grad(), eval_mode(network), measuring(task):
        meter.update(run(network, batch), task.targets_of(batch, targets))
    computed(task, meter, len(batch), "heldout")


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
