"""Find which layers of a network can be factorised, what each costs, and why the others stay dense, without changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lrexport.config.compression import AskedScheme
from lrexport.errors import InputError
from lrexport.lowrank.eligibility.factorisable import Factorisable, SchemeFacts
from lrexport.lowrank.eligibility.substitution import misfits
from lrexport.lowrank.layers.constants import constant_layers
from lrexport.lowrank.layers.kernels import WEIGHTED, dense_macs, spec_of
from lrexport.lowrank.layers.schemes import SCHEMES, scheme_for, schemes_of
from lrexport.plan import Dense, DenseKind, Scheme
from lrexport.signature import Signature
from lrexport.torch_tools.batch import InputsLike, signature_of
from lrexport.torch_tools.equivalents import computes_itself, why_not_plain
from lrexport.torch_tools.tracing import LayerCall, trace
from lrexport.units import format_count

# Modules with their own weights but without a scheme.
_WITHOUT_SCHEME = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
# These hand their children's weights to fused functions instead of calling the children.
_READS_CHILDREN = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_Why = tuple[DenseKind, str]


def inspect_layers(
    network: nn.Module, inputs: InputsLike, scheme: AskedScheme, keep: Collection[str] = ()
) -> dict[str, Factorisable | Dense]:
    """The facts of every layer with a weight, by its first name, in the order of the network.

    Modules with weights but without a scheme, such as recurrent layers and MultiheadAttention, are dense. ``keep`` are shell
    patterns of layers that stay dense. Raises InputError for NaN or infinity in a weight, and if the network does not
    accept an input of this shape.
    """
    signature = signature_of(inputs, network)
    layers = _Layers(network, signature)
    inspected: dict[str, Factorisable | Dense] = {}
    for tied in layers.tied():
        whys = {layer: layers.why_dense(layer, keep) for layer in tied}
        if staying := [layer for layer, why in whys.items() if why]:
            kind, _ = whys[staying[0]] or ("unsupported", "")
            shared: _Why = (kind, f"its weight is shared with {layers.name(staying[0])}, which stays dense")
            inspected |= {layers.name(layer): layers.dense(layer, why or shared) for layer, why in whys.items()}
            continue
        facts = layers.facts(tied, scheme)
        if isinstance(facts, Factorisable):
            inspected[facts.names[0]] = facts
        else:
            inspected |= {layers.name(layer): layers.dense(layer, facts) for layer in tied}
    factorisable = {name: facts for name, facts in inspected.items() if isinstance(facts, Factorisable)}
    for name, why in misfits(network, signature, factorisable).items():
        alike = factorisable[name].modules(network)
        inspected |= {layers.name(layer): layers.dense(layer, ("unsupported", why)) for layer in alike}
    inspected |= {
        layers.name(module): layers.without_scheme(module) for module in layers.places if module not in layers.uses
    }
    return {name: inspected[name] for name in map(layers.name, layers.places) if name in inspected}


class _Layers:
    """The layers of a network with a weight: their places, the owners of their weights, and their uses in a forward pass."""

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        self.places: dict[Any, list[str]] = defaultdict(list)
        self.parents: dict[nn.Module, list[nn.Module]] = defaultdict(list)
        self.owners: dict[int, list[tuple[str, nn.Module]]] = defaultdict(list)
        for name, module in network.named_modules(remove_duplicate=False):
            if isinstance(module, (*WEIGHTED, *_WITHOUT_SCHEME)):
                self.places[module].append(name)
                self.parents[module].append(network.get_submodule(name.rpartition(".")[0]))
        for name, owner in network.named_modules():
            for parameter in owner.parameters(recurse=False):
                self.owners[id(parameter)].append((name, owner))
        self.layers = [module for module in self.places if isinstance(module, WEIGHTED)]
        self.attention_macs: dict[nn.Module, int] = defaultdict(int)
        with self._watching_attention() as outputs:
            self.uses = trace(network, self.layers, signature)
        for layer in self.uses:
            self.uses[layer].calls += outputs[layer]
        self.constant = constant_layers(network, self.layers, signature)

    @contextmanager
    def _watching_attention(self) -> Iterator[dict[nn.Module, list[LayerCall]]]:
        """Count the MACs of MultiheadAttention's own weights; yields the uses of its last layer, which it does not call."""
        outputs: dict[nn.Module, list[LayerCall]] = defaultdict(list)

        def leave(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _output: object) -> None:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            values = sum(given[name].numel() for name in ("query", "key", "value"))
            self.attention_macs[module] += values * module.embed_dim
            outputs[module.out_proj].append(LayerCall(given["query"].numel() // module.embed_dim))

        usual = nn.MultiheadAttention.forward  # a subclass may take other arguments and compute something else
        attentions = [module for module in self.places if getattr(module.forward, "__func__", None) is usual]
        hooks = [module.register_forward_hook(leave, with_kwargs=True) for module in attentions]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def name(self, layer: nn.Module) -> str:
        return self.places[layer][0]

    def tied(self) -> Iterator[list[Any]]:
        """Groups of layers that have the same weight and can have the same factors; every layer is in one group."""
        done: set[nn.Module] = set()
        for layer in self.layers:
            if layer in done:
                continue
            others = [other for _, other in self.owners.get(id(layer.weight), []) if other is not layer]
            group = [layer, *(other for other in others if self._can_share(layer, other))]
            done |= set(group)
            yield group

    def _can_share(self, layer: Any, other: Any) -> bool:
        """Whether two layers with one weight have the same matrix; stride, padding and bias may differ."""
        return type(layer) is type(other) and layer.weight is other.weight and spec_of(layer) == spec_of(other)

    def why_dense(self, layer: Any, keep: Collection[str]) -> _Why | None:
        """Kind and text of the first reason for the layer to stay dense; None if it can be factorised."""
        if any(fnmatchcase(place, pattern) for place in self.places[layer] for pattern in keep):
            return "kept", "kept dense as asked"
        text = self._unsupported_itself(layer) or self._unsupported_in_use(layer)
        return ("unsupported", text) if text else None

    def _unsupported_itself(self, layer: Any) -> str | None:
        if "" in self.places[layer]:
            return "it is the whole network"
        if readers := [parent for parent in self.parents[layer] if isinstance(parent, _READS_CHILDREN)]:
            return f"{type(readers[0]).__name__} uses its weight without calling it"
        if parametrize.is_parametrized(layer):
            return "its weight has a parametrisation whose value varies"
        if computes_itself(layer):
            return why_not_plain(layer)
        if not isinstance(layer.weight, nn.Parameter):
            return "its weight is computed by a hook"
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return "it has hooks, which a pair would lose"
        if not layer.weight.is_floating_point():
            return f"its weight is {str(layer.weight.dtype).removeprefix('torch.')}"
        return "depthwise convolution" if spec_of(layer).is_depthwise else None

    def _unsupported_in_use(self, layer: Any) -> str | None:
        owners = self.owners[id(layer.weight)]
        if foreign := [name for name, owner in owners if owner is not layer and not self._can_share(layer, owner)]:
            return f"its weight is shared with {', '.join(foreign)}"
        if others := [name for name, owner in self.owners[id(layer.bias)] if owner is not layer and layer.bias is not None]:
            return f"its bias is shared with {', '.join(others)}"
        if self.uses[layer].weight_read:
            return "the network uses its weight without calling it"
        if not self.uses[layer].calls:
            return "not called in a forward pass"
        if layer in self.constant:
            return "its inputs are constant, so the exported graph contains only its result"
        if self.uses[layer].extra_arguments:
            return "called with further arguments, which a pair does not accept"
        return None

    def facts(self, tied: list[Any], asked: AskedScheme) -> Factorisable | _Why:
        """The facts of layers that share a weight, or why no pair is cheaper."""
        names = [name for layer in tied for name in self.places[layer]]
        weight, spec = tied[0].weight, spec_of(tied[0])
        if not torch.isfinite(weight).all():
            hint = "Use weights from before training diverged."
            raise InputError(f"NaN or infinity in the weight of layer {names[0]!r}", hint)
        macs = sum(map(self.dense_macs, tied))
        calls = [call for layer in tied for call in self.uses[layer].calls]
        every = {scheme: _scheme_facts(scheme, tied[0], calls) for scheme in schemes_of(spec)}
        # An input-channel or spatial pair can cost more even at rank 1 (first layers, tiny 1×1 layers).
        cheaper = {scheme: facts for scheme, facts in every.items() if facts.macs_per_rank < macs}
        if not cheaper:
            return "costly", "even a pair of rank 1 costs more than the layer"
        scheme = _cheapest(cheaper) if asked == "auto" else scheme_for(spec, asked)
        if scheme not in cheaper:
            pair = f"a {scheme} pair of rank 1 costs {format_count(every[scheme].macs_per_rank)} MACs"
            return "costly", f"{pair}, the layer {format_count(macs)}"
        biases = sum(layer.bias.numel() for layer in tied if layer.bias is not None)
        params, shape = weight.numel() + biases, tuple(weight.shape)
        named = tuple((self.name(layer), call) for layer in tied for call in self.uses[layer].calls)
        return Factorisable(tuple(names), scheme, cheaper, macs, params, biases, shape, named)

    def dense_macs(self, layer: nn.Module) -> int:
        if layer in self.constant:
            return 0
        spec = spec_of(layer)
        return sum(dense_macs(spec, call) for call in self.uses[layer].calls)

    def dense(self, layer: Any, why: _Why) -> Dense:
        kind, reason = why
        params = sum(parameter.numel() for parameter in layer.parameters() if self._is_first_owner(layer, parameter))
        shape = tuple(layer.weight.shape)
        return Dense(kind=kind, reason=reason, dense_macs=self.dense_macs(layer), dense_params=params, shape=shape)

    def without_scheme(self, module: nn.Module) -> Dense:
        """The entry of a module without a scheme; MACs as counted for the whole network, so 0 for recurrent layers."""
        own = list(module.parameters(recurse=False))
        shapes = [tuple(parameter.shape) for parameter in own if parameter.ndim == 2]
        return Dense(
            reason=f"no scheme for {type(module).__name__}",
            dense_macs=self.attention_macs[module],
            dense_params=sum(parameter.numel() for parameter in own if self._is_first_owner(module, parameter)),
            shape=shapes[0] if len(shapes) == 1 else (),
        )

    def _is_first_owner(self, layer: nn.Module, parameter: nn.Parameter) -> bool:
        """Whether the parameter counts for this layer: a shared one counts for its first owner."""
        owners = (owner for _, owner in self.owners.get(id(parameter), []) if owner in self.places)
        return next(owners, layer) is layer


def _scheme_facts(scheme: Scheme, layer: Any, calls: list[LayerCall]) -> SchemeFacts:
    spec, factorisation = spec_of(layer), SCHEMES[scheme]
    macs = sum(factorisation.macs_per_rank(spec, call) for call in calls)
    return SchemeFacts(factorisation.full_rank(spec), macs, factorisation.params_per_rank(spec))


def _cheapest(schemes: dict[Scheme, SchemeFacts]) -> Scheme:
    """The scheme whose pair costs least at full rank; the first if several do."""
    return min(schemes, key=lambda scheme: schemes[scheme].macs_per_rank * schemes[scheme].full_rank)
