"""Samples of any shape and dtype in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order
from lrexport.data.preprocessing import Normalisation, Preprocessing, in_order
from lrexport.data.targets import chosen, classes_of, ready
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch


@dataclass(frozen=True)
class TensorSet:
    """Inputs (N, …) each for a network of ``signature``, and their targets: a tensor (N, …), a list of N, or None.

    Pictures are uint8 RGB (N, C, H, W) and become floats batch by batch, by ``preprocessing``.
    """

    inputs: Batch
    signature: Signature
    targets: Any = None
    preprocessing: Preprocessing | None = None

    @property
    def labels(self) -> Tensor | None:
        """(N,) int64 if the targets are classes."""
        return classes_of(self.targets)

    def __len__(self) -> int:
        return len(self.inputs)

    def subset(self, indices: Tensor) -> TensorSet:
        inputs = self.inputs[indices.to(self.inputs.tensors[0].device)]
        return replace(self, inputs=inputs, targets=chosen(self.targets, indices))

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """Copies, because a network may change its input in place. There is no augmentation for them."""
        if order is None:
            parts: Iterator[Tensor | slice] = (slice(start, start + size) for start in range(0, len(self), size))
        else:
            parts = (index[order.part(len(index))] for _, index in order.batches(len(self), size))
        for part in parts:
            index = part.to(self.inputs.tensors[0].device) if isinstance(part, Tensor) else part
            yield as_floats(self.inputs[index], self.preprocessing, device), ready(chosen(self.targets, part), device)

    def to(self, device: torch.device) -> TensorSet:
        return replace(self, inputs=self.inputs.to(device))

    def digest(self) -> str:
        """Hex sha256 of all values."""
        digest = hashlib.sha256(repr((self.signature.texts(), self.preprocessing)).encode())
        for tensor in self.inputs.tensors:
            add_to_digest(digest, tensor)
        add_to_digest(digest, self.targets)
        return digest.hexdigest()


def as_floats(inputs: Batch, preprocessing: Preprocessing | None, device: torch.device) -> Batch:
    """A copy of the inputs on ``device``, with pictures as the network takes them."""
    copied = inputs.to(device, copy=True)
    if preprocessing is None:
        return copied
    normalise = Normalisation.of(preprocessing, device)
    return copied.map(lambda tensor: normalise(in_order(tensor, preprocessing.channels)))


def add_to_digest(digest: Any, value: Any) -> None:
    """Add a tree of tensors and plain values."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)} ".encode())
        digest.update(
            plain.view(torch.uint8).numpy().data if plain.numel() and plain.ndim else repr(plain.tolist()).encode()
        )
    elif isinstance(value, Mapping):
        for key, each in value.items():
            digest.update(f"{key}: ".encode())
            add_to_digest(digest, each)
    elif isinstance(value, list | tuple):
        for each in value:
            add_to_digest(digest, each)
    else:
        digest.update(repr(value).encode())
