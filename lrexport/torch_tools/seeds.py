"""Seed torch's generators, often: without the stack that torch.manual_seed formats for devices that are not in use."""

from __future__ import annotations

import torch


def seed_torch(seed: int) -> None:
    """Seed the generators of the CPU and of all devices in use, as :func:`torch.manual_seed` does in a millisecond.

    A device that is used for the first time later is not seeded.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    if torch.xpu.is_initialized():
        torch.xpu.manual_seed_all(seed)
