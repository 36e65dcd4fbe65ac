"""A layer that can be factorised: its schemes, and the costs of its pair."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lrexport.plan import Scheme
from lrexport.torch_tools.tracing import LayerCall


@dataclass(frozen=True)
class SchemeFacts:
    """A layer's pair by one scheme: its full rank, and its costs per rank, over all groups of a grouped layer."""

    full_rank: int
    macs_per_rank: int
    params_per_rank: int


@dataclass(frozen=True)
class Factorisable:
    """A layer that can be factorised, with its costs for one input of the network.

    ``names`` are all places of this layer and of layers with the same weight; the first is its name. ``scheme`` is that of
    its SVD form; ``schemes`` has every scheme whose pair of rank 1 costs less than the layer. ``shape`` is the weight's.
    MACs are summed over the places; parameters count once, ``bias_params`` are those of the biases. ``calls`` are all uses
    in one forward pass, each with the name of the called layer.
    """

    names: tuple[str, ...]
    scheme: Scheme
    schemes: dict[Scheme, SchemeFacts]
    dense_macs: int
    dense_params: int
    bias_params: int
    shape: tuple[int, ...]
    calls: tuple[tuple[str, LayerCall], ...] = ()

    def modules(self, network: nn.Module) -> list[nn.Module]:
        """The modules in its places, each once; one module can be in several places, and several can share the weight."""
        return list(dict.fromkeys(network.get_submodule(place) for place in self.names))

    @property
    def full_rank(self) -> int:
        """Full rank in the SVD form's scheme."""
        return self.schemes[self.scheme].full_rank

    @property
    def macs_per_rank(self) -> int:
        """MACs per rank in the SVD form's scheme."""
        return self.schemes[self.scheme].macs_per_rank

    @property
    def params_per_rank(self) -> int:
        """Weights per rank in the SVD form's scheme."""
        return self.schemes[self.scheme].params_per_rank
