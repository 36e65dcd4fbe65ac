"""Pictures for networks that take them as (H, W, C), as TensorFlow's do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.images import ImageData, ImageSet
from lrexport.data.order import Order
from lrexport.signature import Signature

_CHANNELS = (1, 3)


def has_channels_last(shape: Sequence[int]) -> bool:
    """Whether pictures of this shape are (H, W, C): the last axis can be that of colours, the first one cannot."""
    return len(shape) == 3 and shape[2] in _CHANNELS and shape[0] not in _CHANNELS


@dataclass(frozen=True)
class ChannelsLastSet:
    """The pictures of ``planes``, (C, H, W), as (H, W, C)."""

    planes: ImageSet

    @property
    def labels(self) -> Tensor | None:
        return self.planes.labels

    @property
    def signature(self) -> Signature:
        channels, height, width = self.planes.signature.shape
        return Signature.of((height, width, channels))

    def __len__(self) -> int:
        return len(self.planes)

    def subset(self, indices: Tensor) -> ChannelsLastSet:
        return ChannelsLastSet(self.planes.subset(indices))

    def batches(
        self, size: int, device: torch.device, order: Order | None = None, augmentation: Augmentation | None = None
    ) -> Iterator[tuple[Any, Any]]:
        """See :class:`ImageSet`; augmented before the axes change."""
        for batch, targets in self.planes.batches(size, device, order, augmentation):
            yield batch.map(lambda pictures: pictures.permute(0, 2, 3, 1).contiguous()), targets

    def to(self, device: torch.device) -> ChannelsLastSet:
        return ChannelsLastSet(self.planes.to(device))

    def digest(self) -> str:
        return self.planes.digest()


def with_channels_last(data: ImageData) -> ImageData:
    """The data with pictures as (H, W, C)."""
    return replace(data, train=ChannelsLastSet(data.train), test=ChannelsLastSet(data.test))
