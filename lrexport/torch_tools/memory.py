"""Memory: kept for the next step of training or given back, and out-of-memory errors with the batch size."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrexport.errors import DeviceError

# Texts of out-of-memory errors without their own class: on the CPU, on Apple's GPUs.
_TEXTS = ("DefaultCPUAllocator: can't allocate memory", "MPS backend out of memory")

# Parameters of mallopt(3): when freed memory returns to the system, and from which size it is mapped outside of the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_HELD_BYTES, _LEAST_HELD_BYTES = 1 << 30, 32 << 20  # the second is the largest value that glibc before 2.35 accepts


def hold_freed_memory() -> bool:
    """Make glibc keep the memory that this process frees, permanently; returns whether it does.

    By default glibc returns large tensors to the system and gets them back in every step, page by page and zeroed. Keeping
    them saves 5 to 26 % of a step on a virtual machine, for 1 to 7 % more memory (benchmarks/results/held_memory.md).
    Tensors above 1 GiB are still returned. Without glibc, or if the user has set options of malloc, nothing is changed and
    the result is False.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not hasattr(libc, "gnu_get_libc_version") or any(key.startswith(("MALLOC_", "GLIBC_TUNABLES")) for key in os.environ):
        return False
    assert libc is not None
    held = any(libc.mallopt(_M_MMAP_THRESHOLD, most) for most in (_HELD_BYTES, _LEAST_HELD_BYTES))
    return held and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))  # -1: never return memory


def give_back() -> None:
    """Return freed memory to the system: glibc keeps freed tensors of some megabytes for later ones of the same size."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    trim = getattr(libc, "malloc_trim", None)  # absent from other C libraries, such as musl
    if trim is not None:
        trim(0)


@contextmanager
def naming_the_batch(where: str, batch_size: int, accumulate: int, processes: int) -> Iterator[None]:
    """Inside the block, out-of-memory errors become a DeviceError with the batch size and what to try.

    ``batch_size`` images, of all ``processes`` together, are processed in ``accumulate`` portions. ``where`` names the
    device and the stage.
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
            f"Try --accumulate {2 * accumulate}, which processes a batch in smaller portions, or a smaller --batch-size. "
            "--resume --allow-changes continues from the last checkpoint.",
        ) from error
