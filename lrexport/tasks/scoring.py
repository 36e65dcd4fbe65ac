"""Scores of a network on a set of samples, by the meter of a task."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrexport.data.images import ImageSet
from lrexport.errors import InputError, LrexportError
from lrexport.runs.scores import Score, make_score
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.task import Meter, SumMeter, Task
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.forward_errors import place_in_code
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.outputs import flat_tensors

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class NotANumber(InputError):
    """A network gives NaN, so it has no score."""


def nan_samples(outputs: Any, count: int) -> int:
    """The number of ``count`` samples with NaN in any output; all of them if an output with NaN is not by sample."""
    bad = torch.zeros(count, dtype=torch.bool)
    for tensor in flat_tensors(outputs):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        nan = tensor.isnan()
        by_sample = tensor.ndim > 0 and len(tensor) == count
        bad |= nan.flatten(1).any(1).cpu() if by_sample and tensor.ndim > 1 else (nan if by_sample else nan.any()).cpu()
    return int(bad.sum())


def images_of(split: str) -> str:
    """The images of a split, for a message."""
    return f"{split.replace('heldout', 'held-out')} images"


def not_a_number(what: str, bad: int, count: int, images: str) -> NotANumber:
    """The error for a network or file ``what`` that gives NaN on ``bad`` of ``count`` images."""
    return NotANumber(
        f"{what} gives NaN on {bad:,} of {count:,} {images}, so it has no score",
        "Check its weights, and whether its inputs are in the range that it was trained with.",
    )


@torch.no_grad()
def check_numbers(network: nn.Module, inputs: Batch, name: str) -> None:
    """Raise NotANumber if the network in eval mode gives NaN on a batch of images; ``name`` describes them."""
    with eval_mode(network):
        bad = nan_samples(run(network, inputs), len(inputs))
    if bad:
        raise not_a_number("the network", bad, len(inputs), name)


@torch.no_grad()
def score(
    network: nn.Module,
    images: ImageSet,
    device: torch.device,
    split: str,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
    task: Task = CLASSIFICATION,
) -> Score:
    """The metrics of ``task`` in eval mode; the network's mode is restored. The processes of ``fabric`` divide the images
    if the meter has sums.

    Raises NotANumber in all processes if the network gives NaN on any image, InputError if the task raises an error.
    """
    with measuring(task):
        meter = task.meter()
    part, divided = images, fabric is not None and fabric.world_size > 1 and isinstance(meter, SumMeter)
    if fabric is not None and divided:
        part = images.subset(torch.arange(fabric.global_rank, len(images), fabric.world_size))
    bad = torch.zeros(1, dtype=torch.int64)
    with eval_mode(network):
        for batch, targets in part.batches(batch_size or task.score_batch, device):
            outputs = run(network, batch)
            bad += nan_samples(outputs, len(batch))
            with measuring(task):
                meter.update(outputs, task.targets_of(batch, targets))
    if fabric is not None and divided:
        assert isinstance(meter, SumMeter)
        meter.sums, bad = (_sum(fabric, each, device) for each in (meter.sums, bad))
    if int(bad):
        raise not_a_number("the network", int(bad), len(images), images_of(split))
    return computed(task, meter, len(images), split)


def _sum(fabric: Fabric, values: Tensor, device: torch.device) -> Tensor:
    total: Any = fabric.all_reduce(values.to(device), reduce_op="sum")
    summed: Tensor = total.cpu()
    return summed


def computed(task: Task, meter: Meter, n: int, split: str) -> Score:
    """The score that a meter has measured. Raises NotANumber for a metric without a finite value, InputError without it."""
    with measuring(task):
        values = {str(name): float(value) for name, value in dict(meter.compute()).items()}
    for metric in task.metric_infos:
        if metric.name not in values:
            raise InputError(
                f"the meter of the task {task.name!r} gives {', '.join(map(repr, values)) or 'nothing'}; expected also "
                f"{metric.name!r}",
                "compute() must return a value for every metric in metric_infos, by its name.",
            )
        if not math.isfinite(values[metric.name]):
            raise NotANumber(
                f"{metric.name} is {values[metric.name]} on {n:,} {images_of(split)}",
                "Check the network's weights and outputs, and the targets of the data.",
            )
    return make_score(task.name, task.metric_infos, values, n, split)


@contextmanager
def measuring(task: Task) -> Iterator[None]:
    """Report an error that the code of a task raises as one of the task. Raises InputError."""
    try:
        yield
    except (LrexportError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"the task {task.name!r} raises {type(error).__name__}: {first_line(error)}",
            place_in_code(error) or "Check whether the outputs of the network and the targets of the data fit the task.",
        ) from error
