"""What other tools make of the study's start: Torch-Pruning, tensorly's Tucker-2 and AIMET's spatial SVD.

README.md beside this says how to install them.
"""

from __future__ import annotations

import copy
import os
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.paper.study import SHAPE, Study
from benchmarks.paper.training import start_network
from lrexport.artifacts import tensors
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.networks.cifar_resnet import BasicBlock

_STEPS = 200  # in which Torch-Pruning would remove everything
_HALVINGS = 10  # of the interval in which Tucker-2's share of channels is searched


class ToolAbsentError(Exception):
    """A tool that is not installed."""


def torch_pruning(study: Study, share: float) -> nn.Module:
    """Whole channels removed by Torch-Pruning: those of least group magnitude, one after the other, until the MACs are met.

    Nothing is rounded to multiples of four or eight, which its README advises for speed: the budget here is one of MACs.
    """
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ToolAbsentError("pip install torch-pruning") from error

    network = start_network(study)
    most = share * count_torch_macs(network, SHAPE).total
    with_followed_shortcuts(network)
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, *SHAPE),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        # Against over-pruning, as the README has it: by global pruning alone the first stage is left with one channel.
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=[network.linear],
    )
    while pruner.current_step < _STEPS:
        for group in pruner.step(interactive=True):
            group.prune()
            if _macs_without_shortcuts(network) <= most:
                return with_free_shortcuts(network)
    raise AssertionError("pruning came to its end above the budget")


class FollowedBlock(nn.Module):
    """A block of a CIFAR ResNet whose shortcut is a module of its own."""

    def __init__(self, block: BasicBlock, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Selection(nn.Module):
    """Every ``stride``-th pixel; channel i is channel ``source[i]`` of the input, or zeros where that is one too many."""

    def __init__(self, stride: tuple[int, ...], source: Tensor) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("source", source)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride[0], :: self.stride[1]], (0, 0, 0, 0, 0, 1))[:, self.source]


def with_followed_shortcuts(network: nn.Module) -> None:
    """Write option-A shortcuts as 1×1 convolutions of zeros and ones, the same function, in place.

    Torch-Pruning's graph takes the padding of channels for an operator from each channel to that of the same number: it
    ties channels of all three stages that have nothing to do with each other, and the network no longer runs.
    """
    for name, block in list(network.named_modules()):
        if isinstance(block, BasicBlock) and block.new_channels:
            channels, before = block.conv1.in_channels, block.new_channels // 2
            shortcut = nn.Conv2d(channels, channels + block.new_channels, 1, block.stride, bias=False)
            nn.init.zeros_(shortcut.weight)
            shortcut.weight.data[before : before + channels, :, 0, 0] = torch.eye(channels)
            network.set_submodule(name, FollowedBlock(block, shortcut))


def with_free_shortcuts(network: nn.Module) -> nn.Module:
    """The network itself, such convolutions made selections again, which multiply nothing."""
    for block in network.modules():
        if isinstance(block, FollowedBlock) and isinstance(block.shortcut, nn.Conv2d):
            weight = block.shortcut.weight.detach()[:, :, 0, 0]
            source = torch.where(weight.any(1), weight.argmax(1), weight.shape[1])
            block.shortcut = Selection(block.shortcut.stride, source)
    return network


def _macs_without_shortcuts(network: nn.Module) -> int:
    counted = count_torch_macs(network, SHAPE)
    return counted.total - sum(macs for name, macs in counted.by_layer.items() if name.endswith(".shortcut"))


def tucker(study: Study, share: float) -> nn.Module:
    """Tucker-2 by tensorly: the same share of channels kept in all layers, the largest that meets the budget."""
    dense = start_network(study)
    most, low, high = share * count_torch_macs(dense, SHAPE).total, 0.0, 1.0
    best = None
    for _ in range(_HALVINGS):
        kept = (low + high) / 2
        made = with_tucker(copy.deepcopy(dense), kept)
        if count_torch_macs(made, SHAPE).total <= most:
            low, best = kept, made
        else:
            high = kept
    assert best is not None
    return best


def with_tucker(network: nn.Module, kept: float) -> nn.Module:
    """The network itself, its k×k convolutions as 1×1, k×k, 1×1 with ``kept`` of their channels in between.

    A layer that would not get cheaper stays as it is, and so does the first: of three colours it would keep one.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and layer.in_channels != SHAPE[0]:
            given, taken = (max(1, round(kept * channels)) for channels in (layer.out_channels, layer.in_channels))
            kernel, stride = layer.kernel_size[0] * layer.kernel_size[1], layer.stride[0] * layer.stride[1]
            # Of one pixel of the output: the first 1×1 runs on all pixels of the input.
            macs = taken * layer.in_channels * stride + kernel * given * taken + given * layer.out_channels
            if macs < kernel * layer.in_channels * layer.out_channels:
                network.set_submodule(name, _tucker_layers(layer, given, taken))
    return network


def _tucker_layers(layer: nn.Conv2d, given: int, taken: int) -> nn.Sequential:
    try:
        from tensorly import set_backend
        from tensorly.decomposition import partial_tucker
    except ImportError as error:
        raise ToolAbsentError("pip install tensorly") from error

    set_backend("pytorch")
    (core, (left, right)), _ = partial_tucker(layer.weight.detach(), rank=[given, taken], modes=[0, 1])
    first = nn.Conv2d(layer.in_channels, taken, 1, bias=False)
    middle = nn.Conv2d(taken, given, layer.kernel_size, layer.stride, layer.padding, bias=False)
    last = nn.Conv2d(given, layer.out_channels, 1, bias=layer.bias is not None)
    for part, weight in ((first, right.T[:, :, None, None]), (middle, core), (last, left[:, :, None, None])):
        part.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        last.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, middle, last)


def aimet(study: Study, share: float) -> nn.Module:
    """Spatial SVD by AIMET, ranks by its greedy search; made once, by the Python of an environment of its own."""
    study.note("aimet", {})
    made = study.work / "aimet" / f"{share:g}.safetensors"
    if not made.is_file():
        python = os.environ.get("AIMET_PYTHON")
        if python is None:
            raise ToolAbsentError("AIMET_PYTHON is to name the Python of an environment that has AIMET")
        words = [study.model, "--weights", study.start(), "--data", study.data, "--seed", study.seed]
        words += ["--share", f"{share:g}", "-o", made]
        done = subprocess.run([python, "-m", "benchmarks.paper.aimet", *map(str, words)], check=False)
        if done.returncode:
            raise SystemExit(f"AIMET ended with {done.returncode}; the same command tries again")
    network, weights = start_network(study), tensors.load(made)
    for name, layer in list(network.named_modules()):
        if f"{name}.first.weight" in weights:
            network.set_submodule(name, spatial_pair(layer, len(weights[f"{name}.first.weight"])))
    network.load_state_dict(weights)
    return network


def spatial_pair(layer: Any, rank: int) -> nn.Sequential:
    """The pair that AIMET puts in a layer's place, k×1 then 1×k, to be filled.

    Its halves have the names of lrexport's own, by which training takes steps in factors that are as long as dense ones.
    """
    (height, width), (down, right), (top, left) = layer.kernel_size, layer.stride, layer.padding
    first = nn.Conv2d(layer.in_channels, rank, (height, 1), (down, 1), (top, 0), bias=False)
    second = nn.Conv2d(rank, layer.out_channels, (1, width), (1, right), (0, left), bias=layer.bias is not None)
    return nn.Sequential(OrderedDict(first=first, second=second))


Make = Callable[[], nn.Module]
TOOLS: dict[str, Callable[[Study, float], nn.Module]] = {
    "Torch-Pruning": torch_pruning,
    "Tucker-2": tucker,
    "AIMET": aimet,
}
