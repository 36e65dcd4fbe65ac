"""Find the layers that can be factorised, say why the others cannot, and put the first into SVD form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrexport.errors import InputError, UsageError
from lrexport.lowrank import svd_form
from lrexport.lowrank.schemes import CONV_SCHEMES, SCHEMES, LayerCall, dense_macs, scheme_for
from lrexport.record import DenseLayer, Scheme

_WEIGHTED = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
# These hand their children's weights to fused functions instead of calling the children.
_READS_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Factorisable:
    """A layer that can be factorised, with its costs for one input; ``names`` are all places where it stands."""

    names: tuple[str, ...]
    scheme: Scheme
    full_rank: int
    dense_macs: int
    macs_per_rank: int
    dense_params: int
    params_per_rank: int
    bias_params: int


@dataclass(frozen=True)
class SVDNetwork:
    """A network in SVD form: which layers are factorised, and which stay dense for what reason.

    ``other_macs`` are MACs outside of the listed layers (attention's matrix products, say).
    """

    network: nn.Module
    layers: dict[str, Factorisable]
    dense: dict[str, DenseLayer]
    other_macs: int = 0

    @property
    def dense_macs(self) -> int:
        """MACs of the original network for one input."""
        factorised = sum(layer.dense_macs for layer in self.layers.values())
        return self.other_macs + factorised + sum(layer.dense_macs for layer in self.dense.values())


def decompose(
    network: nn.Module,
    input_shape: tuple[int, ...],
    scheme: Scheme = "spatial",
    keep: tuple[str, ...] = (),
    total_macs: int | None = None,
) -> SVDNetwork:
    """Put every layer that can gain from it into SVD form at full rank, in place.

    ``input_shape`` is (C, H, W) of one input; ``keep`` names layers that stay dense; ``total_macs`` is the count for the
    whole network where something beside its convolutions and linear layers multiplies. Raises InputError naming the
    layer for NaN or infinity in a weight, or when the network does not take such an input.
    """
    if scheme not in CONV_SCHEMES:
        raise UsageError(f"unknown scheme {scheme!r}", f"Known: {', '.join(CONV_SCHEMES)}.")
    found = inspect_layers(network, input_shape, scheme, keep)
    if unknown := [name for name in keep if name not in found]:
        raise UsageError(f"there is no layer {unknown[0]!r} to keep", f"Layers: {', '.join(found)}.")
    layers = {name: fact for name, fact in found.items() if isinstance(fact, Factorisable)}
    dense = {name: fact for name, fact in found.items() if isinstance(fact, DenseLayer)}
    for name in layers:
        svd_form.attach(network.get_submodule(name), layers[name].scheme)
    counted = sum(fact.dense_macs for fact in found.values())
    return SVDNetwork(network, layers, dense, max(0, total_macs - counted) if total_macs is not None else 0)


def inspect_layers(
    network: nn.Module, input_shape: tuple[int, ...], scheme: Scheme, keep: tuple[str, ...] = ()
) -> dict[str, Factorisable | DenseLayer]:
    """Facts of every layer with a weight, in the order of the network; nothing is changed."""
    places: dict[nn.Module, list[str]] = defaultdict(list)
    parents: dict[nn.Module, list[nn.Module]] = defaultdict(list)
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _WEIGHTED):
            places[module].append(name)
            parents[module].append(network.get_submodule(name.rpartition(".")[0]))
    owners: dict[int, list[str]] = defaultdict(list)
    for name, owner in network.named_modules():
        for parameter in owner.parameters(recurse=False):
            owners[id(parameter)].append(name)
    calls = _calls(network, list(places), input_shape)
    found: dict[str, Factorisable | DenseLayer] = {}
    for module, names in places.items():
        name = names[0]
        macs = sum(dense_macs(module, call) for call in calls[module])
        params = sum(parameter.numel() for parameter in module.parameters())
        others = [other for other in owners[id(module.weight)] if other != name]
        reason = _why_dense(module, calls[module], parents[module], others)
        if name in keep:
            reason = "kept dense as asked"
        if reason is None:
            _check_finite(name, module)
            fact = _facts(tuple(names), module, scheme, calls[module], macs, params)
            # An input-channel or spatial pair can lose at rank 1 already (first layers, tiny 1×1 layers).
            if fact.macs_per_rank < macs:
                found[name] = fact
                continue
            reason = "even a pair of rank 1 costs more than the layer"
        found[name] = DenseLayer(reason=reason, dense_macs=macs, dense_params=params)
    return found


def _why_dense(module: nn.Module, calls: list[LayerCall], parents: list[nn.Module], others: list[str]) -> str | None:
    kind = type(module).__name__
    if any(isinstance(parent, _READS_CHILDREN) for parent in parents):
        return f"{type(parents[0]).__name__} uses its weight without calling it"
    if type(module) not in _WEIGHTED and not parametrize.is_parametrized(module):
        return f"{kind} may compute something else than {type(module).__mro__[1].__name__}"
    if parametrize.is_parametrized(module):
        return "its weight has a parametrisation already"
    if not isinstance(module.weight, nn.Parameter):
        return "its weight is computed by a hook"
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"{kind} is not factorised"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        depthwise = module.groups == module.in_channels
        return "depthwise convolution" if depthwise else f"grouped convolution ({module.groups} groups)"
    if others:
        return f"its weight is shared with {', '.join(others)}"
    if not calls:
        return "not called in a forward pass"
    return None


def _facts(
    names: tuple[str, ...], module: nn.Module, asked: Scheme, calls: list[LayerCall], macs: int, params: int
) -> Factorisable:
    scheme = scheme_for(module, asked)
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = SCHEMES[scheme].matrix(torch.empty(weight.shape, device="meta")).shape
    return Factorisable(
        names=names,
        scheme=scheme,
        full_rank=min(rows, columns),
        dense_macs=macs,
        macs_per_rank=sum(SCHEMES[scheme].macs_per_rank(module, call) for call in calls),
        dense_params=params,
        params_per_rank=rows + columns,
        bias_params=params - weight.numel(),
    )


def _check_finite(name: str, module: nn.Module) -> None:
    if not torch.isfinite(module.weight).all():  # type: ignore[arg-type]
        raise InputError(f"NaN or infinity in the weight of layer {name!r}", "Use weights from before it diverged.")


def _calls(network: nn.Module, modules: list[nn.Module], input_shape: tuple[int, ...]) -> dict[nn.Module, list[LayerCall]]:
    """Run one input through the network in eval mode and note how each of the modules is used."""
    calls: dict[nn.Module, list[LayerCall]] = {module: [] for module in modules}

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module].append(LayerCall(tuple(args[0].shape[1:]), tuple(output.shape[1:])))

    hooks = [module.register_forward_hook(note) for module in modules]
    try:
        run_once(network, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@torch.no_grad()
def run_once(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Output for one input of zeros in eval mode. Raises InputError naming the shape where the network refuses it."""
    parameter = next(network.parameters(), torch.empty(0))
    with eval_mode(network):
        try:
            return network(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
        except Exception as error:
            raise InputError(
                f"the network does not take an input of shape {tuple(input_shape)}: {error}",
                "Give the right one with --input-shape C,H,W.",
            ) from error


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
