"""Order and random numbers of training images: pure functions of a few numbers, so no random state has to be saved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """The purpose of random numbers; those of different purposes are independent."""

    STAGE = 1
    ORDER = 2
    AUGMENTATION = 3
    DROPOUT = 4


def seed_of(purpose: Purpose, *numbers: int) -> int:
    """One seed from several numbers, by numpy's SeedSequence (O'Neill 2015); similar numbers give unrelated seeds.

    SeedSequence ignores trailing zeros, so the purpose comes first, and each purpose always has as many numbers.
    """
    entropy = [int(purpose), *(number % (1 << 64) for number in numbers)]
    (word,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(word) >> 1  # torch's seeds are signed 64-bit integers


@dataclass(frozen=True)
class Order:
    """One epoch of training, from its batch ``first`` on, for the process ``rank`` of ``world`` processes.

    A batch is split into ``portions``; each process takes every ``world``-th image of each portion. The order and the
    augmentation of an image only depend on seed, epoch and place, so they are the same for any number of processes and
    in resumed runs.
    """

    seed: int
    epoch: int = 0
    first: int = 0
    rank: int = 0
    world: int = 1
    portions: int = 1

    def batches(self, images: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """(number of the batch, indices of its images (≤ size,)): whole batches, for all processes together."""
        order = torch.randperm(images, generator=self.generator(Purpose.ORDER))
        for step in range(self.first, self.steps(images, size)):
            yield step, order[step * size : (step + 1) * size]

    def steps(self, images: int, size: int) -> int:
        """Batches of an epoch. A last batch below half the size is left out: BatchNorm's statistics would be too noisy.

        So is one in which a portion has a single image, of which BatchNorm takes no statistics, or a process has none.
        """
        left_out = 0 < images % size < max(size // 2, max(2, self.world) * self.portions)
        return max(1, math.ceil(images / size) - left_out)

    def part(self, images: int) -> Tensor:
        """The places of this process's images in a batch of ``images``, portion by portion."""
        return torch.cat([portion[self.rank :: self.world] for portion in torch.arange(images).tensor_split(self.portions)])

    def sizes(self, images: int) -> list[int]:
        """The number of this process's images in each portion."""
        return [len(portion[self.rank :: self.world]) for portion in torch.arange(images).tensor_split(self.portions)]

    def generator(self, purpose: Purpose, *place: int) -> torch.Generator:
        """Random numbers for a place in the epoch; on the CPU, so that a seed gives the same numbers everywhere."""
        return torch.Generator().manual_seed(seed_of(purpose, self.seed, self.epoch, *place))

    def of(self, epoch: int, first: int = 0) -> Order:
        """Another epoch, from its batch ``first`` on."""
        return replace(self, epoch=epoch, first=first)
