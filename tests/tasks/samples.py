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
