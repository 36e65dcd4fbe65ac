"""Reconstruction: refit every pair to what its dense layer put out, on what the folded network gives it.

One pass of calibration images through the folded network does it: when the pass reaches a pair, all before it are refitted
already, so that each makes up for the errors of those (Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks",
arXiv 1505.06798, section 3.3: asymmetric reconstruction). Both halves are fitted, in closed form. No labels are used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.arguments import check_images, check_svd
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import columns_of
from lrexport.lowrank.factors.truncation import Selection, balanced, plan_of
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.patches import draw, outputs_at, patches_at, positions, sizes_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.repair.least_squares import fit_pair
from lrexport.plan import Pair, Plan
from lrexport.torch_tools.batchnorm import BatchNorm, batch_statistics
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import given_to

_MOST_SAMPLES = 16_384
_MOST_VALUES = 1 << 23  # of one layer's outputs, kept until the folded network gets there: 32 MB
_MOST_TAPS = 4608  # a larger least-squares problem takes longer than it is worth


@torch.no_grad()
def reconstruct(
    network: nn.Module, svd: SVDNetwork, plan: Selection | Plan, images: Tensor, weights: bool = True, seed: int = 0
) -> dict[str, float]:
    """Refit the pairs of ``network``, folded from ``svd`` by ``plan``, in place, on ``images`` (N, …) in one batch.

    ``network`` is changed: weights and biases of its pairs, statistics of its BatchNorms. No labels are used. BatchNorm's
    running statistics become those of ``images``. A bias is corrected, where a layer has one, so that the mean output is
    the dense layer's; that alone is done where ``weights`` is false, and for a layer with more taps than the images
    determine or than are worth it. A layer that is called more than once, or shares its weight, is left alone. Returns the
    squared output error of the layers that were looked at, relative to the variance of their output. Raises UsageError for
    images that are no tensor (N, …), InputError for such as the network does not take.
    """
    check_svd(svd)
    plan = plan_of(plan)
    check_images(svd.network, images)
    images = fast_layout(network, images)
    names = [name for name, layer in plan.items() if isinstance(layer, Pair) and len(svd.layers[name].names) == 1]
    targets = _dense_outputs(svd, names, images, torch.Generator().manual_seed(seed))
    absorbed = _before_batchnorm(network, names, images[:2])
    errors: dict[str, float] = {}

    def refit(name: str) -> Callable[..., None]:
        layer, planned = svd.network.get_submodule(name), plan[name]

        # The pass goes on with the pair as it is then.
        def before(pair: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            assert isinstance(planned, Pair)
            errors[name] = _refit(layer, planned, pair, given_to(args, kwargs), targets[name], name in absorbed, weights)

        return before

    with ExitStack() as hooks, eval_mode(network), batch_statistics(network):
        for name in targets:
            hooks.callback(network.get_submodule(name).register_forward_pre_hook(refit(name), with_kwargs=True).remove)
        network(images)
    return errors


@dataclass(frozen=True)
class _Target:
    """What a dense layer put out, (n, out), at the positions of these numbers; ``sizes`` are its output's spatial axes."""

    sizes: tuple[int, ...]
    numbers: Tensor
    outputs: Tensor


def _dense_outputs(svd: SVDNetwork, names: list[str], images: Tensor, generator: torch.Generator) -> dict[str, _Target]:
    """Outputs of those layers in SVD form that are called once, in eval mode."""
    recorded: dict[str, _Target] = {}
    again: set[str] = set()

    def watch(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, _args: object, output: Tensor) -> None:
            if name in recorded:
                again.add(name)
                return
            most = min(_MOST_SAMPLES, max(1, _MOST_VALUES // spec_of(layer).out_channels))
            numbers = draw(positions(output, layer), most, generator)
            recorded[name] = _Target(sizes_of(output, layer), numbers, outputs_at(layer, output, numbers))

        return note

    with ExitStack() as hooks, eval_mode(svd.network):
        for name in names:
            hooks.callback(svd.network.get_submodule(name).register_forward_hook(watch(name)).remove)
        svd.network(images)
    return {name: target for name, target in recorded.items() if name not in again}


def _before_batchnorm(network: nn.Module, names: list[str], images: Tensor) -> set[str]:
    """The layers whose output goes into a BatchNorm, which takes away whatever mean it has."""
    outputs: dict[str, tuple[int, int]] = {}
    given: set[tuple[int, int]] = set()
    alive: list[Tensor] = []

    def put_out(name: str, output: Tensor) -> None:
        outputs[name] = _identity(output)
        alive.append(output)  # an identity is used again

    def note(_norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        tensor = given_to(args, kwargs)
        given.add(_identity(tensor))
        alive.append(tensor)

    with ExitStack() as hooks, eval_mode(network):
        for name in names:
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(lambda _m, _a, out, name=name: put_out(name, out)).remove)
        for module in network.modules():
            if isinstance(module, BatchNorm):
                hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        network(images)
    return {name for name, output in outputs.items() if output in given}


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Of a tensor and of what it holds: functions in place change that, which inference mode does not count."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _refit(layer: Any, planned: Pair, pair: Any, given: Tensor, target: _Target, absorbed: bool, weights: bool) -> float:
    """Fit one pair's weights, where asked, and bias; ``absorbed`` says that the mean of its output does not matter."""
    spec, scheme, groups = spec_of(layer), SCHEMES[planned.scheme], spec_of(layer).groups
    wanted = target.outputs.unflatten(1, (groups, -1)).transpose(0, 1)  # g, n, o
    centred = absorbed or layer.bias is not None
    rows, columns = scheme.matrix_shape(spec)
    features = rows // wanted.shape[2] * columns
    if weights and features <= _MOST_TAPS and len(target.numbers) >= 2 * features:
        patches = columns_of(layer, patches_at(layer, given, target.sizes, target.numbers), planned.scheme)
        dense = scheme.matrix(layer.weight, spec).reshape(groups, rows, columns)
        left, right = balanced(*fit_pair(patches, wanted, dense, planned.rank, centred))
        left, right = left.to(given), right.to(given)
        # The pair's output without its bias: an output is the kernel times its patch.
        kernel = (left @ right).unflatten(1, (wanted.shape[2], -1)).flatten(2)
        output = patches.flatten(2) @ kernel.mT
        sides = (left, right) if groups > 1 else (left[0], right[0])
        for half, weight in zip(pair, scheme.weights(*sides, spec), strict=True):
            half.weight.copy_(weight)
    else:
        output = outputs_at(layer, pair[1](pair[0](given)), target.numbers).unflatten(1, (groups, -1)).transpose(0, 1)
        if layer.bias is not None:
            output = output - pair[1].bias.unflatten(0, (groups, -1)).unsqueeze(1)
    difference = wanted - output
    if layer.bias is not None:
        pair[1].bias.copy_(difference.mean(1).flatten())
    return _power(difference, centred) / max(_power(wanted, centred), torch.finfo(wanted.dtype).tiny)


def _power(values: Tensor, centred: bool) -> float:
    """Σ squares of values (g, n, o), of what they differ from their mean where ``centred``."""
    return float((values - values.mean(1, keepdim=True) if centred else values).square().sum())
