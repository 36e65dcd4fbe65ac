"""The networks of runtimes.py: published weights where there are some, else random ones whose spectra fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from onnx_torch import UNet
from torch import Tensor, nn
from zoo import randomise, smooth_images

from lrexport.networks.building import resolve
from lrexport.networks.weights import load_weights

COLOURS, ANCHORS, CLASSES = 3, 3, 80


@dataclass(frozen=True)
class Known:
    """A network by its title, the shape of its input (C, H, W), and the name of its file of weights, if there is one."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    weights: str | None = None

    def open(self, weights: Path) -> nn.Module:
        """The network in eval mode, the same every time."""
        torch.manual_seed(0)
        network = self.build().eval()
        if self.weights is not None:
            load_weights(network, weights / self.weights)
        else:
            randomise(network, torch.cat([smooth_images(4, self.shape), torch.randn(4, *self.shape)]))
        return network


class ConvUnit(nn.Sequential):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, given: int, made: int, kernel: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(given, made, kernel, stride, (kernel - 1) // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(made), nn.SiLU())


class Bottleneck(nn.Module):
    """1×1 and 3×3, with the input added in the backbone."""

    def __init__(self, width: int, adds: bool) -> None:
        super().__init__()
        self.reduce, self.spread, self.adds = ConvUnit(width, width), ConvUnit(width, width, 3), adds

    def forward(self, x: Tensor) -> Tensor:
        made = self.spread(self.reduce(x))
        return x + made if self.adds else made


class CspBlock(nn.Module):
    """Half of the channels through bottlenecks, half past them (Wang et al. 2019, arXiv 1911.11929)."""

    def __init__(self, given: int, made: int, depth: int, adds: bool = True) -> None:
        super().__init__()
        half = made // 2
        self.through, self.past, self.join = ConvUnit(given, half), ConvUnit(given, half), ConvUnit(made, made)
        self.blocks = nn.Sequential(*(Bottleneck(half, adds) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.blocks(self.through(x)), self.past(x)], 1))


class Pyramid(nn.Module):
    """Max-pooling three times over 5×5, and all four joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce, self.join = ConvUnit(width, width // 2), ConvUnit(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return self.join(torch.cat(levels, 1))


class Yolo(nn.Module):
    """A detector like the smallest YOLOv5: CSP blocks, SiLU, a neck that goes up and down; (B, 3, H, W) → three maps.

    The maps are (B, anchors · (5 + classes), H / s, W / s) for s = 8, 16, 32, before boxes are made of them.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = [width << level for level in range(5)]
        self.stem = nn.Sequential(ConvUnit(COLOURS, w[0], 6, 2), ConvUnit(w[0], w[1], 3, 2), CspBlock(w[1], w[1], 1))
        self.down3 = nn.Sequential(ConvUnit(w[1], w[2], 3, 2), CspBlock(w[2], w[2], 2))
        self.down4 = nn.Sequential(ConvUnit(w[2], w[3], 3, 2), CspBlock(w[3], w[3], 3))
        self.down5 = nn.Sequential(ConvUnit(w[3], w[4], 3, 2), CspBlock(w[4], w[4], 1), Pyramid(w[4]))
        self.lateral5, self.lateral4 = ConvUnit(w[4], w[3]), ConvUnit(w[3], w[2])
        self.merge4, self.merge3 = CspBlock(2 * w[3], w[3], 1, adds=False), CspBlock(2 * w[2], w[2], 1, adds=False)
        self.again4, self.again5 = ConvUnit(w[2], w[2], 3, 2), ConvUnit(w[3], w[3], 3, 2)
        self.out4, self.out5 = CspBlock(2 * w[2], w[3], 1, adds=False), CspBlock(2 * w[3], w[4], 1, adds=False)
        self.heads = nn.ModuleList(nn.Conv2d(given, ANCHORS * (5 + CLASSES), 1) for given in w[2:])
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        three = self.down3(self.stem(image))
        four = self.down4(three)
        five = self.lateral5(self.down5(four))
        four = self.lateral4(self.merge4(torch.cat([self.up(five), four], 1)))
        three = self.merge3(torch.cat([self.up(four), three], 1))
        four = self.out4(torch.cat([self.again4(three), four], 1))
        five = self.out5(torch.cat([self.again5(four), five], 1))
        return tuple(head(level) for head, level in zip(self.heads, (three, four, five), strict=True))


def _named(model: str) -> Callable[[], nn.Module]:
    return lambda: resolve(model).build()


NETWORKS = {
    "resnet18": Known("ResNet-18 at 224", _named("torchvision:resnet18"), (3, 224, 224)),
    "resnet56": Known("ResNet-56 at 32", _named("resnet56"), (3, 32, 32), "cifar10_resnet56.safetensors"),
    "unet": Known("a U-Net at 128", UNet, (3, 128, 128)),
    "yolo": Known("a YOLO-like detector at 320", Yolo, (3, 320, 320)),
    "mobilenet": Known("MobileNetV3-large at 224", _named("torchvision:mobilenet_v3_large"), (3, 224, 224)),
    "resnet20": Known("ResNet-20 at 32", _named("resnet20"), (3, 32, 32), "cifar10_resnet20.safetensors"),
}
