"""What a network is for: a loss to train it by, and metrics to choose and to judge it by."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.metric import Metric as Metric
from lrexport.torch_tools.batch import Batch

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

# The network in training mode, called with a batch, and with targets if its forward takes them.
CallNetwork = Callable[..., Any]


class Meter(Protocol):
    """Measures the metrics of a task over many batches."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take the outputs of a batch, as the network returns them in eval mode, with its targets."""
        ...

    def compute(self) -> dict[str, float]:
        """The value of every metric by its name, over all batches so far."""
        ...


class SumMeter:
    """A meter whose values follow from sums over samples, so several processes can divide the samples."""

    def __init__(self, count: int, dtype: torch.dtype = torch.float64) -> None:
        self.sums = torch.zeros(count, dtype=dtype)


class Task:
    """Base class of all tasks: subclass it, and name an instance with ``--task package.module:object``.

    ``metric_infos`` are the metrics that :meth:`meter` measures. The first one decides: it selects epochs, repairs, plans
    and trials. ``score_batch`` is the number of samples that are scored at a time.
    """

    name: str = ""
    metric_infos: tuple[Metric, ...] = ()
    score_batch: int = 16
    follows_dense: bool = False  # whether the dense network is the truth, so that it cannot be trained itself

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of a batch, a single number, from the outputs in training mode."""
        raise NotImplementedError(f"the task {self.name!r} has no loss")

    def meter(self) -> Meter:
        """A new meter of :attr:`metric_infos`."""
        raise NotImplementedError(f"the task {self.name!r} has no meter")

    def training_loss(self, call_network: CallNetwork, batch: Batch, targets: Any) -> tuple[Tensor, Any]:
        """The loss of a batch, and the outputs that distillation compares with the dense network's, or None.

        Override it if the loss is in the network: ``call_network(batch, targets)`` passes the targets on to its forward.
        """
        outputs = call_network(batch)
        return self.loss(outputs, targets), outputs

    def distilled(self, outputs: Any) -> Any:
        """What distillation follows of the teacher's outputs in eval mode: the counterpart of those of training."""
        return outputs

    def targets_of(self, batch: Batch, targets: Any) -> Any:
        """The targets of a batch, from those of the data; a task that needs none of them can make its own."""
        return targets

    def with_dense(self, dense: nn.Module) -> Task:
        """The task for a network that ``dense`` is the start of."""
        return self

    def check_output(self, output: Any, data: ImageData) -> None:
        """Raise InputError unless the network's output in eval mode for one sample fits the task and the data."""

    def chance_loss(self, classes: int) -> float | None:
        """The loss of a network that knows nothing, by which diverging training is noticed; None if it is not known."""
        return None

    @property
    def metric(self) -> Metric:
        """The metric that decides."""
        return self.metric_infos[0]


def checked_task(task: Any, source: str) -> Task:
    """``task`` itself, an instance of a subclass of Task. Raises UsageError for anything else, or without metrics."""
    if not isinstance(task, Task):
        raise UsageError(
            f"--task {source!r} is of type {type(task).__name__}; expected a lrexport.Task",
            "Give an instance of your subclass of lrexport.Task, the class, or a function that returns one.",
        )
    infos = task.metric_infos
    if not isinstance(infos, tuple | list) or not infos or not all(isinstance(each, Metric) for each in infos):
        raise UsageError(
            f"--task {source!r}: invalid metric_infos {infos!r}: expected at least one lrexport.Metric",
            'For example metric_infos = (lrexport.Metric("mIoU", "%"),).',
        )
    names = [each.name for each in infos]
    if len({*names}) < len(names):
        raise UsageError(f"--task {source!r}: two of its metrics have the same name: {', '.join(names)}")
    if not task.name:
        task.name = type(task).__name__
    return task
