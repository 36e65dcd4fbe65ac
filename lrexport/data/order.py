"""In which order, and varied how, training images come: pure functions of a few numbers, so that nothing has to be saved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What random numbers are for. Those of different purposes are independent."""

    STAGE = 1
    ORDER = 2
    AUGMENTATION = 3
    DROPOUT = 4


def seed_of(purpose: Purpose, *numbers: int) -> int:
    """One seed of several numbers, as many each time for a purpose: like ones give unlike seeds.

    numpy's SeedSequence (O'Neill 2015), to which trailing zeros are nothing: the purpose comes first.
    """
    entropy = [int(purpose), *(number % (1 << 64) for number in numbers)]
    (word,) = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(word) >> 1  # torch takes 63 bits and a sign


@dataclass(frozen=True)
class Order:
    """One epoch of training, from its batch ``first`` on, as the process ``rank`` of ``world`` sees it.

    A batch goes through in ``portions``, each of which is shared out among the processes: every one takes every
    ``world``-th image. Order and augmentation of an image depend on seed, epoch and place alone: any number of processes,
    and a run that was stopped and goes on, see the same.
    """

    seed: int
    epoch: int = 0
    first: int = 0
    rank: int = 0
    world: int = 1
    portions: int = 1

    def batches(self, images: int, size: int) -> Iterator[tuple[int, Tensor]]:
        """(number of the batch, its images' indices (≤ size,)), whole batches, whoever computes them."""
        order = torch.randperm(images, generator=self.generator(Purpose.ORDER))
        for step in range(self.first, self.steps(images, size)):
            yield step, order[step * size : (step + 1) * size]

    def steps(self, images: int, size: int) -> int:
        """Batches of an epoch. A last one of less than half the size is left out: BatchNorm's statistics over a few hurt.

        So is one with a portion of a single image, of which they may not be taken at all, or with none for a process.
        """
        left_out = 0 < images % size < max(size // 2, max(2, self.world) * self.portions)
        return max(1, math.ceil(images / size) - left_out)

    def part(self, images: int) -> Tensor:
        """This process's places in a batch of ``images``, portion by portion."""
        return torch.cat([portion[self.rank :: self.world] for portion in torch.arange(images).tensor_split(self.portions)])

    def sizes(self, images: int) -> list[int]:
        """Images of each portion that are this process's."""
        return [len(portion[self.rank :: self.world]) for portion in torch.arange(images).tensor_split(self.portions)]

    def generator(self, purpose: Purpose, *place: int) -> torch.Generator:
        """Random numbers for a place in the epoch, on the CPU, so that a seed gives the same everywhere."""
        return torch.Generator().manual_seed(seed_of(purpose, self.seed, self.epoch, *place))

    def of(self, epoch: int, first: int = 0) -> Order:
        """Another epoch, from its batch ``first`` on."""
        return replace(self, epoch=epoch, first=first)
