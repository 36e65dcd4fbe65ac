"""Inputs of a data set for a session, with or without their targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lrexport.data.images import ImageSet
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.targets import part_of

READ_AT_ONCE = 250


def feed(
    images: ImageSet, runtime: Any, dynamic_batch: int = READ_AT_ONCE, at_once: int = READ_AT_ONCE
) -> Iterator[tuple[Batch, Any, int]]:
    """Batches for a session, with the targets and the number of samples that are not padding.

    A fixed batch is padded with its last sample; about ``at_once`` are read at a time whatever the batch size.
    """
    fixed = runtime.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else dynamic_batch
    for batch, targets in images.batches(size * max(1, at_once // size), torch.device("cpu")):
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            chosen = part_of(targets, slice(start, start + size), len(batch))
            yield part.filled(fixed) if isinstance(fixed, int) else part, chosen, len(part)


def inputs_for(images: ImageSet, runtime: Any, dynamic_batch: int = READ_AT_ONCE) -> Iterator[tuple[Batch, int]]:
    """:func:`feed` without the targets."""
    return ((batch, count) for batch, _targets, count in feed(images, runtime, dynamic_batch))
