"""Every layer at every rank: what truncation drops, and the factors that drop least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrexport.errors import InputError, UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.moments import Moments, Schemes, own_schemes_of
from lrexport.lowrank.factors.svd_form import factors_by, form_of, is_attached, is_cut, redecompose
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Pair, Plan, PlannedLatency, Scheme

# Keeps directions that the data never showed in the order of their own energy, and the full rank exact.
_FLOOR = 1e-6
# Of a matrix of float32 numbers, as a share of its largest energy.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Truncation:
    """One layer by one scheme. ``energy_dropped[r]`` is the share of the energy lost at rank r, (full rank + 1,), float64.

    The matrix at rank r is basis[:, :r] @ (basis[:, :r]ᵀ @ matrix): basis (rows, full rank) holds orthonormal columns, the
    left singular vectors of the matrix, weighted on the right by the square root of its input's second moment where that
    is known. With g > 1 groups both have a leading group axis.
    """

    energy_dropped: Tensor
    basis: Tensor
    matrix: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Left (rows, r) and right (r, columns), the same scale on either side, as sqrt(|s|) gives it."""
        left = self.basis[..., :rank]
        return balanced(left, left.mT @ self.matrix)


Truncations = Mapping[str, Mapping[Scheme, Truncation]]


@dataclass(frozen=True)
class Selection:
    """A plan, the truncations it was chosen from, and what the user should know about it.

    ``threshold`` is equation 4's e where one e made the plan, else None; ``heldout_top1`` the accuracy before pruning,
    where the goal was about it; ``latency`` what the target says of the plan.
    """

    plan: Plan
    threshold: float | None = None
    warnings: tuple[str, ...] = ()
    truncations: Truncations = field(default_factory=dict)
    heldout_top1: float | None = None
    latency: PlannedLatency | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether anything is pruned."""
        return any(isinstance(layer, Pair) for layer in self.plan.values())


def plan_of(plan: object) -> Plan:
    """The plan in what select returned, or in what stands for it. Raises UsageError for anything else."""
    if isinstance(plan, Selection):
        return plan.plan
    if not isinstance(plan, Mapping):
        raise UsageError(
            f"invalid plan: expected layers by name, not a {type(plan).__name__}", "lrexport.select returns a plan."
        )
    return plan if isinstance(plan, Plan) else Plan(plan)


def truncations(svd: SVDNetwork, moments: Moments | None = None, schemes: Schemes | None = None) -> Truncations:
    """Truncation of each layer by ``schemes``, by default the one of its SVD form.

    U, s, V are replaced by the exact SVD of the composed kernels first. Raises InputError naming the layer where a moment is
    not finite.
    """
    schemes = schemes or own_schemes_of(svd)
    truncated: dict[str, dict[Scheme, Truncation]] = {}
    for name in svd.layers:
        module: Any = svd.network.get_submodule(name)
        redecompose(module)
        weighting = (moments or {}).get(name, {})
        if not all(bool(moment.isfinite().all()) for moment in weighting.values()):
            raise InputError(
                f"what layer {name!r} is given is not finite, or too large to be squared in float32",
                "Look at the weights of the layers before it and at the data.",
            )
        truncated[name] = {scheme: _truncate(module, scheme, weighting.get(scheme)) for scheme in schemes[name]}
    return truncated


@torch.no_grad()
def _truncate(module: Any, scheme: Scheme, moment: Tensor | None) -> Truncation:
    matrix = SCHEMES[scheme].matrix(module.weight, spec_of(module))
    if moment is not None:
        basis, energy, retried = weighted_basis(matrix, moment.to(matrix))
        form_of(module).retried |= retried
    else:
        basis, singular, _ = factors_by(module, scheme)
        energy = singular.double().square()
    if is_attached(module) and is_cut(module):  # what is left beyond its rank is rounding, which no rank is worth
        energy = torch.where(energy < _ROUNDING * energy.amax(-1, keepdim=True), 0, energy)
    energy = energy if energy.ndim == 1 else energy.sum(0)  # one rank for all groups: what they drop together
    return Truncation(_share_dropped(energy.cpu()), basis.detach(), matrix.detach())


class WeightedBasis(NamedTuple):
    """Of matrix · moment^½ the left singular vectors ``basis`` (…, rows, r) and squared singular values ``energy`` (…, r).

    Descending; ``retried`` says that a decomposition did not converge at first.
    """

    basis: Tensor
    energy: Tensor
    retried: bool


def weighted_basis(matrix: Tensor, moment: Tensor) -> WeightedBasis:
    """The basis of ``matrix`` (…, rows, columns) weighted by ``moment`` (…, columns, columns).

    Projecting the matrix on the first of its vectors loses least of E‖matrix · x‖², x having this second moment: no root
    and no inverse is taken, so directions without data do no harm.
    """
    rows, columns = matrix.shape[-2:]
    rank = min(rows, columns)
    precise = matrix.double()
    moment = moment.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    floor = (_FLOOR * mean + torch.finfo(torch.float32).tiny)[..., None, None]
    moment = moment + floor * torch.eye(columns, dtype=moment.dtype, device=moment.device)
    if rows <= columns:
        energy, basis, retried = _eigh(precise @ moment @ precise.mT)
        energy, basis = energy.flip(-1), basis.flip(-1)
    else:
        # The smaller side's eigenvectors, carried over; QR keeps those of tiny singular values orthonormal.
        root, root_retried = _root(moment, floor)
        weighted = precise @ root
        energy, right, retried = _eigh(weighted.mT @ weighted)
        energy, retried = energy.flip(-1), retried or root_retried
        basis, _ = torch.linalg.qr(weighted @ right.flip(-1))
    return WeightedBasis(basis[..., :rank].to(matrix), energy[..., :rank].clamp_min(0), retried)


def _root(moment: Tensor, floor: Tensor) -> tuple[Tensor, bool]:
    """A root R of R Rᵀ = ``moment``, whose eigenvalues are at least ``floor`` but for rounding, and if it was retried.

    Sums of float32 numbers round by a share of the largest eigenvalue, which is many times the mean where inputs are alike:
    as much as leaves others below zero.
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    if not failed.any():
        return root, False
    values, vectors, retried = _eigh(moment)
    return vectors * values.clamp_min(floor.squeeze(-1)).sqrt().unsqueeze(-2), retried


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix (…, n, n) of float64 without large negative ones.

    Where that does not converge, LAPACK's SVD on the CPU is taken, which is the same for such a matrix, and True returned.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
        left, _, _ = torch.linalg.svd(matrix.cpu())
        vectors = left.flip(-1).to(matrix)
        values = (vectors * (matrix @ vectors)).sum(-2)  # with their signs, which singular values have lost
        return values, vectors, True
    return values, vectors, False


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with each of the r channels between both factors at the same scale on either side."""
    tiny = torch.finfo(left.dtype).tiny
    before, after = left.norm(dim=-2), right.norm(dim=-1)
    scale = (after.clamp_min(tiny) / before.clamp_min(tiny)).sqrt()
    scale = torch.where((before > 0) & (after > 0), scale, torch.ones_like(scale))
    return left * scale.unsqueeze(-2), right / scale.unsqueeze(-1)


def _share_dropped(energy: Tensor) -> Tensor:
    """Share lost when the first k of r values are kept, for k = 0 … r: (r + 1,), descending to 0."""
    tail = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return tail / tail[0] if tail[0] > 0 else torch.zeros_like(tail)
