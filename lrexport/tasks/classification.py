"""Classification: cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrexport.config.task_names import CLASSIFICATION as NAME
from lrexport.errors import InputError
from lrexport.metric import TOP1, TOP5
from lrexport.tasks.task import CallNetwork, Meter, SumMeter, Task
from lrexport.torch_tools.batch import Batch

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

LOGITS = "logits"  # the logits among several outputs, as Hugging Face names them


def count_correct(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Top-1 and top-5 hits: logits (B, K), labels (B,). With fewer than five classes, top-5 hits are all labels."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return int(best[:, 0].sum()), int(best.sum())


def logits_of(output: object) -> Tensor:
    """The logits in a network's output in training mode: the output, its ``logits``, or the first item of a tuple or list.

    Raises InputError for anything else.
    """
    first = output[0] if isinstance(output, tuple | list) and output else _named(output)
    if not isinstance(first, Tensor):
        raise InputError(
            f"in training mode the network returns a {type(output).__name__}; expected one tensor, as in eval mode",
            "Build it without its auxiliary outputs, or return a tuple whose first item is that tensor.",
        )
    return first


def _named(output: object) -> object:
    return output.get(LOGITS) if isinstance(output, Mapping) else output


class Classification(Task):
    """Images of classes: logits (B, K) and labels (B,)."""

    name = NAME
    metric_infos = (TOP1, TOP5)
    score_batch = 250

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def training_loss(self, call_network: CallNetwork, batch: Batch, targets: Any) -> tuple[Tensor, Any]:
        logits = logits_of(call_network(batch))
        return self.loss(logits, targets), logits

    def distilled(self, outputs: Any) -> Any:
        return _named(outputs)

    def meter(self) -> Meter:
        return _Hits()

    def check_output(self, output: Any, data: ImageData) -> None:
        logits = _named(output)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"the network returns a {type(output).__name__}; expected one tensor (batch, classes)",
                "Give a callable whose network has one output, for example a module that calls yours and selects it, or "
                "the --task that its outputs are for.",
            )
        if logits.ndim != 2:
            raise InputError(
                f"the network's output has the shape {tuple(logits.shape)}; expected (batch, classes)",
                "The data has a class for each image. Give the --task that the outputs are for, or data without targets, "
                "on which the network is compared with the dense one.",
            )
        outputs = logits.shape[1]
        if len(data.classes) != outputs:
            raise InputError(
                f"{data.source} has {len(data.classes)} classes; the network has {outputs} outputs",
                f"Build the network for this data, as in MODEL?num_classes={len(data.classes)}, or give data that fits it.",
            )

    def chance_loss(self, classes: int) -> float | None:
        return math.log(classes)


class _Hits(SumMeter):
    """Top-1 hits, top-5 hits and images."""

    def __init__(self) -> None:
        super().__init__(3, torch.int64)

    def update(self, outputs: Any, targets: Any) -> None:
        logits = _named(outputs)
        assert isinstance(logits, Tensor)
        self.sums += torch.tensor([*count_correct(logits, targets), len(logits)])

    def compute(self) -> dict[str, float]:
        top1, top5, count = self.sums.tolist()
        return {TOP1.name: top1 / count, TOP5.name: top5 / count}


CLASSIFICATION = Classification()
