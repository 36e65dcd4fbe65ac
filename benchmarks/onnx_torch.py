"""Networks in torch and their .onnx files, compressed the same way; used by onnx_files.py."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import lrexport
from lrexport.networks.building import resolve
from lrexport.plan import Pair, Plan
from lrexport.torch_tools.copying import copy_network


class UNet(nn.Module):
    """(B, 3, 64, 64) → (B, 4, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = self._block(3, 32), self._block(32, 64), self._block(64, 128)
        self.up2, self.up1 = nn.ConvTranspose2d(128, 64, 2, 2), nn.ConvTranspose2d(64, 32, 2, 2)
        self.merge2, self.merge1, self.head = self._block(128, 64), self._block(64, 32), nn.Conv2d(32, 4, 1)

    @staticmethod
    def _block(given: int, made: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.Conv2d(made, made, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.middle(F.max_pool2d(two, 2))
        two = self.merge2(torch.cat([self.up2(three), two], 1))
        return self.head(self.merge1(torch.cat([self.up1(two), one], 1)))


def from_torch(scratch: Path, names: list[str], factors: list[int]) -> Iterator[dict[str, Any]]:
    """Plans and accuracy of a network and of its .onnx file, by the same calibration."""
    images, labels = _cifar("test")
    torch.manual_seed(0)  # the U-Net is not trained
    for name in names:
        network = UNet().eval() if name == "unet" else _resnet(name, scratch)
        shape = (3, 64, 64) if name == "unet" else (3, 32, 32)
        data = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0)) if name == "unet" else images[:1000]
        path = scratch / f"{name}.onnx"
        lrexport.export_onnx(network, path, shape, batch=None)
        # The U-Net has no BatchNorm.
        sources = [network, *([] if name == "unet" else [without_batchnorm(network)]), lrexport.read_onnx(path)]
        for times in factors:
            goal = lrexport.Macs(1 / times)
            made = [lrexport.compress(each, shape, goal, calibration=data) for each in sources]
            ranks = [_ranks(each.plan) for each in made]
            row: dict[str, Any] = {
                "network": name,
                "times": times,
                "plan of the source": ranks[0] == ranks[-1],
                "plan of the source with BatchNorm folded": ranks[1] == ranks[2] if len(ranks) > 2 else None,
                "macs": [each.macs for each in made],
            }
            if name != "unet":
                row["top1"] = [top1(each.network, images[1000:], labels[1000:]) for each in made]
            row["output error"] = [each.output_error for each in made]
            print(row, flush=True)
            yield row


def _ranks(plan: Plan) -> list[Any]:
    """What a plan does with layers of any name and order."""
    pairs = [entry for entry in plan.values() if isinstance(entry, Pair)]
    return sorted((entry.dense_macs, entry.dense_params, entry.scheme, entry.rank) for entry in pairs)


def without_batchnorm(network: nn.Module) -> nn.Module:
    """The same function with every BatchNorm in the convolution before it, as exporters write it."""
    folded = copy_network(network)
    for block in [*folded.modules()]:
        for name, norm in [*block.named_children()]:
            before = getattr(block, name.replace("bn", "conv"), None)
            if isinstance(norm, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                setattr(block, name.replace("bn", "conv"), fuse_conv_bn_eval(before, norm))
                setattr(block, name, nn.Identity())
    return folded


def _resnet(name: str, scratch: Path) -> nn.Module:
    """A ResNet with published weights; "NAME, trained on" is trained for an epoch on 10,000 of this data's images."""
    base, _, trained = name.partition(", ")
    network = resolve(base).build().eval()
    path = scratch / f"{base}{'-on' if trained else ''}.safetensors"
    if trained and not path.is_file():
        lrexport.load_weights(network, scratch / f"{base}.safetensors")
        _train(network, *_cifar("train", 10_000))
        save_file(network.state_dict(), path)
    lrexport.load_weights(network, path)
    return network


def _train(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """An epoch of SGD from a learning rate of 0.02 down to 0, half of the images mirrored."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randperm(len(images), generator=generator).split(128)
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, len(steps))
    network.train()
    for step in steps:
        mirrored = torch.rand(len(step), 1, 1, 1, generator=generator) < 0.5
        loss = F.cross_entropy(network(torch.where(mirrored, images[step].flip(3), images[step])), labels[step])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    network.eval()


def _cifar(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
    with np.load(os.environ["CIFAR10_JPEG"], allow_pickle=False) as held:
        stream, places = held[f"{split}_jpeg"].tobytes(), held[f"{split}_offset"][: None if count is None else count + 1]
        labels = torch.from_numpy(held[f"{split}_label"][:count]).long()
    pictures = [
        np.asarray(Image.open(io.BytesIO(stream[start:end])).convert("RGB")) for start, end in itertools.pairwise(places)
    ]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / std, labels


@torch.no_grad()
def top1(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    parts = zip(images.split(250), labels.split(250), strict=True)
    right = sum(int((network(part).argmax(1) == those).sum()) for part, those in parts)
    return right / len(images)
