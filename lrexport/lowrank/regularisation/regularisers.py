"""Regularisers of SVD training, Yang et al. 2020 (arXiv 2004.09031), equations 1 to 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lrexport.errors import UsageError
from lrexport.lowrank.factors.arguments import check_svd
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.svd_form import factors

Sparsity = Literal["hoyer", "l1", "none"]


class _GramDefect(torch.autograd.Function):
    """‖MᵀM − I‖²_F of M (n, r), summed over leading axes of (…, n, r).

    Its gradient 4·M·(MᵀM − I) takes one product; autograd would need two.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        gram = matrix.mT @ matrix
        gram.diagonal(dim1=-2, dim2=-1).sub_(1)
        ctx.save_for_backward(matrix, gram)
        return gram.square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        matrix, gram = ctx.saved_tensors
        return (matrix @ gram).mul_(4 * gradient)


def orthogonality(left: Tensor, right: Tensor) -> Tensor:
    """Equation 1: (‖UᵀU − I‖²_F + ‖VᵀV − I‖²_F) / r² for U (rows, r) and V (columns, r).

    Every group of a grouped layer, U (g, rows, r) and V (g, columns, r), counts like a separate layer.
    """
    return _defect(left) + _defect(right)


def _defect(side: Tensor) -> Tensor:
    """One side's part of equation 1, ‖MᵀM − I‖²_F / r² of M (…, rows, r), summed over leading axes."""
    with torch.autocast(side.device.type, enabled=False):  # MᵀM − I is too small a difference for bfloat16
        defect: Tensor = _GramDefect.apply(side) / side.shape[-1] ** 2
    return defect


def hoyer(singular: Tensor) -> Tensor:
    """Equation 2: ‖s‖₁ / ‖s‖₂ of s (r,), from 1 (one value) to √r (all equal); summed over leading axes of (…, r)."""
    return _hoyer(singular).sum()


def _hoyer(singular: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(singular, dim=-1).clamp_min(torch.finfo(singular.dtype).tiny)
    return singular.abs().sum(-1) / length


def l1(singular: Tensor) -> Tensor:
    """Σ|s|."""
    return _l1(singular).sum()


def _l1(singular: Tensor) -> Tensor:
    return singular.abs().sum(-1)


_SPARSITY = {"hoyer": _hoyer, "l1": _l1}  # (…, r) → (…)


def losses(
    svd: SVDNetwork,
    orthogonality_strength: float = 1.0,
    sparsity_strength: float | Tensor = 0.0,
    sparsity: Sparsity = "hoyer",
) -> Tensor:
    """The terms that equation 3 adds to the training loss: λ_o Σ orthogonality + Σ λ_s · sparsity over the layers, a scalar.

    λ_s is one number for all layers, or (layers,) in the order of ``svd.layers``. Raises UsageError for an unknown kind of
    sparsity.
    """
    check_svd(svd)
    if sparsity not in (*_SPARSITY, "none"):
        raise UsageError(f"unknown sparsity {sparsity!r}", f"Known: {', '.join(_SPARSITY)}, none.")
    triples = [factors(svd.network.get_submodule(name)) for name in svd.layers]
    parts: list[Tensor] = []
    if orthogonality_strength:
        sides = [side for left, _, right in triples for side in (left, right)]
        parts += [orthogonality_strength * _defect(alike) for alike, _ in _batches(sides)]
    if triples and sparsity != "none" and (isinstance(sparsity_strength, Tensor) or sparsity_strength):
        batches = _batches([singular for _, singular, _ in triples])
        penalties = torch.cat([_SPARSITY[sparsity](alike).reshape(len(alike), -1).sum(1) for alike, _ in batches])
        if isinstance(sparsity_strength, Tensor):
            sparsity_strength = sparsity_strength[[number for _, numbers in batches for number in numbers]]
        parts.append((sparsity_strength * penalties).sum())
    return torch.stack(parts).sum() if parts else torch.zeros(())


class ExtraLoss(nn.Module):
    """A term of the training loss that needs no input."""

    def before_step(self) -> None:
        """Called before every training step."""


class Regularisers(ExtraLoss):
    """:func:`losses` of a network, with a λ_s for each layer: the buffer ``strengths`` (layers,), which may be steered.

    Checkpoints contain it only if it is ``steered``; a fixed λ_s is taken from the command, even when it changes on resume.
    """

    strengths: Tensor

    def __init__(
        self,
        svd: SVDNetwork,
        orthogonality_strength: float,
        sparsity_strength: float,
        sparsity: Sparsity = "hoyer",
        steered: bool = False,
    ) -> None:
        super().__init__()
        self.svd, self.orthogonality_strength = svd, orthogonality_strength
        self.sparsity: Sparsity = sparsity if sparsity_strength else "none"
        self.register_buffer("strengths", torch.full((len(svd.layers),), sparsity_strength), persistent=steered)

    def forward(self) -> Tensor:
        return losses(self.svd, self.orthogonality_strength, self.strengths, self.sparsity)


def _batches(tensors: Sequence[Tensor]) -> list[tuple[Tensor, list[int]]]:
    """Tensors of equal shape, stacked, with their indices; fewer operators make training steps faster."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, tensor in enumerate(tensors):
        by_shape.setdefault(tuple(tensor.shape), []).append(number)
    return [(torch.stack([tensors[number] for number in numbers]), numbers) for numbers in by_shape.values()]
