"""λ_s steered layer by layer, so that by the end of SVD training pruning to a budget drops next to nothing.

The budget says how many singular values each layer may keep. Where more energy lies beyond them than a path to the end
allows, the layer's λ_s grows, where less does it falls; a layer that stays dense has none. So neither λ_s nor equation 4's
e has to be found by hand. All is computed from U, s, V alone, the same in every process.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lrexport.events import Steering
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.regularisation.regularisers import Regularisers, Sparsity

INITIAL = 0.03  # λ_s at the beginning, the default of a fixed one
# The share of a layer's energy that may lie beyond its rank falls by equal ratios from what it is at first to this. It is
# there before training is over: at the last, small learning rates no strength moves anything any more.
LAST, _PATH = 1e-2, 0.75
# A layer that is off by a factor e for a tenth of the steps has its strength changed by e; no layer counts as further off
# than a factor e².
_GAIN, _MOST_OFF = 10.0, 2.0
WEAKEST, STRONGEST = 1e-3, 3.0
_EVERY = 8  # steps: a spectrum does not change faster


class SteeredRegularisers(Regularisers):
    """:class:`Regularisers` that steer their strengths at each of ``steps`` steps, a call each.

    ``ranks`` are what layers will be pruned to, by name; those that are not named stay dense. Buffers, so that training
    goes on where it was: ``strengths`` (layers,), ``first`` (layers,), the share of energy beyond the rank at the start,
    and ``step``.
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
        """Share of each layer's energy beyond its rank, (layers,): 0 where it stays dense.

        Singular values are taken to be |s| times the lengths of the columns of U and V, exact where those are orthogonal.
        """
        shares = []
        for name in self.svd.layers:
            left, singular, right = factors(self.svd.network.get_submodule(name))
            energies = (singular.square() * left.square().sum(-2) * right.square().sum(-2)).sort(descending=True).values
            rank = self.ranks.get(name, energies.shape[-1])
            shares.append(energies[..., rank:].sum() / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))
        return torch.stack(shares) if shares else torch.zeros(0)

    def _steer(self) -> None:
        done = min(1.0, float(self.step) / (_PATH * self.steps))
        start = self.first.clamp_min(LAST)
        allowed = start * (LAST / start) ** done
        off = (self.beyond().clamp_min(1e-9) / allowed).log().clamp(-_MOST_OFF, _MOST_OFF)
        changed = self.strengths * (off * (_GAIN * _EVERY / self.steps)).exp()
        self.strengths.copy_(torch.where(self.strengths > 0, changed.clamp(WEAKEST, STRONGEST), 0))

    def summary(self) -> Steering:
        """Where λ_s and the layers are now."""
        steered = self.strengths[self.strengths > 0].tolist() or [0.0]
        return Steering(min(steered), max(steered), energy_dropped=max(self.beyond().tolist(), default=0.0))
