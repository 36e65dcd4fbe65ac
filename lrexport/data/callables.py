"""``--data package.module:callable``: what a user's callable returns, as data for a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrexport.data.arrays import data_of, highest_class, pixels_preprocessing, whole_set
from lrexport.data.images import ArraySet, ImageData, ImageSet, parted
from lrexport.data.item_set import Collate, ItemSet, Sample, collated_samples, item_of, sample_of
from lrexport.data.targets import CLASSIFICATION, SEGMENTATION, as_target, task_of
from lrexport.data.tensor_set import TensorSet
from lrexport.errors import InputError, LrexportError, UsageError, signal_of
from lrexport.networks.building import import_callable
from lrexport.preprocessing import Preprocessing
from lrexport.signature import Signature

_IN_MEMORY_BYTES = 2 << 30
_MOST_WITHOUT_LENGTH = 200_000
_AT_ONCE = 64
_RETURN = (
    "Return (train, test), or one data set, of which every fifth sample is used for the final score. A sample is an input, "
    "a tuple or a dict of inputs by name, or (inputs, target)."
)


@dataclass(frozen=True)
class _Asked:
    """What is known of the data before it is read."""

    source: str
    signature: Signature
    asked: Mapping[str, Any]
    given: Mapping[str, Any] | None
    workers: int
    collate: Collate | None

    @property
    def noun(self) -> str:
        return "image" if self.signature.takes_images else "sample"


def load_callable(
    source: str,
    signature: Signature,
    named_in: Path | None,
    asked: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    workers: int | None,
) -> ImageData:
    """The data that the callable ``source`` returns for a network of ``signature``.

    It returns an ImageData, (train, test), or one data set. A data set is map-style or iterable, a tensor of samples, or a
    dict of tensors by name; its samples may be of any shape. Small ones are read once, others sample by sample, by
    ``workers`` processes. Raises UsageError for a callable that fails or returns something else, InputError for samples
    that do not fit.
    """
    make = import_callable(source, "--data", named_in=named_in)
    try:
        made = make()
    except (Exception, SystemExit) as error:
        if signal_of(error) is not None:
            raise
        raise UsageError(f"--data {source!r} raised {type(error).__name__}: {error}") from error
    if isinstance(made, ImageData):
        return with_sound_labels(_with_its_preprocessing(replace(made, source=source), asked))
    about = _Asked(source, signature, asked, given, workers or 0, getattr(make, "collate_fn", None))
    parts = made if isinstance(made, tuple) and len(made) == 2 else (made,)
    if not all(map(_is_set, parts)):
        shown = ", ".join(type(part).__name__ for part in parts)
        raise UsageError(f"--data {source!r} returned {shown if len(parts) == 1 else f'({shown})'}", _RETURN)
    if len(parts) == 2:
        train, test = (_read(about, part) for part in parts)
    else:
        whole = _read(about, parts[0])
        train, test = (whole.subset(index) for index in parted(len(whole), source))
    return _data(about, train, test, getattr(parts[0], "classes", None))


def _with_its_preprocessing(data: ImageData, asked: Mapping[str, Any]) -> ImageData:
    """``data`` with the preprocessing that its images in memory say. Raises UsageError if the user asked for another."""
    if any(value is not None for value in asked.values()):
        raise UsageError(
            f"--data {data.source!r} returned an ImageData, which says itself how its images become inputs",
            "Leave out --mean, --std and the others, or set mean, std and value_range of its sets.",
        )
    train = data.train
    if data.preprocessing is not None or not isinstance(train, ArraySet) or len(train.mean) != train.image_shape[0]:
        return data
    said = {"mean": train.mean, "std": train.std, "value_range": train.value_range}
    return replace(data, preprocessing=Preprocessing.of(train.image_shape, {}, data=said))


def with_sound_labels(data: ImageData) -> ImageData:
    """``data`` itself. Raises InputError if a part is empty or a label is not one of the classes."""
    for part, images in (("train", data.train), ("test", data.test)):
        if not len(images):
            raise InputError(f"{data.source} has no images in {part}")
        if images.labels is None or data.default_task != CLASSIFICATION:
            continue
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(data.classes):
            raise InputError(
                f"{data.source} has labels from {low} to {high} in {part}, but {len(data.classes)} classes",
                "Number the classes from 0, in the same way in train and test.",
            )
    return data


def _is_set(made: Any) -> bool:
    is_text = isinstance(made, str | bytes)
    return not is_text and (
        isinstance(made, Iterable | Tensor) or (hasattr(made, "__getitem__") and hasattr(made, "__len__"))
    )


def _data(about: _Asked, train: ImageSet, test: ImageSet, names: Any) -> ImageData:
    source = about.source
    if isinstance(train, TensorSet) and isinstance(test, TensorSet):
        data = data_of(source, train, test)
        return replace(data, classes=_named(names, len(data.classes), data.default_task))
    if isinstance(train, ArraySet) and isinstance(test, ArraySet):
        assert train.labels is not None
        count = int(train.labels.max()) + 1
        preprocessing = pixels_preprocessing(train.images[:1], about.signature, about.asked, about.given)
        classes = _named(names, count, CLASSIFICATION)
        data = ImageData(source, classes, train, test, None, train.mean, train.std, (), preprocessing)
        return with_sound_labels(data)
    tasks = {task_of(_first_target(part)) for part in (train, test)}
    if len(tasks) > 1:
        raise InputError(f"{source} has other targets in test than in train", "Give both the same kind of targets, or none.")
    (task,) = tasks
    (train, most), (test, in_test) = (_surveyed(part, task) for part in (train, test))
    count = max(most, in_test) if task == SEGMENTATION else most
    classes = _named(names, count, task)
    done = getattr(train, "preprocessing", None)
    mean, std = ((), ()) if done is None else (done.mean, done.std)
    return with_sound_labels(ImageData(source, classes, train, test, None, mean, std, (), done, task))


def _named(names: Any, count: int, task: str | None) -> list[str]:
    """Names of ``count`` classes: those of the user's data set if it has as many, else numbers."""
    enough = isinstance(names, list | tuple) and len(names) >= count and all(isinstance(name, str) for name in names)
    if count and enough and (task == SEGMENTATION or len(names) == count):
        return list(names)
    return [str(number) for number in range(count)]


def _read(about: _Asked, dataset: Any) -> ImageSet:
    """A set of the samples of a user's data set: in memory, or read when they are needed."""
    if isinstance(dataset, Mapping):
        return whole_set(about.source, dataset, about.signature, about.asked, about.given)
    collate = getattr(dataset, "collate_fn", None) or about.collate
    streams = isinstance(dataset, torch.utils.data.IterableDataset)
    if streams or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        items = _listed(about, dataset)
        return _lazy(about, items, collate) if collate is not None else _collected(about, items, len(items))
    count = len(dataset)
    if not count:
        raise InputError(f"{about.source} has no {about.noun}s")
    if collate is not None:
        return _lazy(about, dataset, collate)
    first = sample_of(item_of(dataset, 0, about.source), about.signature, 0, about.source)
    if count * _bytes_of(first) > _IN_MEMORY_BYTES:
        return _lazy(about, dataset, None)
    return _collected(about, dataset, count)


def _listed(about: _Asked, stream: Iterable[Any]) -> list[Any]:
    """The items of an iterable, which are kept. Raises UsageError if it raises, InputError if it does not end."""
    items: list[Any] = []
    size = 0
    try:
        for item in stream:
            items.append(item)
            size += _bytes_of(item)
            if size > _IN_MEMORY_BYTES or len(items) > _MOST_WITHOUT_LENGTH:
                break
    except LrexportError:
        raise
    except Exception as error:
        raise UsageError(f"--data {about.source!r} raised {type(error).__name__}: {error} at item {len(items)}") from error
    if size > _IN_MEMORY_BYTES or len(items) > _MOST_WITHOUT_LENGTH:
        raise InputError(
            f"{about.source} gives more than {len(items) - 1:,} samples one after the other, too many to keep in memory",
            "Return a data set with __getitem__ and __len__, whose samples are read when they are needed.",
        )
    if not items:
        raise InputError(f"{about.source} has no {about.noun}s")
    return items


def _collected(about: _Asked, dataset: Any, count: int) -> ImageSet:
    """All samples in memory. Raises InputError where one does not fit."""
    samples: list[Sample] = []
    for index in range(count):
        sample = sample_of(item_of(dataset, index, about.source), about.signature, index, about.source)
        if samples and any(one.dtype != other.dtype for one, other in zip(sample[0], samples[0][0], strict=True)):
            raise InputError(
                f"{about.noun} {index} of {about.source} is {sample[0][0].dtype}, the first {samples[0][0][0].dtype}",
                "Give all samples in one type.",
            )
        if samples and task_of(sample[1]) != task_of(samples[0][1]):
            raise InputError(
                f"{about.noun} {index} of {about.source} has another kind of target than the first",
                "Give each sample a target, or none of them.",
            )
        samples.append(sample)
    batch, targets = collated_samples(samples, about.signature.names)
    preprocessing = pixels_preprocessing(batch.tensors[0], about.signature, about.asked, about.given)
    if preprocessing is not None and task_of(samples[0][1]) == CLASSIFICATION:
        return ArraySet.of(batch.only, targets, preprocessing)
    return TensorSet(batch, about.signature, targets, preprocessing)


def _lazy(about: _Asked, dataset: Any, collate: Collate | None) -> ItemSet:
    items = ItemSet(dataset, range(len(dataset)), about.signature, about.source, collate=collate, workers=about.workers)
    preprocessing = pixels_preprocessing(items.first().tensors[0], about.signature, about.asked, about.given)
    return replace(items, preprocessing=preprocessing)


def _first_target(images: ImageSet) -> Any:
    """The target of the first sample."""
    _, targets = next(iter(images.batches(1, torch.device("cpu"))))
    return None if targets is None else as_target(targets[0])


def _surveyed(images: ImageSet, task: str | None) -> tuple[ImageSet, int]:
    """The set with its labels, and the number of classes up to the highest, from one pass over all samples."""
    if task not in (CLASSIFICATION, SEGMENTATION):
        return images, 0
    labels: list[Tensor] = []
    most = -1
    for _, targets in images.batches(_AT_ONCE, torch.device("cpu")):
        most = max(most, highest_class(f"{getattr(images, 'source', 'the data')}", targets))
        if task == CLASSIFICATION:
            labels.append(targets)
    if task == CLASSIFICATION and isinstance(images, ItemSet):
        images = replace(images, labels=torch.cat(labels))
    return images, most + 1


def _bytes_of(value: Any) -> int:
    """Bytes of the tensors and arrays in a sample."""
    return sum(int(getattr(each, "nbytes", 0)) for each in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value
