"""Tiny networks, data and a task for other outputs than classes, as users have them in a module of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lrexport

SHAPE = (3, 12, 12)
IGNORED = 255
Pairs = list[tuple[Tensor, Tensor]]


class Segmenter(nn.Module):
    """(B, 3, 12, 12) → {"out": (B, 3, 12, 12)}, in training with an auxiliary output of half the size."""

    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.head, self.auxiliary = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 3, 2, stride=2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.features(x)
        out = {"out": self.head(features)}
        if self.training:
            out["aux"] = self.auxiliary(features)
        return out


class Sharpener(nn.Module):
    """(B, 3, 12, 12) → (B, 3, 12, 12)."""

    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def masks() -> tuple[Pairs, Pairs]:
    """Blobs of three colours: the class of a pixel is its strongest channel; the rim counts nowhere."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(80, 3, 3, 3, generator=generator)
    images = nn.functional.interpolate(coarse, SHAPE[1:], mode="nearest")
    truth = images.argmax(1)
    truth[:, 0] = IGNORED
    images = images + 0.05 * torch.randn(images.shape, generator=generator)
    pairs = list(zip(images, truth, strict=True))
    return pairs[:64], pairs[64:]


def pictures() -> tuple[list[Tensor], list[Tensor]]:
    """The images of :func:`masks` alone."""
    train, test = masks()
    return [image for image, _ in train], [image for image, _ in test]


def blurred() -> tuple[Pairs, Pairs]:
    """Blurred images with the sharp ones as targets."""
    train, test = masks()
    images = torch.stack([image for image, _ in (*train, *test)]).clamp(0, 1)
    blurry = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    pairs = list(zip(blurry, images, strict=True))
    return pairs[:64], pairs[64:]


class AbsoluteError:
    """The mean absolute error over all values."""

    def __init__(self) -> None:
        self.total = self.count = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float((outputs - targets).abs().sum())
        self.count += targets.numel()

    def compute(self) -> dict[str, float]:
        return {"error": self.total / self.count}


class OwnTask(lrexport.Task):
    """A user's task, whose metric is better if it is smaller."""

    name = "sharpening"
    metric_infos = (lrexport.Metric("error", higher_is_better=False),)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return (outputs - targets).square().mean()

    def meter(self) -> AbsoluteError:
        return AbsoluteError()


own_task = OwnTask()


class WithoutMetrics(lrexport.Task):
    """A task that nothing can be chosen by."""


class FailingTask(OwnTask):
    """A task with a fault in its code."""

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return outputs["picture"]


class ForgetfulTask(OwnTask):
    """A task whose meter gives another metric than it should."""

    metric_infos = (lrexport.Metric("blur"),)


class Finder(nn.Module):
    """Finds the one bright square of an image; in training its losses are its own, as torchvision's detectors' are."""

    input_shape = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten()
        )
        self.box, self.label = nn.Linear(16 * 144, 4), nn.Linear(16 * 144, 2)

    def forward(self, images: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Any:
        features = self.features(images)
        boxes, classes = 12 * self.box(features).sigmoid(), self.label(features)
        if self.training:
            assert targets is not None
            wanted = torch.cat([each["boxes"] for each in targets])
            labels = torch.cat([each["labels"] for each in targets])
            return {
                "boxes": nn.functional.smooth_l1_loss(boxes, wanted),
                "classes": nn.functional.cross_entropy(classes, labels - 1),
            }
        scores, labels = classes.softmax(1).max(1)
        return [
            {"boxes": box[None], "scores": score[None], "labels": label[None] + 1}
            for box, score, label in zip(boxes, scores, labels, strict=True)
        ]


def squares() -> tuple[list[Any], list[Any]]:
    """Images with one square of 6 × 6 pixels, red (class 1) or blue (class 2)."""
    generator = torch.Generator().manual_seed(0)
    items = []
    for number in range(80):
        x, y = torch.randint(0, 7, (2,), generator=generator).tolist()
        image = 0.1 * torch.rand(SHAPE, generator=generator)
        image[2 * (number % 2), y : y + 6, x : x + 6] += 1
        truth = {"boxes": torch.tensor([[x, y, x + 6.0, y + 6.0]]), "labels": torch.tensor([1 + number % 2])}
        items.append((image, truth))
    return items[:64], items[64:]
