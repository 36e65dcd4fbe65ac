"""Reconstruction: refit every pair to what its dense layer put out, on what the folded network gives it.

One pass of calibration images through the folded network does it: when the pass reaches a pair, all before it are refitted
already, so that each makes up for the errors of those (Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks",
arXiv 1505.06798, section 3.3: asymmetric reconstruction). Both halves are fitted, in closed form. No labels are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.kernels import spec_of
from lrexport.lowrank.least_squares import fit_pair
from lrexport.lowrank.moments import columns_of
from lrexport.lowrank.patches import draw, outputs_at, patches_at, positions
from lrexport.lowrank.schemes import SCHEMES
from lrexport.lowrank.tracing import eval_mode
from lrexport.lowrank.truncation import balanced
from lrexport.record import FactorisedLayer, Plan

BatchNorm = nn.modules.batchnorm._BatchNorm
_MOST_SAMPLES = 16_384
_MOST_VALUES = 1 << 23  # of one layer's outputs, kept until the folded network gets there: 32 MB
_MOST_TAPS = 4608  # a larger least-squares problem takes longer than it is worth


@dataclass(frozen=True)
class Refit:
    """A layer's squared output error, relative to the variance of its output, before and after its pair was refitted."""

    before: float
    after: float


@torch.no_grad()
def reconstruct(
    network: nn.Module, svd: SVDNetwork, plan: Plan, images: Tensor, weights: bool = True, seed: int = 0
) -> dict[str, Refit]:
    """Refit the pairs of ``network``, folded from ``svd`` by ``plan``, in place, on ``images`` (N, …) in one batch.

    BatchNorm's running statistics become those of ``images``. A bias is corrected, where a layer has one, so that the mean
    output is the dense layer's; that alone is done where ``weights`` is false, and for a layer with more taps than the
    images determine or than are worth it. A layer that is called more than once, or shares its weight, is left alone.
    Returns the errors of the layers that were looked at.
    """
    names = [name for name, layer in plan.items() if isinstance(layer, FactorisedLayer) and len(svd.layers[name].names) == 1]
    targets = _dense_outputs(svd, names, images, torch.Generator().manual_seed(seed))
    absorbed = _before_batchnorm(network, names, images[:2])
    found: dict[str, Refit] = {}

    def refit(name: str) -> Callable[..., Tensor]:
        layer, planned = svd.network.get_submodule(name), plan[name]

        def hook(pair: nn.Sequential, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            assert isinstance(planned, FactorisedLayer)
            found[name] = _refit(layer, planned, pair, args[0], output, targets[name], name in absorbed, weights)
            result: Tensor = pair[1](pair[0](args[0]))
            return result

        return hook

    with ExitStack() as hooks, eval_mode(network), batch_statistics(network):
        for name in targets:
            hooks.callback(network.get_submodule(name).register_forward_hook(refit(name)).remove)
        network(images)
    return found


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Every BatchNorm starts anew and averages what it is given; yields them. The rest of the network stays as it is."""
    norms = [module for module in network.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    try:
        yield list(norms)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training


@dataclass(frozen=True)
class _Target:
    """What a dense layer put out, (n, out), at the positions of these numbers."""

    numbers: Tensor
    outputs: Tensor


def _dense_outputs(svd: SVDNetwork, names: list[str], images: Tensor, generator: torch.Generator) -> dict[str, _Target]:
    """Outputs of those layers in SVD form that are called once, in eval mode."""
    found: dict[str, _Target] = {}
    again: set[str] = set()

    def watch(name: str) -> Callable[..., None]:
        def note(layer: nn.Module, _args: object, output: Tensor) -> None:
            if name in found:
                again.add(name)
                return
            most = min(_MOST_SAMPLES, max(1, _MOST_VALUES // spec_of(layer).out_channels))
            numbers = draw(positions(output, layer), most, generator)
            found[name] = _Target(numbers, outputs_at(layer, output, numbers))

        return note

    with ExitStack() as hooks, eval_mode(svd.network):
        for name in names:
            hooks.callback(svd.network.get_submodule(name).register_forward_hook(watch(name)).remove)
        svd.network(images)
    return {name: target for name, target in found.items() if name not in again}


def _before_batchnorm(network: nn.Module, names: list[str], images: Tensor) -> set[str]:
    """The layers whose output goes into a BatchNorm, which takes away whatever mean it has."""
    outputs: dict[str, Tensor] = {}
    given: list[Tensor] = []
    with ExitStack() as hooks, eval_mode(network):
        for name in names:
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(lambda _m, _a, out, name=name: outputs.update({name: out})).remove)
        for module in network.modules():
            if isinstance(module, BatchNorm):
                hooks.callback(module.register_forward_pre_hook(lambda _m, args: given.append(args[0])).remove)
        network(images)
    identities = {id(tensor) for tensor in given}
    return {name for name, output in outputs.items() if id(output) in identities}


def _refit(
    layer: Any,
    planned: FactorisedLayer,
    pair: Any,
    given: Tensor,
    output: Tensor,
    target: _Target,
    absorbed: bool,
    weights: bool,
) -> Refit:
    """Fit one pair's weights, where asked, and bias; ``absorbed`` says that the mean of its output does not matter."""
    spec, scheme = spec_of(layer), SCHEMES[planned.scheme]
    patches = columns_of(layer, patches_at(layer, given, output, target.numbers), planned.scheme)
    groups = (spec.groups, -1)
    wanted, found = (
        rows.unflatten(1, groups).transpose(0, 1) for rows in (target.outputs, outputs_at(layer, output, target.numbers))
    )
    centred = absorbed or layer.bias is not None
    error = _relative_error(found, wanted, centred)
    features = patches.shape[2] * patches.shape[3]
    if weights and features <= _MOST_TAPS and patches.shape[1] >= 2 * features:
        inputs, outputs = (_less_mean(patches), _less_mean(wanted)) if centred else (patches, wanted)
        dense = scheme.matrix(layer.weight, spec).reshape(spec.groups, *scheme.matrix_shape(spec))
        left, right = balanced(*fit_pair(inputs, outputs, dense, planned.rank))
        left, right = (side.to(given) if spec.groups > 1 else side[0].to(given) for side in (left, right))
        for half, weight in zip(pair, scheme.weights(left, right, spec), strict=True):
            half.weight.copy_(weight)
        found = outputs_at(layer, pair[1](pair[0](given)), target.numbers).unflatten(1, groups).transpose(0, 1)
    if layer.bias is not None:
        pair[1].bias += (wanted - found).mean(1).flatten()
    return Refit(error, _relative_error(found, wanted, centred))


def _less_mean(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


def _relative_error(found: Tensor, wanted: Tensor, centred: bool) -> float:
    difference = _less_mean(wanted - found) if centred else wanted - found
    reference = _less_mean(wanted) if centred else wanted
    return float(difference.square().sum() / reference.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny))
