"""Import torchvision, even if its compiled operators cannot be loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
_schemas: list[Any] = []
_NMS_ROWS = 256  # boxes that are compared with all later ones at a time


def torchvision(submodule: str = "") -> ModuleType:
    """``torchvision``, or a submodule: ``torchvision("models")``."""
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    return with_operators(lambda: importlib.import_module(name))


def with_operators(importing: Callable[[], T]) -> T:
    """The result of ``importing``, which may import torchvision somewhere; a second attempt if that fails.

    PyPI's torchvision is linked against CUDA. With a CPU build of torch its library does not load, and its import fails
    when it registers fake kernels for undefined operators. With their schemas defined, models, datasets and transforms
    work, and with :func:`_nms` also detectors; torchvision has RoIAlign in Python as well. Only an attempt shows whether
    the library loads.
    """
    try:
        return importing()
    except Exception as error:
        if _schemas or not _lacks_operators(error):
            raise
    import torch

    for loaded in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[loaded]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _schemas.append(library)  # the definitions exist only as long as this object
    made = importing()
    boxes: Any = importlib.import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = _nothing  # it would refuse nms, which is there now
    return made


def _lacks_operators(error: BaseException | None) -> bool:
    """Whether torchvision's undefined operators are the error or behind it: packages may wrap it in theirs."""
    while error is not None:
        if isinstance(error, RuntimeError) and "torchvision::nms" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _nothing() -> None:
    pass


def _nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    """Indices of boxes (n, 4) that no box with a higher score overlaps by more than the threshold, by falling score."""
    import numpy as np
    import torch

    order = scores.argsort(descending=True, stable=True)
    boxes = dets[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    dropped, kept = np.zeros(len(boxes), dtype=bool), list[int]()
    for start in range(0, len(boxes), _NMS_ROWS):
        rows = start + np.flatnonzero(~dropped[start : start + _NMS_ROWS])
        some, later = boxes[rows, None], boxes[start:]
        sides = torch.minimum(some[..., 2:], later[:, 2:]) - torch.maximum(some[..., :2], later[:, :2])
        common = sides.clamp(min=0).prod(2)
        overlaps = common / (areas[rows, None] + areas[start:] - common) > iou_threshold  # NaN, of empty boxes, is kept
        for row, overlap in zip(rows.tolist(), overlaps.numpy(), strict=True):
            if not dropped[row]:
                kept.append(row)
                dropped[start:] |= overlap
    return order[torch.tensor(kept, dtype=torch.int64)]
