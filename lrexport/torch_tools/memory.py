"""Memory in training: what is freed is kept for the next step; what runs out is said with the batch that was too large."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrexport.errors import DeviceError

# How torch begins to say it where it has no class for it: on the CPU, on Apple's GPUs.
_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")

# Of mallopt(3): which freed memory goes back to the system, what is mapped apart from the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HELD_BYTES, _LEAST_HELD_BYTES = 1 << 30, 32 << 20  # the second is the most that glibc before 2.35 takes for the threshold


def hold_freed_memory() -> bool:
    """Let glibc keep what this process frees, for good; whether it does.

    By default it gives large tensors back to the system and takes them anew, page by page and zeroed, in every step:
    measured 5 to 26 % of a step on a virtual machine, for 1 to 7 % more memory (benchmarks/results/held_memory.md). Tensors
    above 1 GiB are given back as before. False, and nothing is changed, where there is no glibc or the user has settings of
    malloc's.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "gnu_get_libc_version") or any(key.startswith(("MALLOC_", "GLIBC_TUNABLES")) for key in os.environ):
        return False
    assert libc is not None
    held = any(libc.mallopt(_M_MMAP_THRESHOLD, most) for most in (_HELD_BYTES, _LEAST_HELD_BYTES))
    return held and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))  # never


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
