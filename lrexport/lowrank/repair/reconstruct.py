"""Reconstruction: refit every pair to the output of its dense layer, with its input in the folded network.

One pass of calibration images through the folded network is enough: when it reaches a pair, all earlier pairs are already
refitted, so each pair compensates their errors (Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", arXiv
1505.06798, section 3.3: asymmetric reconstruction). Both halves are fitted by least squares. No labels are used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.lowrank.factors.arguments import check_svd, checked_images
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import columns_of
from lrexport.lowrank.factors.truncation import Selection, balanced, plan_of
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.patches import draw, outputs_at, patches_at, positions, sizes_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.repair.least_squares import fit_pair
from lrexport.plan import Pair, Plan
from lrexport.torch_tools.batch import Batch, BatchLike, call
from lrexport.torch_tools.batchnorm import BatchNorm, batch_statistics
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import given_to

_MOST_SAMPLES = 16_384
_MOST_VALUES = 1 << 23  # of one layer's outputs, 32 MB, kept until the folded network reaches the layer
_MOST_TAPS = 4608  # larger least-squares problems take too long
_MOST_SCALED = 2.0  # an output that its fit hardly explains is not blown up to noise


@torch.no_grad()
def reconstruct(
    network: nn.Module, svd: SVDNetwork, plan: Selection | Plan, images: BatchLike, weights: bool = True, seed: int = 0
) -> dict[str, float]:
    """Refit the pairs of ``network``, folded from ``svd`` by ``plan``, in place, on ``images`` (N, …) in one batch.

    Several inputs of a network are given by name.

    ``network`` is changed: weights and biases of its pairs, and BatchNorm's running statistics, which become those of
    ``images``. No labels are used. Biases, in layers that have one, are corrected to the mean output of the dense layer, and
    outputs that go into no BatchNorm are scaled to its standard deviation. Only the bias is corrected if ``weights`` is
    false, or if a layer has very many taps or more than the images determine. Layers that are called more than once or share
    their weight are skipped. Returns, for the other layers, the squared error of the output relative to its variance. Raises
    UsageError if ``images`` are not a tensor (N, …), InputError if the network does not accept them.
    """
    check_svd(svd)
    plan = plan_of(plan)
    inputs = fast_layout(network, checked_images(svd, images))
    names = [name for name, layer in plan.items() if isinstance(layer, Pair) and len(svd.layers[name].names) == 1]
    targets = _dense_outputs(svd, names, inputs, torch.Generator().manual_seed(seed))
    absorbed = _before_batchnorm(network, names, inputs[:2])
    errors: dict[str, float] = {}

    def refit(name: str) -> Callable[..., None]:
        layer, planned = svd.network.get_submodule(name), plan[name]

        # A pre-hook, so that the pass continues with the refitted pair.
        def before(pair: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            assert isinstance(planned, Pair)
            errors[name] = _refit(layer, planned, pair, given_to(args, kwargs), targets[name], name in absorbed, weights)

        return before

    with ExitStack() as hooks, eval_mode(network), batch_statistics(network):
        for name in targets:
            hooks.callback(network.get_submodule(name).register_forward_pre_hook(refit(name), with_kwargs=True).remove)
        call(network, inputs)
    return errors


@dataclass(frozen=True)
class _Target:
    """Outputs (n, out) of a dense layer at the positions ``numbers``; ``sizes`` are its output's along the kernel's axes."""

    sizes: tuple[int, ...]
    numbers: Tensor
    outputs: Tensor


def _dense_outputs(svd: SVDNetwork, names: list[str], inputs: Batch, generator: torch.Generator) -> dict[str, _Target]:
    """Sampled outputs, in eval mode, of those layers that are called exactly once."""
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
        call(svd.network, inputs)
    return {name: target for name, target in recorded.items() if name not in again}


def _before_batchnorm(network: nn.Module, names: list[str], inputs: Batch) -> set[str]:
    """The layers whose output goes into a BatchNorm, which subtracts its mean."""
    outputs: dict[str, tuple[int, int]] = {}
    given: set[tuple[int, int]] = set()
    alive: list[Tensor] = []

    def note_output(name: str, output: Tensor) -> None:
        outputs[name] = _identity(output)
        alive.append(output)  # keeps the id from being reused

    def note(_norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        tensor = given_to(args, kwargs)
        given.add(_identity(tensor))
        alive.append(tensor)

    with ExitStack() as hooks, eval_mode(network):
        for name in names:
            layer = network.get_submodule(name)
            hooks.callback(layer.register_forward_hook(lambda _m, _a, out, name=name: note_output(name, out)).remove)
        for module in network.modules():
            if isinstance(module, BatchNorm):
                hooks.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        call(network, inputs)
    return {name for name, output in outputs.items() if output in given}


def _identity(tensor: Tensor) -> tuple[int, int]:
    """The identity of a tensor and its values; in-place changes count, except in inference mode."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version


def _refit(layer: Any, planned: Pair, pair: Any, given: Tensor, target: _Target, absorbed: bool, weights: bool) -> float:
    """Fit one pair's bias and, with ``weights``, its weights; ``absorbed``: the mean of its output does not matter."""
    spec, scheme, groups = spec_of(layer), SCHEMES[planned.scheme], spec_of(layer).groups
    dense_output = target.outputs.unflatten(1, (groups, -1)).transpose(0, 1)  # g, n, o
    centred = absorbed or layer.bias is not None
    rows, columns = scheme.matrix_shape(spec)
    features = rows // dense_output.shape[2] * columns
    if weights and features <= _MOST_TAPS and len(target.numbers) >= 2 * features:
        patches = columns_of(layer, patches_at(layer, given, target.sizes, target.numbers), planned.scheme)
        dense = scheme.matrix(layer.weight, spec).reshape(groups, rows, columns)
        left, right = balanced(*fit_pair(patches, dense_output, dense, planned.rank, centred))
        left, right = left.to(given), right.to(given)
        # The pair's output without its bias: the kernel times the patches.
        kernel = (left @ right).unflatten(1, (dense_output.shape[2], -1)).flatten(2)
        output = patches.flatten(2) @ kernel.mT
        if layer.bias is not None and not absorbed:
            scale = _spread_ratio(dense_output, output)
            output = output * scale.unsqueeze(1)
            left = left * scale.repeat_interleave(left.shape[1] // scale.shape[1], 1).unsqueeze(2)
        sides = (left, right) if groups > 1 else (left[0], right[0])
        for half, weight in zip(pair, scheme.weights(*sides, spec), strict=True):
            half.weight.copy_(weight)
    else:
        output = outputs_at(layer, pair[1](pair[0](given)), target.numbers).unflatten(1, (groups, -1)).transpose(0, 1)
        if layer.bias is not None:
            output = output - pair[1].bias.unflatten(0, (groups, -1)).unsqueeze(1)
    difference = dense_output - output
    if layer.bias is not None:
        pair[1].bias.copy_(difference.mean(1).flatten())
    return _power(difference, centred) / max(_power(dense_output, centred), torch.finfo(dense_output.dtype).tiny)


def _spread_ratio(dense: Tensor, fitted: Tensor) -> Tensor:
    """The standard deviation of each output (g, o) over that of its least-squares fit, both from values (g, n, o).

    A fit varies less than what it is fitted to. Over many layers that adds up, unless BatchNorm normalises each of them. On
    ResNet-20 with BatchNorm folded into its convolutions, at a quarter of the MACs, outputs differ 2 % less from the dense
    network's with this, and top-1 is 2.4 points higher (CIFAR-10, JPEG).
    """
    deviation = fitted.std(1)
    constant = deviation <= torch.finfo(fitted.dtype).eps * fitted.abs().amax(1)
    return torch.where(constant, 1, dense.std(1) / deviation.masked_fill(constant, 1)).clamp(1 / _MOST_SCALED, _MOST_SCALED)


def _power(values: Tensor, centred: bool) -> float:
    """The sum of squares of values (g, n, o); if ``centred``, of their deviations from the mean."""
    return float((values - values.mean(1, keepdim=True) if centred else values).square().sum())
