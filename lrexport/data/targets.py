"""Targets of samples: what they mean, and how those of a batch are put together. Any tree of tensors, or none at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CLASSIFICATION, SEGMENTATION, IMAGE, DETECTION, FIDELITY = "classification", "segmentation", "image", "detection", "fidelity"


def as_targets(values: Any) -> Any:
    """Targets of several samples: arrays as tensors; anything else is the task's business and stays as it is."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        wide = values.dtype.kind == "u" and values.dtype.itemsize > 1
        return torch.from_numpy(np.require(values.astype(np.int64) if wide else values, requirements=["C", "W"]))
    return values


def as_target(value: Any) -> Any:
    """The target of one sample, as :func:`as_targets`, with a single number as int or float."""
    value = as_targets(value)
    if isinstance(value, np.integer | bool):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    is_number = isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= (0 if value.is_floating_point() else 1)
    return value.item() if is_number else value


def task_of(target: Any) -> str | None:
    """The task that a sample's target is for; None if it could be any."""
    if target is None:
        return FIDELITY
    if isinstance(target, int):
        return CLASSIFICATION
    if isinstance(target, Mapping) and "boxes" in target:
        return DETECTION
    if isinstance(target, Tensor):
        if target.ndim == 2 and not target.is_floating_point():
            return SEGMENTATION
        if target.ndim == 3 and (target.is_floating_point() or target.dtype == torch.uint8):
            return IMAGE
    return None


def collated(targets: Sequence[Any]) -> Any:
    """Targets of a batch: (B,) for classes, (B, …) for tensors of one shape, None without targets, else a list."""
    first = targets[0] if targets else None
    if first is None:
        return None
    if isinstance(first, int):
        return torch.tensor(targets, dtype=torch.int64)
    if isinstance(first, float):
        return torch.tensor(targets, dtype=torch.float32)
    if isinstance(first, Tensor) and all(isinstance(each, Tensor) and each.shape == first.shape for each in targets):
        return torch.stack(list(targets))
    return list(targets)


def chosen(targets: Any, index: Tensor | slice) -> Any:
    """Some of the targets of a batch or a whole set."""
    if targets is None:
        return None
    if isinstance(targets, Tensor):
        return targets[index.to(targets.device) if isinstance(index, Tensor) else index]
    return targets[index] if isinstance(index, slice) else [targets[place] for place in index.tolist()]


def ready(targets: Any, device: torch.device) -> Any:
    """Targets on a device: whole numbers as int64, uint8 pictures (B, C, H, W) as floats from 0 to 1."""
    targets = _moved(targets, device)
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return targets
    return targets.float().div_(255) if targets.dtype == torch.uint8 and targets.ndim == 4 else targets.long()


def _moved(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    if isinstance(targets, Mapping):
        return {key: _moved(each, device) for key, each in targets.items()}
    if isinstance(targets, list | tuple):
        return [_moved(each, device) for each in targets]
    return targets


def classes_of(targets: Any) -> Tensor | None:
    """The targets, if they are classes (N,)."""
    is_classes = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    return targets.long() if is_classes else None
