"""Exact singular value decompositions of matrices, in whole or only their singular values and one side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Vectors of singular values below this share of the largest need a QR: float64's rounding over its square is 1e-6.
_INDEPENDENT = 1e-5


class ExactSVD(NamedTuple):
    """matrix = left · diag(singular) · rightᵀ: left (…, rows, r), singular (…, r) descending, right (…, columns, r).

    ``retried``: it did not converge at first.
    """

    left: Tensor
    singular: Tensor
    right: Tensor
    retried: bool


def exact_svd(matrix: Tensor) -> ExactSVD:
    """SVD of a matrix (rows, columns) or a batch of matrices (…, rows, columns), in the matrix's precision.

    Float32 and lower precisions are decomposed in float64, with factors exact to the last bit of float32. LAPACK's float32
    SVD has errors of 2e-6, which the layers of a network amplify to ten times float32's rounding. If it does not converge,
    LAPACK's float64 SVD on the CPU is used.
    """
    retried = False
    try:
        if matrix.dtype == torch.float64:
            left, singular, right = _lapack_svd(matrix)
        else:
            left, singular, right = _gram_svd(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
        left, singular, right = _lapack_svd(matrix.double().cpu())
        retried = True
    return ExactSVD(left.to(matrix), singular.to(matrix), right.to(matrix).contiguous(), retried)


class SmallerBasis(NamedTuple):
    """``left`` of an :class:`ExactSVD`, or ``right`` if ``is_right``, whichever has fewer rows; without the other side."""

    basis: Tensor
    singular: Tensor
    is_right: bool
    retried: bool


def smaller_basis(matrix: Tensor) -> SmallerBasis:
    """The singular vectors of the shorter side of a matrix, as :func:`exact_svd` has them, in less memory and time."""
    rows, columns = matrix.shape[-2:]
    is_right = rows > columns
    if matrix.dtype != torch.float64:
        try:
            basis, singular = _gram_left(matrix.mT if is_right else matrix)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
            pass  # again below, where LAPACK's SVD follows
        else:
            return SmallerBasis(basis.to(matrix), singular.to(matrix), is_right, False)
    exact = exact_svd(matrix)
    return SmallerBasis(exact.right if is_right else exact.left, exact.singular, is_right, exact.retried)


def singular_values_of(matrix: Tensor) -> Tensor:
    """Singular values (…, r), descending, in a third of the time of :func:`smaller_basis`.

    Those of float32 and lower precisions are roots of eigenvalues in float64. Below 1e-7 of the largest they are rounding,
    as they are in the weights.
    """
    if matrix.dtype == torch.float64:
        return smaller_basis(matrix).singular
    precise = matrix.double()
    precise = precise.mT if precise.shape[-2] > precise.shape[-1] else precise
    gram = precise @ precise.mT
    del precise
    try:
        return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sqrt().to(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # absent from the stub
        return smaller_basis(matrix).singular


def _lapack_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, singular, right.mT


def _gram_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V in float64 from the eigenvectors of matrix · matrixᵀ, as fast as LAPACK's SVD in float32."""
    rows, columns = matrix.shape[-2:]
    if rows > columns:
        right, singular, left = _gram_svd(matrix.mT)
        return left, singular, right
    left, scaled = _eigenvectors(matrix)
    singular, order = _by_norm(scaled)
    left, scaled = (side.take_along_dim(order, dim=-1) for side in (left, scaled))
    right = scaled / singular.clamp_min(torch.finfo(singular.dtype).tiny).unsqueeze(-2)
    if bool((singular[..., -1] < _INDEPENDENT * singular[..., 0]).any() | (singular[..., 0] == 0).any()):
        # Vectors of tiny singular values are not orthogonal to the others yet.
        right, upper = torch.linalg.qr(right)
        backwards = upper.diagonal(dim1=-2, dim2=-1) < 0
        right = torch.where(backwards.unsqueeze(-2), -right, right)
    return left, singular, right


def _gram_left(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """U and s of :func:`_gram_svd` for a matrix with at most as many rows as columns."""
    left, scaled = _eigenvectors(matrix)
    singular, order = _by_norm(scaled)
    del scaled
    return left.take_along_dim(order, dim=-1), singular


def _eigenvectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors of matrix · matrixᵀ as columns, in float64, and matrixᵀ times these.

    The matrix is put into float64 twice, so that it is not there while the eigenvectors are computed, in 6 times its size.
    """
    precise = matrix.double()
    gram = precise @ precise.mT
    del precise
    _, left = torch.linalg.eigh(gram)
    del gram
    return left, matrix.double().mT @ left


def _by_norm(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values, descending, and the columns of ``scaled`` in their order, (…, 1, r).

    Norms are exact, whereas roots of eigenvalues lose half of their digits; their order can differ.
    """
    singular, order = scaled.norm(dim=-2).sort(dim=-1, descending=True, stable=True)
    return singular, order.unsqueeze(-2)
