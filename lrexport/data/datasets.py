"""--data → ImageData: named sets, folders of pictures, arrays, or what an import path returns."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lrexport.data import folder
from lrexport.data.arrays import load_arrays
from lrexport.data.augment import Augmentation
from lrexport.data.callables import load_callable
from lrexport.data.channels_last import has_channels_last, with_channels_last
from lrexport.data.images import ArraySet, ImageData
from lrexport.data.pictures import load_pictures
from lrexport.data.preprocessing import Preprocessing
from lrexport.data.sources import (
    ARRAYS,
    CIFAR,
    FOLDERS,
    PICTURES,
    check_arrays,
    check_folder,
    check_pictures,
    is_import_path,
    no_cifar,
    unknown,
)
from lrexport.data.sources import NAMES as NAMES
from lrexport.errors import InputError, UsageError
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
    asked: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
) -> ImageData:
    """The data of ``source`` for a network of ``inputs``.

    Small sets are decoded once and kept in memory; others are read by ``workers`` processes, by default one per core.
    ``download`` allows torchvision to download CIFAR. Up to ``max_bad`` unreadable images of a folder are left out.
    ``named_in`` is the file that names the data, None if the user does. ``asked`` and ``given`` are those fields of
    :class:`Preprocessing` that the user and the network say. A network that takes (H, W, C) gets pictures so. Raises
    UsageError for an unknown name, InputError for data that is missing, unreadable or does not fit, and for code that the
    user did not agree to run.
    """
    signature, asked = Signature.of(inputs), asked or {}
    if is_import_path(source):
        return load_callable(source, signature, named_in, asked, given, workers)
    name, _, root = source.partition(":")
    if name == ARRAYS:
        check_arrays(root)
        return load_arrays(source, Path(root), signature, asked, given)
    if not signature.takes_images:
        taken = f"inputs of shape {signature.shape}" if signature.is_plain else str(signature)
        raise InputError(
            f"--data {source} gives images (C, H, W); the network takes {taken}",
            "Give arrays:FILE.npz or a callable, or leave out --data: "
            "compression without training works for inputs of any shape.",
        )
    if has_channels_last(signature.shape):
        height, width, channels = signature.shape
        planes = (channels, height, width)
        return with_channels_last(load_data(source, planes, download, workers, max_bad, named_in, asked, given))
    channels, height, width = signature.shape
    shape = (channels, height, width)
    if name == "digits" and not root:
        return _digits(shape, asked)
    if name in CIFAR:
        return _cifar(source, name, Path(root or "data"), shape, download, asked, given)
    if name in FOLDERS:
        check_folder(name, root)
        return folder.load_folder(source, Path(root), shape, name == "folder", workers, max_bad, asked, given)
    if name in PICTURES:
        check_pictures(name, root)
        return load_pictures(source, Path(root), shape, name == "masks", workers, max_bad, asked, given)
    raise unknown(source)


def check_fits(data: ImageData, signature: Signature) -> None:
    """Raise InputError unless the samples are inputs of a network of ``signature``."""
    for part in (data.train, data.test):
        if not _same_inputs(part.signature, signature):
            given, taken = (
                str(each.shape) if each.is_plain or each.takes_images else str(each) for each in (part.signature, signature)
            )
            raise InputError(
                f"{data.source} has {'images' if part.signature.takes_images else 'inputs'} {given}; "
                f"the network takes {taken}",
                "Give data that fits the network, or another --input-shape.",
            )


def _same_inputs(given: Signature, taken: Signature) -> bool:
    """Whether shapes and kinds of numbers are the same, and of several inputs the names."""
    if len(given) != len(taken) or (len(given) > 1 and given.names != taken.names):
        return False
    pairs = zip(given, taken, strict=True)
    return all(one.shape == other.shape and one.is_float == other.is_float for one, other in pairs)


def _digits(input_shape: Shape, asked: Mapping[str, Any]) -> ImageData:
    """scikit-learn's 1,797 handwritten digits (UCI Optical Recognition, 8×8, values 0…16); every fifth is a test image."""
    rows = torch.from_numpy(_digit_rows())
    channels, height, width = input_shape
    small = rows[:, :-1].float().mul(255 / 16).view(-1, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)
    images = large.round().clamp(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous()
    labels = rows[:, -1].long()
    test = torch.arange(len(labels)) % 5 == 4
    half = (0.5,) * channels
    done = _for_ready_images("digits", input_shape, asked, {}, {"mean": half, "std": half})
    return ImageData(
        source="digits",
        classes=[str(digit) for digit in range(10)],
        train=ArraySet.of(images[~test], labels[~test], done),
        test=ArraySet.of(images[test], labels[test], done),
        augmentation=Augmentation(padding=max(1, height // 16), flip=False),  # a mirrored digit is another digit
        mean=done.mean,
        std=done.std,
        preprocessing=done,
    )


def _digit_rows() -> npt.NDArray[np.float64]:
    """(1797, 65): the pixels of each digit, then its class. Raises UsageError without scikit-learn.

    scikit-learn itself imports scipy's statistics first, which takes two seconds; its file of digits is all that is needed.
    """
    package = importlib.util.find_spec("sklearn")
    for place in (package and package.submodule_search_locations) or ():
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("--data digits needs scikit-learn", "pip install 'lrexport[demo]'") from error
    images, classes = load_digits(return_X_y=True)
    return np.column_stack([images, classes])


def _cifar(
    source: str,
    name: str,
    root: Path,
    input_shape: Shape,
    download: bool,
    asked: Mapping[str, Any],
    given: Mapping[str, Any] | None,
) -> ImageData:
    if input_shape != (3, 32, 32):
        raise InputError(f"{name} images are (3, 32, 32); the network takes {input_shape}", "Give --input-shape 3,32,32.")
    dataset: Any = getattr(torchvision("datasets"), name.upper())
    try:
        parts = [dataset(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        raise no_cifar(name, root, error) from error
    except OSError as error:
        raise InputError(f"cannot download or read {name} in {root}: {error}") from error
    done = _for_ready_images(name, input_shape, asked, given, {})
    sets = [
        ArraySet.of(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets), done)
        for part in parts
    ]
    classes, augmentation = parts[0].classes, Augmentation(padding=4, flip=True)
    return ImageData(source, classes, sets[0], sets[1], augmentation, done.mean, done.std, preprocessing=done)


def _for_ready_images(
    name: str, shape: Shape, asked: Mapping[str, Any], given: Mapping[str, Any] | None, data: Mapping[str, Any]
) -> Preprocessing:
    """The preprocessing of images that have the network's size already. Raises UsageError if others are asked for."""
    if asked.get("resize") is not None or asked.get("crop") is not None:
        raise UsageError(f"--resize and --crop need picture files; the images of {name} are used whole", "Leave them out.")
    done = Preprocessing.of(shape, asked, {**(given or {}), "resize": None, "crop": None}, data)
    if done.channels == "grey" and shape[0] != 1:
        raise UsageError(f"the network takes {shape[0]} channels, not grey images", "Leave out --channel-order grey.")
    return done
