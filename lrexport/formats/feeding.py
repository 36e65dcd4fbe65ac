"""Inputs of a data set for a session, without their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lrexport.data.images import ImageSet
from lrexport.torch_tools.batch import Batch

READ_AT_ONCE = 250


def inputs_for(images: ImageSet, runtime: Any, dynamic_batch: int = READ_AT_ONCE) -> Iterator[tuple[Batch, int]]:
    """Batches for a session, each with the number of its samples that are not padding.

    A fixed batch is padded with its last sample; many are read at a time whatever the batch size.
    """
    fixed = runtime.get_inputs()[0].shape[0]
    size = fixed if isinstance(fixed, int) else dynamic_batch
    for batch, _targets in images.batches(size * max(1, READ_AT_ONCE // size), torch.device("cpu")):
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            yield part.filled(fixed) if isinstance(fixed, int) else part, len(part)
