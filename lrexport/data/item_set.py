"""Samples that a user's data set makes one at a time when a batch needs them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrexport.data.augment import Augmentation
from lrexport.data.order import Order, Purpose, seed_of
from lrexport.data.preprocessing import Preprocessing
from lrexport.data.samples import NotASample, as_tensor, batch_of, checked, parts_of
from lrexport.data.targets import as_target, as_targets, collated, ready
from lrexport.data.tensor_set import add_to_digest, as_floats
from lrexport.errors import InputError, LrexportError, UsageError
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.seeds import seed_torch

_PROBED = 32  # samples that a digest is made of
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class ItemSet:
    """The samples ``indices`` of a map-style data set; ``collate`` is the user's function, if there is one.

    ``labels`` are the classes of these samples, None if their targets are no classes. ``source`` is for messages.
    """

    dataset: Any
    indices: Sequence[int]
    signature: Signature
    source: str
    labels: Tensor | None = None
    collate: Collate | None = None
    preprocessing: Preprocessing | None = None
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, indices: Tensor) -> ItemSet:
        labels = None if self.labels is None else self.labels[indices]
        return replace(self, indices=[self.indices[i] for i in indices.tolist()], labels=labels)

    def first(self) -> Batch:
        """The inputs of the first sample as the data set gives them, pictures as uint8."""
        read = _Collating(self)([_Items(self, None)[0]])
        if isinstance(read, LrexportError):
            raise read
        return read[0]

    def batches(
        self,
        size: int,
        device: torch.device,
        order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Iterator[tuple[Batch, Any]]:
        """The data set augments its samples itself. Raises InputError and UsageError naming a sample that is none."""
        if order is None:
            parts = list(torch.arange(len(self)).split(size)) if len(self) else []
        else:
            parts = [index[order.part(len(index))] for _, index in order.batches(len(self), size)]
        workers = min(self.workers, len(parts))
        loader: Any = torch.utils.data.DataLoader(
            _Items(self, order),
            batch_sampler=[part.tolist() for part in parts],
            collate_fn=_Collating(self),
            num_workers=workers,
        )
        for read in loader:
            if isinstance(read, LrexportError):
                raise read
            inputs, targets = read
            yield as_floats(inputs, self.preprocessing, device), ready(targets, device)

    def to(self, device: torch.device) -> ItemSet:
        return self

    def digest(self) -> str:
        """Hex sha256 of the number of samples and of some of them; reading all could take hours."""
        digest = hashlib.sha256(repr((self.signature.texts(), self.preprocessing, len(self))).encode())
        step = max(1, len(self) // _PROBED)
        items = _Items(self, Order(0))
        for place in range(0, len(self), step):
            with torch.random.fork_rng(devices=()):
                item = items[place]
            if isinstance(item, LrexportError):
                raise item
            add_to_digest(digest, item)
        return digest.hexdigest()


class _Items(torch.utils.data.Dataset[Any]):
    """Samples by place; an error is returned, not raised, because one of a worker would arrive with its traceback."""

    def __init__(self, items: ItemSet, order: Order | None) -> None:
        self.items, self.order = items, order

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        index = self.items.indices[place]
        if self.order is not None:  # random augmentation must not depend on the worker that makes the sample
            seed_torch(seed_of(Purpose.AUGMENTATION, self.order.seed, self.order.epoch, index))
        try:
            item = item_of(self.items.dataset, index, self.items.source)
            return (
                item if self.items.collate is not None else sample_of(item, self.items.signature, index, self.items.source)
            )
        except LrexportError as error:
            return error


@dataclass(frozen=True)
class _Collating:
    items: ItemSet

    def __call__(self, read: list[Any]) -> Any:
        errors = [each for each in read if isinstance(each, LrexportError)]
        if errors:
            return errors[0]
        try:
            if self.items.collate is None:
                return collated_samples(read, self.items.signature.names)
            return self._by_user(self.items.collate, read)
        except LrexportError as error:
            return error

    def _by_user(self, collate: Collate, read: list[Any]) -> tuple[Batch, Any]:
        """What the user's function makes of the items: inputs, or (inputs, targets), (B, …) each."""
        try:
            made = collate(read)
        except Exception as error:
            raise UsageError(
                f"--data {self.items.source!r}: its collate_fn raised {type(error).__name__}: {error}"
            ) from error
        try:
            inputs, targets = parts_of(made, self.items.signature)
            return batch_of(inputs, self.items.signature), as_targets(targets)
        except NotASample as error:
            raise InputError(f"a batch of {self.items.source} {error.message}", error.hint) from error


def item_of(dataset: Any, index: int, source: str) -> Any:
    """An item of a user's data set. Raises UsageError if that raises."""
    try:
        return dataset[index]
    except LrexportError:
        raise
    except Exception as error:
        raise UsageError(
            f"--data {source!r} raised {type(error).__name__}: {error} at item {index}",
            "The data set must give a sample for every index below its length.",
        ) from error


Sample = tuple[tuple[Tensor, ...], Any]


def sample_of(item: Any, signature: Signature, index: int, source: str) -> Sample:
    """The checked inputs of an item and its target. Raises InputError if it is no sample for the network."""
    try:
        inputs, target = parts_of(item, signature)
        return tuple(checked(as_tensor(inputs[spec.name]), spec, signature) for spec in signature), as_target(target)
    except NotASample as error:
        noun = "image" if signature.takes_images else "sample"
        raise InputError(f"{noun} {index} of {source} {error.message}", error.hint) from error


def collated_samples(samples: Sequence[Sample], names: tuple[str, ...]) -> tuple[Batch, Any]:
    """One batch of samples, (B, …) each, with the names of the inputs."""
    inputs = zip(*(inputs for inputs, _ in samples), strict=True)
    return Batch(tuple(torch.stack(each) for each in inputs), names), collated([target for _, target in samples])
