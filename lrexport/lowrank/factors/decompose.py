"""Put the layers of a network that can gain from it into SVD form, and list the others with their reasons."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lrexport.config.compression import AskedScheme
from lrexport.errors import UsageError
from lrexport.lowrank.eligibility.factorisable import Factorisable, SchemeFacts
from lrexport.lowrank.eligibility.inspection import inspect_layers
from lrexport.lowrank.factors import svd_form
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.lowrank.layers.schemes import CONV_SCHEMES
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.plan import Dense
from lrexport.text import nearest
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.plain_form import make_plain, unwrapped
from lrexport.torch_tools.tracing import run_once
from lrexport.torch_tools.unregistered import check_registered

__all__ = ["Factorisable", "SVDNetwork", "SchemeFacts", "decompose", "eval_mode", "inspect_layers", "run_once"]


@dataclass(frozen=True)
class SVDNetwork:
    """A network in SVD form: which layers are factorised, and which stay dense for what reason.

    ``other_macs`` are MACs outside of the listed layers (attention's matrix products, say), ``other_params`` parameters.
    ``made_plain`` says what was done to the network first, so that its layers and weights are plain ones.
    """

    network: nn.Module
    layers: dict[str, Factorisable]
    dense: dict[str, Dense]
    other_macs: int = 0
    other_params: int = 0
    made_plain: tuple[str, ...] = ()

    @property
    def dense_macs(self) -> int:
        """MACs of the original network for one input."""
        factorised = sum(layer.dense_macs for layer in self.layers.values())
        return self.other_macs + factorised + sum(layer.dense_macs for layer in self.dense.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What happened in the decompositions so far that the user should know."""
        retried = [name for name in self.layers if svd_form.form_of(self.network.get_submodule(name)).retried]
        return self.made_plain + tuple(
            f"the SVD of layer {name!r} did not converge and was done again in float64 on the CPU" for name in retried
        )


def decompose(
    network: nn.Module,
    input_shape: tuple[int, ...],
    scheme: AskedScheme = "spatial",
    keep: Collection[str] = (),
    total_macs: int | None = None,
) -> SVDNetwork:
    """Put every layer that can gain from it into SVD form at full rank, in place.

    Before that, weights that are computed from others (weight_norm, spectral_norm, prune masks, constant parametrisations)
    are folded into plain ones, and torch.compile is taken off: ``network`` of the result is then the one it had wrapped.
    ``input_shape`` is one input's, without batch; ``scheme`` "auto" takes each layer's cheapest at full rank; ``keep``
    are shell patterns of layer names that stay dense, ``layer1.*`` say; ``total_macs`` is the count for the whole network,
    attention's products and functional convolutions included, where it is known already; otherwise it is counted here.
    Raises UsageError for an unknown scheme or a pattern that matches no layer, and InputError naming the layer for NaN or
    infinity in a weight, or when the network does not take such an input.
    """
    network, unwrapping = unwrapped(network, "the network")
    if any(svd_form.is_attached(module) for module in network.modules() if isinstance(module, WEIGHTED)):
        raise UsageError("the network is in SVD form already", "Decompose it once; fold makes it plain again.")
    if scheme not in (*CONV_SCHEMES, "auto"):
        raise UsageError(f"unknown scheme {scheme!r}", f"Known: {', '.join(CONV_SCHEMES)}, auto.")
    keep = (keep,) if isinstance(keep, str) else keep
    _check_patterns(network, keep)
    run_once(network, input_shape)  # for its error, where it does not take such an input
    made_plain = (*unwrapping, *make_plain(network, input_shape))
    check_registered(network, lambda: run_once(network, input_shape))
    inspected = inspect_layers(network, input_shape, scheme, keep)
    layers = {name: fact for name, fact in inspected.items() if isinstance(fact, Factorisable)}
    dense = {name: fact for name, fact in inspected.items() if isinstance(fact, Dense)}
    params = sum(parameter.numel() for parameter in network.parameters())
    if total_macs is None:  # before the weights become products, which are no work of the network's
        total_macs = count_torch_macs(network, input_shape).total
    for layer in layers.values():
        first, *tied = layer.modules(network)
        svd_form.attach(first, layer.scheme, tied)
    counted = sum(fact.dense_macs for fact in inspected.values())
    other_macs = max(0, total_macs - counted)
    other_params = params - sum(fact.dense_params for fact in inspected.values())
    return SVDNetwork(network, layers, dense, other_macs, other_params, made_plain)


def _check_patterns(network: nn.Module, keep: Collection[str]) -> None:
    names = [name for name, module in network.named_modules(remove_duplicate=False) if isinstance(module, WEIGHTED)]
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names, 5, cutoff=0.3) or names[:5]
            once = "--keep is given once for each pattern. " if "," in pattern else ""
            raise UsageError(f"no layer matches {pattern!r}, to be kept dense", f"{once}Layers: {', '.join(near)}, …")
