"""Memory that runs out in training, said with the batch that was too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrexport.errors import DeviceError

# How torch begins to say it where it has no class for it: on the CPU, on Apple's GPUs.
_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")


@contextmanager
def naming_the_batch(where: str, batch_size: int, accumulate: int, processes: int) -> Iterator[None]:
    """Inside the block: out of memory becomes a DeviceError with the batch's size and what to try. Nothing is changed.

    ``batch_size`` images, of all ``processes`` together, go through in ``accumulate`` portions. ``where`` names the device
    and the stage.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        ours = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not ours and not any(text in str(error) for text in _TEXTS):
            raise
        shared = f" shared by {processes} processes" if processes > 1 else ""
        portions = f" in {accumulate} portions" if accumulate > 1 else ""
        raise DeviceError(
            f"out of memory on {where}, with --batch-size {batch_size}{shared}{portions}",
            f"Try --accumulate {2 * accumulate}, which takes a batch in smaller portions, or a smaller --batch-size. With "
            "--resume --allow-changes it goes on from the last checkpoint.",
        ) from error
