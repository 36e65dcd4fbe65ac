"""Truncation of each layer to each rank: the energy dropped, and the factors that drop least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrexport.errors import InputError, UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.exact_svd import smaller_basis
from lrexport.lowrank.factors.moments import Moments, Schemes, own_schemes_of
from lrexport.lowrank.factors.svd_form import form_of, is_attached, is_cut, redecompose, smaller_basis_by
from lrexport.lowrank.layers.kernels import KernelSpec, spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.plan import Pair, Plan, PlannedLatency, Scheme
from lrexport.torch_tools.memory import give_back

# Added to moments as a share of their mean: orders directions that never occur in the data by their energy, and keeps full
# rank exact.
_FLOOR = 1e-6
# Energy of float32 rounding as a share of a matrix's largest energy.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Truncation:
    """One layer by one scheme. ``energy_dropped[r]`` is the share of energy lost at rank r, (full rank + 1,), float64.

    The matrix at rank r is basis[:, :r] @ (basis[:, :r]ᵀ @ matrix). The columns of basis (rows, ranks) are the left
    singular vectors of the matrix, which is first multiplied from the right by the square root of its input's second
    moment, if known. ``is_right``: basis (columns, ranks) are the right ones, and the matrix at rank r is
    (matrix @ basis[:, :r]) @ basis[:, :r]ᵀ. With g > 1 groups both have a leading group axis. The basis has only ranks whose
    pair has fewer weights than the layer; higher ones are decomposed without the moment when they are needed. The matrix is
    made of ``weight`` by ``scheme`` whenever it is needed: those of all layers would take as much memory as the network.
    ``effect`` is the error of the network's outputs for a share of energy dropped here, if it was measured.
    """

    energy_dropped: Tensor
    basis: Tensor
    weight: Tensor
    scheme: Scheme
    spec: KernelSpec
    is_right: bool = False
    effect: float | None = None

    @property
    def matrix(self) -> Tensor:
        """The layer's matrix (rows, columns)."""
        return SCHEMES[self.scheme].matrix(self.weight, self.spec)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Left (rows, r) and right (r, columns), with the same scale in both, as with sqrt(|s|)."""
        matrix, basis, is_right = self.matrix, self.basis, self.is_right
        if rank > basis.shape[-1]:
            basis, _, is_right, _ = smaller_basis(matrix)
        kept = basis[..., :rank]
        return balanced(matrix @ kept, kept.mT) if is_right else balanced(kept, kept.mT @ matrix)


Truncations = Mapping[str, Mapping[Scheme, Truncation]]


@dataclass(frozen=True)
class Selection:
    """A plan, the truncations it was chosen from, and warnings for the user.

    ``threshold`` is e of equation 4 if one e gives the plan, else None. ``heldout_score`` is the score before pruning, if
    the goal was an accuracy drop; ``latency`` the plan's latency on the target, if it was measured.
    """

    plan: Plan
    threshold: float | None = None
    warnings: tuple[str, ...] = ()
    truncations: Truncations = field(default_factory=dict)
    heldout_score: float | None = None
    latency: PlannedLatency | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether anything is pruned."""
        return any(isinstance(layer, Pair) for layer in self.plan.values())


def plan_of(plan: object) -> Plan:
    """The plan of a Selection or of a mapping of layers. Raises UsageError for anything else."""
    if isinstance(plan, Selection):
        return plan.plan
    if not isinstance(plan, Mapping):
        raise UsageError(
            f"invalid plan: expected layers by name, not a {type(plan).__name__}", "lrexport.select returns a plan."
        )
    return plan if isinstance(plan, Plan) else Plan(plan)


def truncations(svd: SVDNetwork, moments: Moments | None = None, schemes: Schemes | None = None) -> Truncations:
    """Truncation of each layer by ``schemes``, by default that of its SVD form.

    First, U, s, V are replaced by the exact SVD of the composed kernels. Raises InputError naming the layer if a moment is
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
                f"the input of layer {name!r} is not finite, or too large to square in float32",
                "Check the weights of the layers before it, and the data.",
            )
        truncated[name] = {scheme: _truncate(module, scheme, weighting.get(scheme)) for scheme in schemes[name]}
        give_back()  # of the decomposition, several times the layer's size
    return truncated


@torch.no_grad()
def _truncate(module: Any, scheme: Scheme, moment: Tensor | None) -> Truncation:
    weight, spec, is_right = module.weight.detach(), spec_of(module), False
    if moment is not None:
        matrix = SCHEMES[scheme].matrix(weight, spec)
        basis, energy, retried = weighted_basis(matrix, moment.to(matrix))
        form_of(module).retried |= retried
    else:
        basis, singular, is_right, _ = smaller_basis_by(module, scheme)
        energy = singular.double().square()
    rows, columns = SCHEMES[scheme].matrix_shape(spec)
    basis = basis[..., : rows * columns // (rows + columns)].clone()  # a view would keep all of it
    if is_attached(module) and is_cut(module):  # energy beyond its rank is only rounding
        energy = torch.where(energy < _ROUNDING * energy.amax(-1, keepdim=True), 0, energy)
    energy = energy if energy.ndim == 1 else energy.sum(0)  # all groups have one rank, so their energies add up
    return Truncation(_share_dropped(energy.cpu()), basis.detach(), weight, scheme, spec, is_right)


class WeightedBasis(NamedTuple):
    """Left singular vectors ``basis`` (…, rows, r) and squared singular values ``energy`` (…, r) of matrix · moment^½.

    In descending order. ``retried``: a decomposition did not converge at first.
    """

    basis: Tensor
    energy: Tensor
    retried: bool


def weighted_basis(matrix: Tensor, moment: Tensor) -> WeightedBasis:
    """The basis of ``matrix`` (…, rows, columns) weighted by ``moment`` (…, columns, columns).

    Projecting the matrix onto the first of its vectors loses least of E‖matrix · x‖² for x with this second moment. No
    inverse is needed, so directions without data do no harm.
    """
    rows, columns = matrix.shape[-2:]
    rank = min(rows, columns)
    precise = matrix.double()
    moment = moment.to(torch.float64, copy=True)
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    floor = (_FLOOR * diagonal.mean(-1) + torch.finfo(torch.float32).tiny)[..., None, None]
    diagonal.add_(floor.squeeze(-1))
    if rows <= columns:
        weighted = precise @ moment
        del diagonal, moment  # several times the layer's size
        gram = weighted @ precise.mT
        del weighted, precise
        give_back()  # the decomposition takes four times the matrix
        energy, basis, retried = _eigh(gram)
        energy, basis = energy.flip(-1), basis.flip(-1)
    else:
        # From eigenvectors of the smaller side; QR keeps vectors of tiny singular values orthonormal.
        root, root_retried = _root(moment, floor)
        weighted = precise @ root
        energy, right, retried = _eigh(weighted.mT @ weighted)
        energy, retried = energy.flip(-1), retried or root_retried
        basis, _ = torch.linalg.qr(weighted @ right.flip(-1))
    return WeightedBasis(basis[..., :rank].to(matrix), energy[..., :rank].clamp_min(0), retried)


def _root(moment: Tensor, floor: Tensor) -> tuple[Tensor, bool]:
    """R with R Rᵀ = ``moment``, and whether it was retried.

    The eigenvalues of ``moment`` are at least ``floor``, except for rounding: sums in float32 round by a share of the
    largest eigenvalue. If inputs are similar, it is so large that others become negative.
    """
    root, failed = torch.linalg.cholesky_ex(moment)
    if not failed.any():
        return root, False
    values, vectors, retried = _eigh(moment)
    return vectors * values.clamp_min(floor.squeeze(-1)).sqrt().unsqueeze(-2), retried


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Eigenvalues, ascending, eigenvectors, and False for a float64 symmetric matrix (…, n, n) that is nearly semidefinite.

    If it does not converge, LAPACK's SVD on the CPU is used, which is the same for such a matrix, and True is returned.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
        left, _, _ = torch.linalg.svd(matrix.cpu())
        vectors = left.flip(-1).to(matrix)
        values = (vectors * (matrix @ vectors)).sum(-2)  # with their signs, which singular values lack
        return values, vectors, True
    return values, vectors, False


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with each of the r channels between the factors at the same scale in both."""
    tiny = torch.finfo(left.dtype).tiny
    before, after = left.norm(dim=-2), right.norm(dim=-1)
    scale = (after.clamp_min(tiny) / before.clamp_min(tiny)).sqrt()
    scale = torch.where((before > 0) & (after > 0), scale, torch.ones_like(scale))
    return left * scale.unsqueeze(-2), right / scale.unsqueeze(-1)


def _share_dropped(energy: Tensor) -> Tensor:
    """The share lost if the first k of r values are kept, for k = 0 … r: (r + 1,), descending to 0."""
    tail = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return tail / tail[0] if tail[0] > 0 else torch.zeros_like(tail)
