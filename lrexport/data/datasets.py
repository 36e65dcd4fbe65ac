"""--data → ImageData: ``digits``, ``cifar10``, ``cifar100``, ``imagenet:ROOT``, ``folder:ROOT`` or an import path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrexport.data import folder
from lrexport.data.augment import Augmentation
from lrexport.data.images import MEAN, STD, ArraySet, ImageData
from lrexport.data.sources import CIFAR, FOLDERS, check_folder, is_import_path, no_cifar, unknown
from lrexport.data.sources import NAMES as NAMES
from lrexport.errors import InputError, UsageError, signal_of
from lrexport.networks.building import import_callable
from lrexport.signature import Signature
from lrexport.torch_tools.import_torchvision import torchvision

Shape = tuple[int, int, int]


def load_data(
    source: str,
    inputs: Signature | Sequence[int],
    download: bool = False,
    workers: int | None = None,
    max_bad: int = 0,
    named_in: Path | None = None,
) -> ImageData:
    """The images of ``source`` for a network of ``inputs``, which must be one of shape (C, H, W).

    Small sets are decoded once and kept in memory as uint8; others are read by ``workers`` processes, by default one per
    core. ``download`` allows torchvision to download CIFAR. Up to ``max_bad`` unreadable images of a folder are left out.
    ``named_in`` is the file that names the data, None if the user does. Raises UsageError for an unknown name, InputError
    for data that is missing, unreadable or does not fit, and for code that the user did not agree to run.
    """
    signature = Signature.of(inputs)
    if not signature.takes_images:
        taken = f"inputs of shape {signature.shape}" if signature.is_plain else str(signature)
        raise InputError(
            f"--data {source} gives images (C, H, W); the network takes {taken}",
            "Leave out --data: compression without training works for inputs of any shape.",
        )
    channels, height, width = signature.shape
    shape = (channels, height, width)
    if is_import_path(source):
        return _from_callable(source, shape, named_in)
    return _load_images(source, shape, download, workers, max_bad)


def _load_images(source: str, input_shape: Shape, download: bool, workers: int | None, max_bad: int) -> ImageData:
    name, _, root = source.partition(":")
    if name == "digits" and not root:
        return _digits(input_shape)
    if name in CIFAR:
        return _cifar(source, name, Path(root or "data"), input_shape, download)
    if name in FOLDERS:
        check_folder(name, root)
        return folder.load_folder(source, Path(root), input_shape, name == "folder", workers, max_bad)
    raise unknown(source)


def check_fits(data: ImageData, signature: Signature, output_shape: tuple[int, ...]) -> None:
    """Raise InputError unless images and classes fit a network of ``signature`` to ``output_shape`` (1, classes)."""
    for part in (data.train, data.test):
        if part.image_shape != signature.shape:
            raise InputError(
                f"{data.source} has images {part.image_shape}; the network takes {signature.shape}",
                "Give data that fits the network, or another --input-shape.",
            )
    if len(output_shape) != 2:
        raise InputError(f"the network's output has the shape {tuple(output_shape)}; expected (batch, classes)")
    outputs = output_shape[1]
    if len(data.classes) != outputs:
        raise InputError(
            f"{data.source} has {len(data.classes)} classes; the network has {outputs} outputs",
            f"Build the network for this data, as in MODEL?num_classes={len(data.classes)}, or give data that fits it.",
        )


def _digits(input_shape: Shape) -> ImageData:
    """scikit-learn's 1,797 handwritten digits (UCI Optical Recognition, 8×8, values 0…16); every fifth is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("--data digits needs scikit-learn", "pip install 'lrexport[demo]'") from error
    digits = load_digits()
    channels, height, width = input_shape
    small = torch.tensor(digits.images, dtype=torch.float32).mul(255 / 16)[:, None]
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous()
    labels = torch.tensor(digits.target, dtype=torch.int64)
    test = torch.arange(len(labels)) % 5 == 4
    mean, std = (0.5,) * channels, (0.5,) * channels
    return ImageData(
        source="digits",
        classes=[str(digit) for digit in range(10)],
        train=ArraySet(images[~test], labels[~test], mean, std),
        test=ArraySet(images[test], labels[test], mean, std),
        augmentation=Augmentation(padding=max(1, height // 16), flip=False),  # a mirrored digit is another digit
        mean=mean,
        std=std,
    )


def _cifar(source: str, name: str, root: Path, input_shape: Shape, download: bool) -> ImageData:
    if input_shape != (3, 32, 32):
        raise InputError(f"{name} images are (3, 32, 32); the network takes {input_shape}", "Give --input-shape 3,32,32.")
    dataset: Any = getattr(torchvision("datasets"), name.upper())
    try:
        parts = [dataset(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise no_cifar(name, root, error) from error
    except OSError as error:
        raise InputError(f"cannot download or read {name} in {root}: {error}") from error
    sets = [
        ArraySet(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)) for part in parts
    ]
    return ImageData(source, parts[0].classes, sets[0], sets[1], Augmentation(padding=4, flip=True))


def _from_callable(source: str, input_shape: Shape, named_in: Path | None) -> ImageData:
    """Data of a user's callable: ImageData, or (train, test) as map-style datasets of (uint8 tensor (C, H, W), label)."""
    make = import_callable(source, "--data", named_in=named_in)
    try:
        made = make()
    except (Exception, SystemExit) as error:
        if signal_of(error) is not None:
            raise
        raise UsageError(f"--data {source!r} raised {type(error).__name__}: {error}") from error
    if isinstance(made, ImageData):
        return _with_sound_labels(replace(made, source=source))
    if not (isinstance(made, tuple) and len(made) == 2):
        raise UsageError(
            f"--data {source!r} returned {type(made).__name__}",
            "Return lrexport.data.images.ImageData, or (train, test): datasets of (uint8 image (C, H, W), label).",
        )
    train, test = (_collect(source, part, input_shape) for part in made)
    count = int(train.labels.max()) + 1
    names = [str(label) for label in range(count)]
    return _with_sound_labels(ImageData(source, names, train, test, None, train.mean, train.std))


def _with_sound_labels(data: ImageData) -> ImageData:
    """``data`` itself. Raises InputError if a part is empty or a label is not one of the classes."""
    for part, images in (("train", data.train), ("test", data.test)):
        if not len(images):
            raise InputError(f"{data.source} has no images in {part}")
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(data.classes):
            raise InputError(
                f"{data.source} has labels from {low} to {high} in {part}, but {len(data.classes)} classes",
                "Number the classes from 0, in the same way in train and test.",
            )
    return data


def _collect(source: str, dataset: Any, input_shape: Shape) -> ArraySet:
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(_length(source, dataset)):
        try:
            image, label = dataset[index]
            labels.append(int(label))
        except Exception as error:
            raise UsageError(
                f"--data {source!r} raised {type(error).__name__}: {error} at image {index}",
                "The dataset must give (uint8 image (C, H, W), label) for every index.",
            ) from error
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or tuple(image.shape) != input_shape:
            returned = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(f"image {index} of {source} is {returned}; expected uint8 {input_shape}")
        images.append(image)
    if not images:
        raise InputError(f"{source} has no images")
    return ArraySet(torch.stack(images), torch.tensor(labels), *_statistics(input_shape[0]))


def _statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation to normalise by: ImageNet's for RGB, otherwise 0.5."""
    return (MEAN, STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)


def _length(source: str, dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError as error:
        raise UsageError(
            f"--data {source!r} gives a {type(dataset).__name__}, which has no length",
            "Return (train, test): datasets with a length.",
        ) from error
