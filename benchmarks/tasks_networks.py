"""Networks and data of tasks.py, as users have them in a module of their own: MODEL and --data name what is here.

Pictures are scenes of scikit-learn's handwritten digits over scikit-image's textures, made from fixed seeds. Digits and
parts of textures of the test pictures are in no training picture.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Parts = tuple[Any, Any]  # training and test samples
CLASSES = 10
ALL, FEW = tuple(range(CLASSES)), (0, 1, 4)  # digits; a network learns to find three of them in minutes
TEXTURES = ("brick", "grass", "gravel")
CIFAR = "CIFAR10_JPEG"  # environment variable with the path of cifar10_jpeg.npz


# Networks. Those with a size of input that is theirs say it; tasks.py gives it to the others by --input-shape.


def unet(classes: int = len(FEW) + 1) -> nn.Module:
    """A U-Net of segmentation-models-pytorch over a ResNet-18."""
    import segmentation_models_pytorch as smp  # not a dependency of lrexport

    return smp.Unet("resnet18", encoder_weights=None, encoder_depth=3, decoder_channels=(48, 24, 12), classes=classes)


unet.input_shape = (3, 32, 32)


class Doubler(nn.Module):
    """Super-resolution ×2, a small EDSR (Lim et al. 2017, arXiv 1707.02921): learns what bicubic resizing lacks."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.tail = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, image: Tensor) -> Tensor:
        features = self.head(image)
        for block in self.body:
            features = features + block(features)
        enlarged = F.interpolate(image, scale_factor=2, mode="bicubic", align_corners=False)
        return enlarged + self.tail(features)


def doubler() -> nn.Module:
    return Doubler()


doubler.input_shape = (3, 16, 16)


def series() -> nn.Module:
    """A 1-D network for the twelve channels of Japanese Vowels."""

    def layer(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
        return [nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm1d(outputs), nn.ReLU()]

    return nn.Sequential(
        *layer(12, 64, 7), *layer(64, 128, 5), *layer(128, 128, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(128, 9)
    )


series.input_shape = (12, 29)


class Pair(nn.Module):
    """Two pictures of the same digit, each with its layers, to its class."""

    inputs: ClassVar = {"left": (1, 24, 24), "right": (1, 24, 24)}

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = self._trunk(), self._trunk()
        self.head = nn.Sequential(nn.Linear(2 * 64, 128), nn.ReLU(), nn.Linear(128, CLASSES))

    @staticmethod
    def _trunk() -> nn.Sequential:
        widths, layers = (1, 32, 48, 64), list[nn.Module]()
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 9, 64))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.left(left), self.right(right)], 1).relu())
        return scores


def hugging(num_classes: int = CLASSES) -> nn.Module:
    """A Hugging Face vision model, built from its configuration."""
    from transformers import ResNetConfig, ResNetForImageClassification  # not a dependency of lrexport

    widths = [32, 64, 128, 256]
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=widths, depths=[1, 1, 1, 1], layer_type="basic", num_labels=num_classes
    )
    return ResNetForImageClassification(config)


hugging.inputs = {"pixel_values": (3, 48, 48)}


def _of_short_training(network: nn.Module) -> nn.Module:
    """BatchNorm of torchvision's MobileNetV3 forgets a hundred times slower than a training of minutes learns."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return network


def lraspp(classes: int = len(FEW) + 1) -> nn.Module:
    """torchvision's LR-ASPP over a MobileNetV3."""
    import lrexport.networks.torchvision_zoo as zoo

    return _of_short_training(zoo.build("lraspp_mobilenet_v3_large", num_classes=classes))


lraspp.input_shape = (3, 64, 64)


def detector(size: int = 96, classes: int = len(FEW) + 1) -> nn.Module:
    """torchvision's SSDlite, whose pictures are 320 × 320 otherwise, for smaller ones."""
    import lrexport.networks.torchvision_zoo as zoo

    network: Any = zoo.build("ssdlite320_mobilenet_v3_large", num_classes=classes)
    network.transform.min_size, network.transform.max_size, network.transform.fixed_size = (size,), size, (size, size)
    return _of_short_training(network)


detector.input_shape = (3, 96, 96)


# Data. Each callable returns (training, test) samples; those named …_unlabelled have no targets.


@cache
def _digits(which: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits of these classes, (N, 8, 8) from 0 to 1, and their places in ``which``."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    here = np.isin(loaded.target, which)
    classes = torch.tensor([which.index(each) for each in loaded.target[here]])
    return torch.from_numpy(loaded.images[here]).float() / 16, classes


@cache
def _textures() -> tuple[Tensor, ...]:
    from skimage import data  # not a dependency of lrexport

    return tuple(torch.from_numpy(np.asarray(getattr(data, name)())).float() / 255 for name in TEXTURES)


@dataclass
class _Scene:
    image: Tensor  # (3, size, size) from 0 to 1
    mask: Tensor  # (size, size): 0 or the class of a digit + 1
    boxes: list[list[float]]
    labels: list[int]


def _drawn(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _background(size: int, generator: torch.Generator, is_test: bool) -> Tensor:
    """A tinted piece of a texture; the lower quarter of each is for test pictures."""
    texture = _textures()[_drawn(generator, 0, len(TEXTURES) - 1)]
    border = texture.shape[0] * 3 // 4
    top = _drawn(generator, border, texture.shape[0] - size) if is_test else _drawn(generator, 0, border - size)
    left = _drawn(generator, 0, texture.shape[1] - size)
    tint = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)
    return texture[top : top + size, left : left + size] * tint * 0.7


@dataclass(frozen=True)
class _Kind:
    """Scenes of a size, with how many digits, how high they are, and of which classes."""

    size: int
    digits: tuple[int, int]
    edge: tuple[int, int]
    which: tuple[int, ...] = ALL


def _scene(kind: _Kind, generator: torch.Generator, is_test: bool) -> _Scene:
    """A scene with digits where they hardly overlap."""
    size, (pictures, classes) = kind.size, _digits(kind.which)
    border = len(pictures) * 3 // 4
    scene = _Scene(_background(size, generator, is_test), torch.zeros(size, size, dtype=torch.long), [], [])
    for _ in range(_drawn(generator, *kind.digits)):
        number = _drawn(generator, border, len(pictures) - 1) if is_test else _drawn(generator, 0, border - 1)
        high = _drawn(generator, *kind.edge)
        top, left = (_drawn(generator, 0, size - high) for _ in range(2))
        place = slice(top, top + high), slice(left, left + high)
        if (scene.mask[place] > 0).any():
            continue
        enlarged = F.interpolate(pictures[number][None, None], (high, high), mode="bicubic", align_corners=False)[0, 0]
        ink = enlarged.clamp(0, 1)
        colour = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator)
        scene.image[(slice(None), *place)] = scene.image[(slice(None), *place)] * (1 - ink) + colour * ink
        inside = ink > 0.4
        scene.mask[place][inside] = int(classes[number]) + 1
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        scene.boxes.append(
            [left + float(columns[0]), top + float(rows[0]), left + float(columns[-1]) + 1, top + float(rows[-1]) + 1]
        )
        scene.labels.append(int(classes[number]) + 1)
    noise = 0.02 * torch.randn(scene.image.shape, generator=generator)
    scene.image = (scene.image + noise).clamp(0, 1)
    return scene


@cache
def _scenes(counts: tuple[int, int], kind: _Kind) -> tuple[list[_Scene], list[_Scene]]:
    """Training and test scenes, always the same."""
    parts = []
    for is_test, count in enumerate(counts):
        generator = torch.Generator().manual_seed(is_test)
        parts.append([_scene(kind, generator, bool(is_test)) for _ in range(count)])
    return parts[0], parts[1]


def _pixels(scenes: list[_Scene]) -> Tensor:
    return (torch.stack([scene.image for scene in scenes]) * 255).round().to(torch.uint8)


def _masks(kind: _Kind, labelled: bool) -> Parts:
    train, test = (
        {"input": _pixels(scenes), **({"target": torch.stack([scene.mask for scene in scenes])} if labelled else {})}
        for scenes in _scenes((1200, 300), kind)
    )
    return train, test


def _boxes(labelled: bool) -> Parts:
    parts = []
    for scenes in _scenes((1200, 250), _Kind(96, (1, 2), (32, 56), FEW)):
        pictures = _pixels(scenes).float() / 255
        targets = [{"boxes": torch.tensor(each.boxes), "labels": torch.tensor(each.labels)} for each in scenes]
        parts.append(list(zip(pictures, targets, strict=True)) if labelled else list(pictures))
    return parts[0], parts[1]


def _single(size: int, counts: tuple[int, int], labelled: bool) -> Parts:
    train, test = (
        {
            "input": _pixels(scenes),
            **({"target": torch.tensor([scene.labels[0] - 1 for scene in scenes])} if labelled else {}),
        }
        for scenes in _scenes(counts, _Kind(size, (1, 1), (size // 2, size - 4)))
    )
    return train, test


def _pairs(labelled: bool) -> Parts:
    """Two grey pictures, as of two cameras, of two handwritten digits of the same class."""
    parts = []
    for is_test, scenes in enumerate(_scenes((2400, 1200), _Kind(24, (1, 1), (14, 22)))):
        grey = torch.stack([scene.image for scene in scenes]).mean(1, keepdim=True) * 2 - 1
        classes = torch.tensor([scene.labels[0] - 1 for scene in scenes])
        generator = torch.Generator().manual_seed(is_test)
        others = torch.empty_like(classes)
        for digit in range(CLASSES):
            (same,) = (classes == digit).nonzero(as_tuple=True)
            others[same] = same[torch.randperm(len(same), generator=generator)]
        noisy = [each + 0.3 * torch.randn(each.shape, generator=generator) for each in (grey, grey[others])]
        part = dict(zip(("left", "right"), noisy, strict=True))
        parts.append({**part, "target": classes} if labelled else part)
    return parts[0], parts[1]


def _halved(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) of half the size, rounded to whole pixel values."""
    halved = F.interpolate(pictures, scale_factor=0.5, mode="bicubic", antialias=True, align_corners=False)
    return (halved.clamp(0, 1) * 255).round() / 255


def _doubled(pictures: Parts, labelled: bool) -> Parts:
    train, test = ({"image": _halved(part), **({"target": part} if labelled else {})} for part in pictures)
    return train, test


@cache
def _cifar() -> Parts:
    from PIL import Image

    def pictures(part: str, count: int) -> Tensor:
        with np.load(os.environ[CIFAR]) as stored:
            data, offsets = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offset"]
        images = [np.asarray(Image.open(io.BytesIO(data[offsets[n] : offsets[n + 1]]))) for n in range(count)]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255

    return pictures("train", 2000), pictures("test", 500)


@cache
def _photos() -> Parts:
    """Squares of scikit-image's photographs, 48 × 48; the lower quarters are the test pictures."""
    from skimage import data

    size, stride = 48, 32
    train, test = list[Tensor](), list[Tensor]()
    for name in ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry"):
        image = torch.from_numpy(np.asarray(getattr(data, name)())[..., :3]).permute(2, 0, 1).float() / 255
        border = image.shape[1] * 3 // 4
        for part, piece in ((train, image[:, :border]), (test, image[:, border:])):
            tiles = piece.unfold(1, size, stride).unfold(2, size, stride)
            part.extend(tiles.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size).contiguous())
    return torch.stack(train), torch.stack(test)


def _vowels(labelled: bool) -> Parts:
    """Japanese Vowels: nine speakers, twelve channels of 7 to 29 steps, filled up with zeros."""
    from sktime.datasets import load_japanese_vowels  # not a dependency of lrexport

    parts = []
    for split in ("train", "test"):
        frame, classes = load_japanese_vowels(split=split, return_X_y=True)
        values = torch.zeros(len(frame), 12, 29)
        for row in range(len(frame)):
            for channel in range(12):
                one = torch.tensor(np.asarray(frame.iloc[row, channel]), dtype=torch.float32)
                values[row, channel, : len(one)] = one
        part = {"input": values}
        parts.append({**part, "target": torch.tensor([int(each) - 1 for each in classes])} if labelled else part)
    return parts[0], parts[1]


def _with_and_without(make: Callable[[bool], Parts]) -> tuple[Callable[[], Parts], Callable[[], Parts]]:
    return partial(make, True), partial(make, False)


masks32, masks32_unlabelled = _with_and_without(partial(_masks, _Kind(32, (1, 3), (12, 20), FEW)))
masks64, masks64_unlabelled = _with_and_without(partial(_masks, _Kind(64, (1, 2), (28, 48), FEW)))
boxes, boxes_unlabelled = _with_and_without(_boxes)
digits32, digits32_unlabelled = _with_and_without(partial(_single, 32, (2400, 1200)))
digits48, digits48_unlabelled = _with_and_without(partial(_single, 48, (2400, 1200)))
pairs, pairs_unlabelled = _with_and_without(_pairs)
cifar, cifar_unlabelled = _with_and_without(lambda labelled: _doubled(_cifar(), labelled))
photos, photos_unlabelled = _with_and_without(lambda labelled: _doubled(_photos(), labelled))
vowels, vowels_unlabelled = _with_and_without(_vowels)
