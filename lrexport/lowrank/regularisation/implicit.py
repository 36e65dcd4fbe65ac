"""Regularisers of SVD training in implicit form: the weight is trained, its singular vectors are refreshed now and then.

With W = U·diag(s)·Vᵀ the gradients of the sparsity terms of equation 3 (Yang et al. 2020, arXiv 2004.09031) with respect to
the weight are UVᵀ for L1, since ‖W‖_* = ⟨UVᵀ, W⟩, and UVᵀ/‖W‖_F − ‖W‖_*·W/‖W‖_F³ for Hoyer. UVᵀ is that of the last
refresh, so no SVD is needed in between. Singular vectors of an SVD are orthogonal, so equation 1 is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lrexport.errors import UsageError
from lrexport.events import Steering
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.exact_svd import exact_svd
from lrexport.lowrank.factors.svd_form import compose
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.regularisation.regularisers import ExtraLoss, Sparsity
from lrexport.lowrank.regularisation.steering import INITIAL, steered, summary_of

# Refreshes may take this share of the time of training, as far as the number of steps between them allows.
_SHARE = 0.02
_LEAST_STEPS, _MOST_STEPS = 10, 100
# An eigendecomposition takes about this many times n³ multiplications at the speed of a convolution.
_EIGEN = 12
# The share of a layer's energy beyond its rank that a path ends at, and the part of the steps until then.
_END, _PATH = 1e-3, 0.75


def steps_between_refreshes(svd: SVDNetwork, batch_size: int) -> int:
    """Steps after which U, s, V are refreshed: the fewer, the smaller a refresh is beside a step; from 10 to 100."""
    refresh = 0.0
    for name, layer in svd.layers.items():
        module: Any = svd.network.get_submodule(name)
        spec = spec_of(module)
        rows, columns = SCHEMES[layer.scheme].matrix_shape(spec)
        least, most = sorted((rows, columns))
        refresh += spec.groups * (4 * least * least * most + _EIGEN * least**3)
    step = 3 * batch_size * max(1, svd.dense_macs)  # forward, and two products of the same size backward
    return min(_MOST_STEPS, max(_LEAST_STEPS, math.ceil(refresh / (_SHARE * step))))


class ImplicitRegularisers(ExtraLoss):
    """The sparsity term of equation 3 for a network in implicit SVD form, with λ_s for each layer in ``strengths``.

    ``before_step`` is called before every training step, and refreshes singular vectors every ``every`` steps. Buffers hold
    all that resuming needs: the number of ``step``, and UVᵀ of each layer in the shape of its weight. Raises UsageError for
    a network in explicit form.
    """

    strengths: Tensor
    step: Tensor

    def __init__(
        self, svd: SVDNetwork, strength: float, sparsity: Sparsity = "hoyer", every: int = 1, steered: bool = False
    ) -> None:
        super().__init__()
        if svd.form != "implicit":
            raise UsageError("the network is in explicit SVD form", 'Decompose it with form="implicit".')
        self.svd, self.every = svd, every
        self.sparsity: Sparsity = sparsity if strength else "none"
        self.register_buffer("strengths", torch.full((len(svd.layers),), float(strength)), persistent=steered)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.sparsity != "none":
            for number, module in enumerate(self._modules_in_form()):
                self.register_buffer(f"polar_{number}", torch.zeros_like(module.weight, requires_grad=False))

    def _modules_in_form(self) -> Iterator[Any]:
        return (self.svd.network.get_submodule(name) for name in self.svd.layers)

    @torch.no_grad()
    def before_step(self) -> None:
        """Refresh singular vectors if it is time. No graph of a forward pass may be waiting, since weights may change."""
        if self.step % self.every == 0:
            self.refresh()
        self.step += 1

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute U, s, V of every layer."""
        for number, (name, layer) in enumerate(self.svd.layers.items()):
            module: Any = self.svd.network.get_submodule(name)
            spec, scheme = spec_of(module), SCHEMES[layer.scheme]
            left, singular, right, _ = exact_svd(scheme.matrix(module.weight, spec))
            changed = self._seen(number, name, singular)
            if changed is not None:
                module.weight.copy_(scheme.kernel(compose(left, changed, right), spec))
            if self.sparsity != "none":
                polar = torch.empty_like(module.weight)  # in the weight's memory layout, so that products are fast
                setattr(self, f"polar_{number}", polar.copy_(scheme.kernel(left @ right.mT, spec)))

    def _seen(self, _number: int, _name: str, _singular: Tensor) -> Tensor | None:
        """Called with the singular values of a layer, (r,) or (g, r); those that it should have instead, or None."""
        return None

    def forward(self) -> Tensor:
        """Σ λ_s · sparsity, a scalar whose gradient is exact for the singular vectors of the last refresh."""
        if self.sparsity == "none" or not self.svd.layers:
            return self.strengths.new_zeros(())
        penalties = [self._penalty(number, module) for number, module in enumerate(self._modules_in_form())]
        return (self.strengths * torch.stack(penalties)).sum()

    def _penalty(self, number: int, module: Any) -> Tensor:
        """⟨UVᵀ, W⟩, for Hoyer over ‖W‖_F, summed over groups."""
        weight, polar = module.weight, self.get_buffer(f"polar_{number}")
        groups, tiny = spec_of(module).groups, torch.finfo(weight.dtype).tiny
        if groups > 1:  # both kinds of convolutions have their groups along the first axis
            weight, polar = weight.reshape(groups, -1), polar.reshape(groups, -1)
            nuclear, length = (weight * polar).sum(1), torch.linalg.vector_norm(weight, dim=1)
        else:
            nuclear, length = (weight * polar).sum(), torch.linalg.vector_norm(weight)
        return nuclear.sum() if self.sparsity == "l1" else (nuclear / length.clamp_min(tiny)).sum()


class _TowardsRanks(ImplicitRegularisers):
    """Training towards ``ranks`` in ``steps``: the energy beyond each layer's rank, ``first`` and at the last refresh."""

    first: Tensor
    beyond_now: Tensor

    def __init__(
        self, svd: SVDNetwork, ranks: Mapping[str, int], steps: int, strength: float, sparsity: Sparsity, every: int
    ) -> None:
        super().__init__(svd, strength, sparsity, every, steered=strength > 0)
        self.ranks, self.steps = ranks, steps
        self.register_buffer("first", torch.zeros(len(svd.layers)))
        self.register_buffer("beyond_now", torch.zeros(len(svd.layers)))

    def _seen(self, number: int, name: str, singular: Tensor) -> Tensor | None:
        self.beyond_now[number] = share_beyond(singular, self.ranks.get(name))
        if not self.step:
            self.first[number] = self.beyond_now[number]
        return None

    def summary(self) -> Steering:
        """The present range of λ_s, 0 without one, and the largest energy beyond a rank."""
        return summary_of(self.strengths, self.beyond_now)


class SteeredImplicit(_TowardsRanks):
    """λ_s of each layer follows the energy beyond its rank, as :class:`SteeredRegularisers` does, at every refresh."""

    def __init__(self, svd: SVDNetwork, ranks: Mapping[str, int], steps: int, sparsity: Sparsity, every: int = 1) -> None:
        super().__init__(svd, ranks, steps, INITIAL, sparsity, every)
        self.strengths[[name not in ranks for name in svd.layers]] = 0

    @torch.no_grad()
    def refresh(self) -> None:
        """Compute U, s, V, and steer λ_s by them."""
        super().refresh()
        done = float(self.step) / self.steps
        self.strengths.copy_(steered(self.strengths, self.beyond_now, self.first, done, self.every / self.steps))


class EnergyPath(_TowardsRanks):
    """Scales down what lies beyond each layer's rank, so that its share of energy falls along a path to 0.1 %.

    The share falls exponentially until three quarters of ``steps``, then stays there. Nothing is added to the loss: at every
    refresh the smaller singular values are multiplied by one number. Layers without a rank in ``ranks`` stay as they are.
    """

    def __init__(self, svd: SVDNetwork, ranks: Mapping[str, int], steps: int, every: int = 1) -> None:
        super().__init__(svd, ranks, steps, 0.0, "none", every)

    def _seen(self, number: int, name: str, singular: Tensor) -> Tensor | None:
        super()._seen(number, name, singular)
        rank, share = self.ranks.get(name), float(self.beyond_now[number])
        done = min(1.0, float(self.step) / (_PATH * self.steps))
        start = max(float(self.first[number]), _END)
        allowed = start * (_END / start) ** done
        if rank is None or share <= allowed:
            return None
        # tail² · c² / (head² + tail² · c²) = allowed
        scale = math.sqrt(allowed * (1 - share) / (share * (1 - allowed)))
        self.beyond_now[number] = allowed
        return torch.cat([singular[..., :rank], scale * singular[..., rank:]], dim=-1)


def share_beyond(singular: Tensor, rank: int | None) -> float:
    """The share of energy beyond the ``rank`` largest singular values, (r,) or (g, r); 0 without a rank."""
    if rank is None:
        return 0.0
    energy = singular.double().square()
    total = float(energy.sum())
    return float(energy[..., rank:].sum()) / total if total > 0 else 0.0
