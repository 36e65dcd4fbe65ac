"""Detection by networks whose loss is their own, as torchvision's detectors: mean average precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrexport.errors import InputError
from lrexport.metric import SHARE, Metric
from lrexport.tasks.packages import need
from lrexport.tasks.task import CallNetwork, Meter, Task
from lrexport.torch_tools.batch import Batch

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

_PREDICTED = ("boxes", "scores", "labels")
_HINT = "For other outputs give --task package.module:object."


class Detection(Task):
    """Boxes of objects, as torchvision's detectors have them.

    In eval mode the network returns a list with a dict for each image: ``boxes`` (N, 4) as x1, y1, x2, y2, ``scores`` (N,)
    and ``labels`` (N,). In training mode it is called with images and targets, a list of dicts of ``boxes`` and ``labels``,
    and returns a dict of losses, whose sum is minimised. mAP is COCO's, over IoU thresholds from 0.5 to 0.95.
    """

    name = "detection"
    metric_infos = (Metric("mAP", SHARE), Metric("mAP50", SHARE))
    score_batch = 8

    def training_loss(self, call_network: CallNetwork, batch: Batch, targets: Any) -> tuple[Tensor, Any]:
        losses = call_network(batch, targets)
        if not isinstance(losses, Mapping) or not losses or not all(isinstance(each, Tensor) for each in losses.values()):
            raise InputError(
                f"in training mode the network returns a {type(losses).__name__}; the task 'detection' expects a dict of "
                "losses",
                _HINT,
            )
        return torch.stack([each.mean() for each in losses.values()]).sum(), None

    def meter(self) -> Meter:
        return _MeanAveragePrecision()

    def check_output(self, output: Any, data: ImageData) -> None:
        _checked(output)


def _checked(output: Any) -> Any:
    is_list = isinstance(output, list | tuple) and bool(output)
    if not is_list or not all(isinstance(each, Mapping) and all(name in each for name in _PREDICTED) for each in output):
        raise InputError(
            f"the network returns a {type(output).__name__}; the task 'detection' expects a list with a dict of boxes, "
            "scores and labels for each image",
            _HINT,
        )
    return output


class _MeanAveragePrecision:
    """torchmetrics' mean average precision. All processes score all images, because boxes cannot be summed up."""

    def __init__(self) -> None:
        # torchmetrics imports torchvision only when it measures.
        _, detection, _ = need(Detection.name, "torchvision.ops", "torchmetrics.detection", "pycocotools")
        self._metric = detection.MeanAveragePrecision(box_format="xyxy", iou_type="bbox", sync_on_compute=False)
        self._metric.warn_on_many_detections = False

    def update(self, outputs: Any, targets: Any) -> None:
        predicted = [{name: each[name].detach().cpu() for name in _PREDICTED} for each in _checked(outputs)]
        truth = [{name: torch.as_tensor(each[name]).cpu() for name in ("boxes", "labels")} for each in targets]
        self._metric.update(predicted, truth)

    def compute(self) -> dict[str, float]:
        values = self._metric.compute()
        found = {"mAP": float(values["map"]), "mAP50": float(values["map_50"])}
        return {name: value if value >= 0 else float("nan") for name, value in found.items()}  # -1: no boxes to find
