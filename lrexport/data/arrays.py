"""``arrays:FILE.npz``: inputs by name, the first axis the samples, with targets or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrexport.artifacts.arrays import read_arrays
from lrexport.data.augment import IGNORED
from lrexport.data.images import ImageData, parted
from lrexport.data.preprocessing import Preprocessing
from lrexport.data.samples import TARGETS, NotASample, batch_of, parts_of
from lrexport.data.targets import CLASSIFICATION, SEGMENTATION, as_target, as_targets, task_of
from lrexport.data.tensor_set import TensorSet
from lrexport.errors import InputError, UsageError
from lrexport.signature import Signature

_HINT = "Write it with numpy.savez(FILE, NAME=array, …, target=array), samples along the first axis of each."


def load_arrays(
    source: str, path: Path, signature: Signature, asked: Mapping[str, Any], given: Mapping[str, Any] | None
) -> ImageData:
    """The arrays of a file, every fifth sample a test sample. ``asked`` and ``given`` are for uint8 pictures.

    Raises InputError for a file that cannot be read, and for arrays that are no samples for the network.
    """
    arrays = read_arrays(path)
    key = next((name for name in TARGETS if name in arrays and name not in signature.names), "")
    names, target = None, arrays.get(key)
    if target is not None and target.dtype.kind == "U":
        names, target = np.unique(target, return_inverse=True)
        arrays[key] = target.reshape(arrays[key].shape)
    whole = whole_set(source, arrays, signature, asked, given)
    train, test = (whole.subset(index) for index in parted(len(whole), source))
    return data_of(source, train, test, None if names is None else [str(name) for name in names])


def whole_set(
    source: str,
    arrays: Mapping[Any, Any],
    signature: Signature,
    asked: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> TensorSet:
    """All samples of arrays by name. Raises InputError."""
    try:
        inputs, target = parts_of(arrays, signature)
        batch = batch_of(inputs, signature)
        target = as_targets(target)
    except NotASample as error:
        raise InputError(f"{source} {error.message}", error.hint) from error
    if target is not None:
        has_length = isinstance(target, list) or (isinstance(target, Tensor) and target.ndim > 0)
        count = len(target) if has_length else 0
        if count != len(batch):
            raise InputError(f"{source} has {count} targets for {len(batch)} samples", _HINT)
        if isinstance(target, Tensor) and target.is_floating_point() and not bool(target.isfinite().all()):
            raise InputError(f"{source} has NaN or infinity among its targets", "Leave out such samples.")
    return TensorSet(batch, signature, target, pixels_preprocessing(batch.tensors[0], signature, asked, given))


def pixels_preprocessing(
    tensor: Tensor, signature: Signature, asked: Mapping[str, Any], given: Mapping[str, Any] | None
) -> Preprocessing | None:
    """That of uint8 pictures, which have the network's size; None for other inputs, which are taken as they are.

    Raises UsageError where the user asked for it and there are no pictures.
    """
    said = [name for name, value in asked.items() if value is not None]
    if tensor.dtype == torch.uint8 and signature.takes_images:
        if {"resize", "crop"} & {*said}:
            raise UsageError("--resize and --crop need picture files; arrays are used at their size", "Leave them out.")
        return Preprocessing.of(signature.shape, asked, {**(given or {}), "resize": None, "crop": None})
    if said:
        raise UsageError(
            "--mean, --std, --value-range and --channel-order need uint8 pictures; this data is used as it is",
            "Leave them out, or give uint8 pictures (C, H, W).",
        )
    return None


def data_of(source: str, train: TensorSet, test: TensorSet, names: list[str] | None = None) -> ImageData:
    """The data of two sets of samples, with its classes and its task. Raises InputError for labels that are none."""
    tasks = {_task(part.targets) for part in (train, test)}
    if len(tasks) > 1:
        raise InputError(f"{source} has other targets in test than in train", "Give both the same kind of targets, or none.")
    (task,) = tasks
    classes: list[str] = []
    if task in (CLASSIFICATION, SEGMENTATION):
        highest = max(highest_class(source, part.targets) for part in (train, test))
        classes = names or [str(number) for number in range(highest + 1)]
    done = train.preprocessing
    mean, std = ((), ()) if done is None else (done.mean, done.std)
    return ImageData(source, classes, train, test, None, mean, std, (), done, task)


def _task(targets: Any) -> str | None:
    return task_of(None if targets is None else as_target(targets[0]))


def highest_class(source: str, targets: Any) -> int:
    """The largest class among targets (N,) or masks (N, H, W). Raises InputError for negative ones."""
    parts = targets if isinstance(targets, list) else [targets]
    ignored = [part[part != IGNORED] if part.ndim > 1 else part for part in parts]
    numbers = torch.cat([part.reshape(-1).long() for part in ignored])
    if not numbers.numel():
        raise InputError(f"all targets of {source} are {IGNORED}, which is ignored", "Number the classes from 0.")
    low = int(numbers.min())
    if low < 0:
        raise InputError(f"{source} has classes from {low} to {int(numbers.max())}", "Number the classes from 0.")
    return int(numbers.max())
