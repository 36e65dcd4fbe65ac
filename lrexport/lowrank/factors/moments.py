"""Second moments of the inputs of layers: how much each direction of a kernel matters on real data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.arguments import check_svd, checked_images
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.patches import draw, patches_at, positions, sizes_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Scheme
from lrexport.signature import Signature
from lrexport.torch_tools.batch import Batch, call
from lrexport.torch_tools.memory_layout import fast_layout
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import given_to

# Sampled outputs per layer, enough for a second moment of a few thousand columns.
_MOST_SAMPLES = 10_000
# A larger moment takes half a GB and too much time; such layers are not weighted.
_MOST_COLUMNS = 8192

Moments = Mapping[str, Mapping[Scheme, Tensor]]
Schemes = Mapping[str, Iterable[Scheme]]


def own_schemes_of(svd: SVDNetwork) -> Schemes:
    """The scheme of each layer's SVD form."""
    return {name: (layer.scheme,) for name, layer in svd.layers.items()}


def every_scheme_of(svd: SVDNetwork) -> Schemes:
    """Every scheme in which a layer's pair can be cheaper."""
    return {name: tuple(layer.schemes) for name, layer in svd.layers.items()}


def input_moments(svd: SVDNetwork, batches: Iterable[Any], schemes: Schemes | None = None) -> Moments:
    """E[x xᵀ] over the columns of a layer's matrix, (columns, columns) or (g, columns, columns), by layer and scheme.

    ``schemes`` are by default those of the SVD form. ``batches`` are tensors (N, …), or pairs of one and anything else, such
    as a DataLoader's (images, labels); labels are not used. A single tensor is one batch. Only the first 10,000 batches are
    used. x has one value for each column: input channels times taps of the pair's first half. Layers with very many columns
    are left out. Raises UsageError for batches of another type.
    """
    return moments_of_samples(svd, batches, schemes, _MOST_SAMPLES)


@torch.no_grad()
def moments_of_samples(svd: SVDNetwork, batches: Iterable[Any], schemes: Schemes | None, samples: int) -> Moments:
    """:func:`input_moments` of about as many ``samples`` of each layer's outputs, from no more batches than that."""
    check_svd(svd)
    batches = [batches] if isinstance(batches, Tensor | Batch) else batches
    if not isinstance(batches, Iterable):
        raise _no_batches(batches)
    schemes = schemes or own_schemes_of(svd)
    measured = {name: _not_too_wide(svd, name, schemes[name]) for name in svd.layers}
    sums: dict[str, dict[Scheme, Tensor]] = {name: {} for name in measured}
    counts: dict[tuple[str, Scheme], int] = {}
    generator = torch.Generator().manual_seed(0)
    count = length_hint(batches)
    if not count:  # an iterator of unknown length
        batches = list(islice(batches, samples))
        count = len(batches)
    most = max(1, samples // max(1, count))

    def watch(name: str) -> Any:
        def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> None:
            numbers = draw(positions(output, layer), most, generator)
            patches = patches_at(layer, given_to(args, kwargs), sizes_of(output, layer), numbers)
            for scheme in measured[name]:
                columns = columns_of(layer, patches, scheme).flatten(1, 2)
                moment = columns.mT @ columns
                sums[name][scheme] = sums[name][scheme] + moment if scheme in sums[name] else moment
                counts[name, scheme] = counts.get((name, scheme), 0) + columns.shape[1]

        return note

    def watch_all(hooks: ExitStack) -> None:
        for name, layer in svd.layers.items():
            for module in layer.modules(svd.network):
                hooks.callback(module.register_forward_hook(watch(name), with_kwargs=True).remove)

    with ExitStack() as hooks, eval_mode(svd.network):
        for number, batch in enumerate(islice(batches, samples)):
            inputs = inputs_of(batch, svd.signature)
            if not number:
                inputs = checked_images(svd, inputs)
            inputs = fast_layout(svd.network, inputs)
            if not number:  # only now, because fast_layout runs the network
                watch_all(hooks)
            call(svd.network, inputs)
    return {
        name: {scheme: _grouped(svd, name, total / counts[name, scheme]) for scheme, total in by_scheme.items()}
        for name, by_scheme in sums.items()
    }


def inputs_of(batch: object, signature: Signature) -> Batch:
    """The inputs in a batch: tensors by name, a tensor for each input, or the first item of a tuple or list.

    What follows the inputs, labels say, is left out. Raises UsageError.
    """
    if isinstance(batch, Batch):
        return batch
    inputs = batch
    if isinstance(batch, list | tuple) and batch:
        first = batch[0]
        one = len(signature) == 1 or not isinstance(first, Tensor)  # followed by labels
        inputs = first if one else tuple(batch[: len(signature)])
    if isinstance(inputs, Mapping) and set(signature.names) <= set(inputs):
        inputs = {name: inputs[name] for name in signature.names}
    try:
        given = Batch.of(inputs)  # type: ignore[arg-type]
    except UsageError:
        raise _no_batches(batch) from None
    if len(given.tensors) != len(signature):
        raise _no_batches(batch)
    return given if given.names else Batch(given.tensors, signature.names)


def _no_batches(batch: object) -> UsageError:
    return UsageError(
        f"invalid batch of type {type(batch).__name__}: expected a tensor (N, …), or a pair of a tensor and labels",
        "Give an iterable of batches: a DataLoader, [images], or ((item['image'], None) for item in loader); of a network "
        "with several inputs dicts of tensors by name.",
    )


def columns_of(layer: Any, patches: Tensor, scheme: Scheme) -> Tensor:
    """Patches (n, in, k…) arranged by the matrix's columns: (g, n, taps of the second half, columns)."""
    spec = spec_of(layer)
    second = SCHEMES[scheme].second_axes(spec)
    first = [axis for axis in spec.axes if axis not in second]
    grouped = patches.unflatten(1, (spec.groups, -1))  # (n, g, in ÷ g, k…)
    ordered = grouped.permute(1, 0, *(3 + axis for axis in second), 2, *(3 + axis for axis in first))
    count = len(patches)
    return ordered.reshape(spec.groups, count, -1, SCHEMES[scheme].matrix_shape(spec)[1])


def _not_too_wide(svd: SVDNetwork, name: str, schemes: Iterable[Scheme]) -> list[Scheme]:
    spec = spec_of(svd.network.get_submodule(name))
    return [scheme for scheme in schemes if SCHEMES[scheme].matrix_shape(spec)[1] <= _MOST_COLUMNS]


def _grouped(svd: SVDNetwork, name: str, moment: Tensor) -> Tensor:
    """The moment without its group axis if the layer has only one group, as in its matrix."""
    return moment if spec_of(svd.network.get_submodule(name)).groups > 1 else moment[0]
