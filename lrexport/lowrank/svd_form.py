"""SVD form: a layer's weight composed from trainable U, s, V by torch's parametrisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrexport.lowrank.schemes import SCHEMES
from lrexport.record import Scheme

# LAPACK's factors of a 4608-row matrix are orthogonal to about 1e-6 in float32.
_ORTHOGONAL = 1e-5


class SVDForm(nn.Module):
    """weight = kernel(U · diag(|s|) · Vᵀ), U (rows, r), s (r,), V (columns, r) at full rank r = min(rows, columns).

    Composing the kernel and running one convolution is the same function of U, s, V as the two layers of Yang et al.
    2020 (section 3.1), with the same gradients, at a fraction of the time (benchmarks/step_time.py).
    """

    def __init__(self, scheme: Scheme, weight_shape: torch.Size) -> None:
        super().__init__()
        self.scheme = scheme
        self.weight_shape = weight_shape

    def forward(self, left: Tensor, singular: Tensor, right: Tensor) -> Tensor:
        matrix = (left * singular.abs()) @ right.T
        return SCHEMES[self.scheme].kernel(matrix, self.weight_shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return exact_svd(SCHEMES[self.scheme].matrix(weight))


def exact_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V with matrix = U diag(s) Vᵀ, s descending; retried in float64 on the CPU where LAPACK does not converge."""
    try:
        left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
        left, singular, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
        left, singular, right = (part.to(matrix) for part in (left, singular, right))
    return left, singular, right.mT.contiguous()


def attach(layer: Any, scheme: Scheme) -> None:
    """Put a layer's weight into SVD form, in place; the layer stays the Conv2d or Linear that it was."""
    parametrize.register_parametrization(layer, "weight", SVDForm(scheme, layer.weight.shape))


def factors(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The parameters U, s, V of a layer in SVD form."""
    held = layer.parametrizations.weight
    return held.original0, held.original1, held.original2


@torch.no_grad()
def redecompose(layer: nn.Module) -> None:
    """Replace U, s, V by the exact SVD of the kernel they compose, so that truncation is optimal (Eckart–Young)."""
    left, singular, right = factors(layer)
    if _is_exact(left, singular, right):
        return
    for parameter, exact in zip((left, singular, right), exact_svd((left * singular.abs()) @ right.T), strict=True):
        parameter.copy_(exact)


def _is_exact(left: Tensor, singular: Tensor, right: Tensor) -> bool:
    """Whether the factors are an SVD already, as before any training: two products instead of a decomposition."""
    if (singular < 0).any() or (singular.diff() > 0).any():
        return False
    eye = torch.eye(len(singular), device=left.device, dtype=left.dtype)
    return all(float((side.T @ side - eye).abs().max()) < _ORTHOGONAL for side in (left, right))


def detach(layer: Any) -> None:
    """Back to an ordinary weight, the composed one, in place."""
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    layer.weight = nn.Parameter(layer.weight.detach().contiguous())
