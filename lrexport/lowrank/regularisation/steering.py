"""Steer λ_s for each layer, so that pruning to a budget after SVD training drops hardly any energy.

The budget gives the number of singular values that each layer may keep. If more energy is beyond them than a decreasing
path allows, the layer's λ_s grows; if less, it falls. Layers that stay dense have λ_s = 0. So neither λ_s nor e of equation
4 has to be chosen by hand. Everything is computed from U, s, V only, with the same result in every process.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lrexport.events import Steering
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.regularisation.regularisers import Regularisers, Sparsity

INITIAL = 0.03  # λ_s at the start, the default of a fixed λ_s
# The allowed share of a layer's energy beyond its rank falls exponentially from its initial value to LAST, within this part
# of the steps: at the small learning rates of the end, λ_s has no effect any more.
LAST, _PATH = 1e-2, 0.75
# A layer that is off by a factor e for a tenth of the steps has its λ_s changed by a factor e; larger deviations than e²
# count as e².
_GAIN, _MOST_OFF = 10.0, 2.0
WEAKEST, STRONGEST = 1e-3, 3.0
_EVERY = 8  # steps between changes, because spectra change slowly


def steered(strengths: Tensor, beyond: Tensor, first: Tensor, done: float, interval: float) -> Tensor:
    """λ_s of each layer, (layers,), for the next ``interval`` of training, when a share ``done`` of it is over.

    ``beyond`` is the share of energy beyond each layer's rank now, ``first`` at the start. A λ_s of 0 stays 0.
    """
    start = first.clamp_min(LAST)
    allowed = start * (LAST / start) ** min(1.0, done / _PATH)
    off = (beyond.clamp_min(1e-9) / allowed).log().clamp(-_MOST_OFF, _MOST_OFF)
    changed = strengths * (off * (_GAIN * interval)).exp()
    return torch.where(strengths > 0, changed.clamp(WEAKEST, STRONGEST), 0)


def summary_of(strengths: Tensor, beyond: Tensor) -> Steering:
    """The range of λ_s over the layers that have one, 0 without any, and the largest energy beyond a rank."""
    used = strengths[strengths > 0].tolist() or [0.0]
    return Steering(min(used), max(used), energy_dropped=max(beyond.tolist(), default=0.0))


class SteeredRegularisers(Regularisers):
    """:class:`Regularisers` that steer their strengths over ``steps`` training steps, with one call in each.

    ``ranks`` are those that layers will be pruned to, by name; other layers stay dense. The state for resuming is in
    buffers: ``strengths`` (layers,), ``first`` (layers,), the share of energy beyond the rank at the start, and ``step``.
    """

    first: Tensor
    step: Tensor

    def __init__(
        self, svd: SVDNetwork, ranks: Mapping[str, int], steps: int, orthogonality_strength: float, sparsity: Sparsity
    ) -> None:
        super().__init__(svd, orthogonality_strength, INITIAL, sparsity, steered=True)
        self.ranks, self.steps = ranks, steps
        self.strengths[[name not in ranks for name in svd.layers]] = 0
        self.register_buffer("first", self.beyond().cpu())
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self) -> Tensor:
        if self.step % _EVERY == 0:
            self._steer()
        self.step += 1
        return super().forward()

    @torch.no_grad()
    def beyond(self) -> Tensor:
        """The share of each layer's energy beyond its rank, (layers,); 0 for layers that stay dense.

        Singular values are approximated by |s| times the norms of the columns of U and V, exact if these are orthogonal.
        """
        shares = []
        for name in self.svd.layers:
            left, singular, right = factors(self.svd.network.get_submodule(name))
            energies = (singular.square() * left.square().sum(-2) * right.square().sum(-2)).sort(descending=True).values
            rank = self.ranks.get(name, energies.shape[-1])
            shares.append(energies[..., rank:].sum() / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))
        return torch.stack(shares) if shares else torch.zeros(0)

    def _steer(self) -> None:
        done, interval = float(self.step) / self.steps, _EVERY / self.steps
        self.strengths.copy_(steered(self.strengths, self.beyond(), self.first, done, interval))

    def summary(self) -> Steering:
        """The present range of λ_s, and the largest energy beyond a rank."""
        return summary_of(self.strengths, self.beyond())
