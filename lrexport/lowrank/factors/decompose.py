"""Put layers of a network into SVD form, and list the others with the reasons why they stay dense."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lrexport.config.compression import FORMS, AskedForm, AskedScheme
from lrexport.errors import UsageError
from lrexport.lowrank.eligibility.factorisable import Factorisable
from lrexport.lowrank.eligibility.inspection import inspect_layers
from lrexport.lowrank.factors import svd_form
from lrexport.lowrank.layers.kernels import WEIGHTED
from lrexport.lowrank.layers.schemes import CONV_SCHEMES
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.plan import Dense
from lrexport.signature import Signature
from lrexport.text import nearest
from lrexport.torch_tools.batch import InputsLike, signature_of
from lrexport.torch_tools.plain_form import make_plain, unwrapped
from lrexport.torch_tools.tracing import run_once
from lrexport.torch_tools.unregistered import check_registered


@dataclass(frozen=True)
class SVDNetwork:
    """A network in SVD form: its factorised layers, and its dense ones with reasons.

    ``form`` says whether U, s, V or the weights are its parameters. ``signature`` describes its inputs. ``other_macs``
    and ``other_params`` are those outside of these layers, such as attention's matrix products. ``made_plain`` describes
    how computed weights and wrapped layers were first made plain.
    """

    network: nn.Module
    layers: dict[str, Factorisable]
    dense: dict[str, Dense]
    signature: Signature
    other_macs: int = 0
    other_params: int = 0
    made_plain: tuple[str, ...] = ()
    form: AskedForm = "explicit"

    @property
    def dense_macs(self) -> int:
        """MACs of the original network for one input."""
        factorised = sum(layer.dense_macs for layer in self.layers.values())
        return self.other_macs + factorised + sum(layer.dense_macs for layer in self.dense.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user on the decompositions so far."""
        retried = [name for name in self.layers if svd_form.form_of(self.network.get_submodule(name)).retried]
        return self.made_plain + tuple(
            f"the SVD of layer {name!r} did not converge and was repeated in float64 on the CPU" for name in retried
        )


def decompose(
    network: nn.Module,
    input_shape: InputsLike,
    scheme: AskedScheme = "spatial",
    keep: Collection[str] = (),
    total_macs: int | None = None,
    form: AskedForm = "explicit",
) -> SVDNetwork:
    """Put every layer whose pair can be cheaper into SVD form at full rank, in place.

    First, weights that are computed from others (weight_norm, spectral_norm, pruning masks, constant parametrisations) are
    folded into plain ones, and torch.compile is removed: ``network`` of the result is then the wrapped network.
    ``input_shape`` is that of the network's one input, without the batch; for several inputs give example inputs, (B, …)
    each, in a tuple or by name in a dict, or a Signature. ``scheme`` "auto" takes each layer's cheapest scheme at full rank.
    ``keep`` are shell patterns of layers that stay dense, for example ``layer1.*``. ``total_macs`` are the MACs of the whole
    network, including attention's products and functional convolutions; counted here if not given. With the ``form``
    "implicit" weights stay parameters; "explicit" makes U, s, V parameters, as in the paper. Raises UsageError for an
    unknown scheme or a pattern that matches no layer, and InputError naming the layer for NaN or infinity in a weight, or
    if the network does not accept such inputs.
    """
    network, unwrapping = unwrapped(network, "the network")
    if any(svd_form.is_attached(module) for module in network.modules() if isinstance(module, WEIGHTED)):
        raise UsageError("the network is already in SVD form", "Decompose it only once; fold makes it plain again.")
    if form not in FORMS.words:
        raise UsageError(f"unknown SVD form {form!r}", f"Known: {', '.join(FORMS.words)}.")
    if scheme not in (*CONV_SCHEMES, "auto"):
        raise UsageError(f"unknown scheme {scheme!r}", f"Known: {', '.join(CONV_SCHEMES)}, auto.")
    keep = (keep,) if isinstance(keep, str) else keep
    _check_patterns(network, keep)
    signature = signature_of(input_shape, network)
    run_once(network, signature)  # raises the error for a wrong input shape
    made_plain = (*unwrapping, *make_plain(network, signature))
    check_registered(network, lambda: run_once(network, signature))
    inspected = inspect_layers(network, signature, scheme, keep)
    layers = {name: fact for name, fact in inspected.items() if isinstance(fact, Factorisable)}
    dense = {name: fact for name, fact in inspected.items() if isinstance(fact, Dense)}
    params = sum(parameter.numel() for parameter in network.parameters())
    if total_macs is None:  # counted before weights become products of factors, which would count too
        total_macs = count_torch_macs(network, signature).total
    for layer in layers.values():
        first, *tied = layer.modules(network)
        svd_form.attach(first, layer.scheme, tied, form == "implicit")
    counted = sum(fact.dense_macs for fact in inspected.values())
    other_macs = max(0, total_macs - counted)
    other_params = params - sum(fact.dense_params for fact in inspected.values())
    return SVDNetwork(network, layers, dense, signature, other_macs, other_params, made_plain, form)


def _check_patterns(network: nn.Module, keep: Collection[str]) -> None:
    names = [name for name, module in network.named_modules(remove_duplicate=False) if isinstance(module, WEIGHTED)]
    for pattern in keep:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = nearest(pattern, names, 5, cutoff=0.3) or names[:5]
            once = "Give --keep once for each pattern. " if "," in pattern else ""
            raise UsageError(f"invalid keep pattern {pattern!r}: no layer matches", f"{once}Layers: {', '.join(near)}, …")
