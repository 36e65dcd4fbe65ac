"""Regularisers of SVD training, Yang et al. 2020 (arXiv 2004.09031), equations 1 to 3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lrexport.errors import UsageError
from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.svd_form import factors

Sparsity = Literal["hoyer", "l1", "none"]


class _GramDefect(torch.autograd.Function):
    """‖MᵀM − I‖²_F of M (n, r), summed over leading axes of (…, n, r).

    Its gradient 4·M·(MᵀM − I) is one product, autograd's two.
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

    Every group of a grouped layer, U (g, rows, r) and V (g, columns, r), counts like a layer of its own.
    """
    return _defect(left) + _defect(right)


def _defect(side: Tensor) -> Tensor:
    """One side's part of equation 1, ‖MᵀM − I‖²_F / r² of M (…, rows, r), summed over leading axes."""
    with torch.autocast(side.device.type, enabled=False):  # I − MᵀM is a small difference: not for bfloat16
        defect: Tensor = _GramDefect.apply(side) / side.shape[-1] ** 2
    return defect


def hoyer(singular: Tensor) -> Tensor:
    """Equation 2: ‖s‖₁ / ‖s‖₂ of s (r,), from 1 (one value left) to √r (all equal); summed over leading axes of (…, r)."""
    length = torch.linalg.vector_norm(singular, dim=-1).clamp_min(torch.finfo(singular.dtype).tiny)
    return (singular.abs().sum(-1) / length).sum()


def l1(singular: Tensor) -> Tensor:
    """Σ|s|."""
    return singular.abs().sum()


_SPARSITY = {"hoyer": hoyer, "l1": l1}


def losses(
    svd: SVDNetwork, orthogonality_strength: float = 1.0, sparsity_strength: float = 0.0, sparsity: Sparsity = "hoyer"
) -> Tensor:
    """λ_o Σ orthogonality + λ_s Σ sparsity over the layers: what equation 3 adds to the training loss. A scalar.

    Raises UsageError for an unknown kind of sparsity.
    """
    if sparsity not in (*_SPARSITY, "none"):
        raise UsageError(f"unknown sparsity {sparsity!r}", f"Known: {', '.join(_SPARSITY)}, none.")
    triples = [factors(svd.network.get_submodule(name)) for name in svd.layers]
    parts: list[Tensor] = []
    if orthogonality_strength:
        sides = _batches(side for left, _, right in triples for side in (left, right))
        parts += [orthogonality_strength * _defect(side) for side in sides]
    if sparsity_strength and sparsity != "none":
        values = _batches(singular for _, singular, _ in triples)
        parts += [sparsity_strength * _SPARSITY[sparsity](singular) for singular in values]
    return torch.stack(parts).sum() if parts else torch.zeros(())


def _batches(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Tensors of equal shapes as one, with an axis more: a network's layers are many and small, and alike.

    All terms are sums over leading axes, so that they stay what they were; what falls is the number of kernels a step.
    """
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for tensor in tensors:
        by_shape.setdefault(tuple(tensor.shape), []).append(tensor)
    for alike in by_shape.values():
        yield torch.stack(alike) if len(alike) > 1 else alike[0]
