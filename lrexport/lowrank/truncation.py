"""Every layer at every rank: what truncation drops, and the factors that drop least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.kernels import spec_of
from lrexport.lowrank.moments import Moments, Schemes, own_schemes_of
from lrexport.lowrank.schemes import SCHEMES
from lrexport.lowrank.svd_form import factors_by, is_attached, is_cut, redecompose
from lrexport.record import Scheme

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


def truncations(svd: SVDNetwork, moments: Moments | None = None, schemes: Schemes | None = None) -> Truncations:
    """Truncation of each layer by ``schemes``, by default the one of its SVD form.

    U, s, V are replaced by the exact SVD of the composed kernels first.
    """
    schemes = schemes or own_schemes_of(svd)
    found: dict[str, dict[Scheme, Truncation]] = {}
    for name in svd.layers:
        module: Any = svd.network.get_submodule(name)
        redecompose(module)
        weighting = (moments or {}).get(name, {})
        found[name] = {scheme: _truncate(module, scheme, weighting.get(scheme)) for scheme in schemes[name]}
    return found


@torch.no_grad()
def _truncate(module: Any, scheme: Scheme, moment: Tensor | None) -> Truncation:
    matrix = SCHEMES[scheme].matrix(module.weight, spec_of(module))
    if moment is not None:
        basis, energy = weighted_basis(matrix, moment.to(matrix))
    else:
        basis, singular, _ = factors_by(module, scheme)
        energy = singular.double().square()
    if is_attached(module) and is_cut(module):  # what is left beyond its rank is rounding, which no rank is worth
        energy = torch.where(energy < _ROUNDING * energy.amax(-1, keepdim=True), 0, energy)
    energy = energy if energy.ndim == 1 else energy.sum(0)  # one rank for all groups: what they drop together
    return Truncation(_share_dropped(energy.cpu()), basis.detach(), matrix.detach())


def weighted_basis(matrix: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (…, rows, r) and squared singular values (…, r), descending, of matrix · moment^½.

    Projecting the matrix on the first of them loses least of E‖matrix · x‖², x having this second moment: no root and no
    inverse is taken, so directions without data do no harm.
    """
    rows, columns = matrix.shape[-2:]
    rank = min(rows, columns)
    precise = matrix.double()
    moment = moment.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    floor = (_FLOOR * mean + torch.finfo(torch.float32).tiny)[..., None, None]
    moment = moment + floor * torch.eye(columns, dtype=moment.dtype, device=moment.device)
    if rows <= columns:
        energy, basis = torch.linalg.eigh(precise @ moment @ precise.mT)
        energy, basis = energy.flip(-1), basis.flip(-1)
    else:
        # The smaller side's eigenvectors, carried over; QR keeps those of tiny singular values orthonormal.
        weighted = precise @ _root(moment, floor)
        energy, right = torch.linalg.eigh(weighted.mT @ weighted)
        energy = energy.flip(-1)
        basis, _ = torch.linalg.qr(weighted @ right.flip(-1))
    return basis[..., :rank].to(matrix), energy[..., :rank].clamp_min(0)


def _root(moment: Tensor, floor: Tensor) -> Tensor:
    """A root R of R Rᵀ = ``moment``, whose eigenvalues are at least ``floor`` but for rounding.

    Sums of float32 numbers round by a share of the largest eigenvalue, which is many times the mean where inputs are alike:
    as much as leaves others below zero.
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    if not failed.any():
        return root
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(floor.squeeze(-1)).sqrt().unsqueeze(-2)


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
