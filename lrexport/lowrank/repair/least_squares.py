"""The pair of a given rank that fits target outputs best, by least squares.

Indices: g group, o output channel, c column (input channel and tap of the first half), s tap of the second half, r rank. A
pair's kernel is Σ_r second[g,o,s,r] · first[g,r,c]; with one tap s it is a matrix of rank r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrexport.lowrank.factors.truncation import weighted_basis

# Strength of the pull towards the dense kernel, relative to the mean second moment; it decides what samples leave open.
RIDGE = 1e-3
# Share of the inputs' mean square below which variation is rounding, and must not move the kernel.
_ROUNDING = 1e-10
_ROUNDS = 2  # of refitting the first half, then the second; a third changes ResNet-20 by less than 0.3 points
_STEPS = 15  # of conjugate gradients for a first half
_SOLVED = 1e-28  # share of the squared residual that remains at float64's precision
_CHUNK = 8192  # samples summed at a time, so that no centred copy of all samples is needed


def fit_pair(patches: Tensor, targets: Tensor, dense: Tensor, rank: int, centred: bool = False) -> tuple[Tensor, Tensor]:
    """Left (g, o·s, r) and right (g, r, c) of the pair that best maps ``patches`` (g, n, s, c) to ``targets`` (g, n, o).

    ``dense`` (g, o·s, c) is the matrix that the fit is pulled to where the data leaves it open. ``centred`` fits the
    deviations of both from their means. It starts from the best kernel of any rank, truncated with the patches as weights;
    with one tap this is the optimum (reduced-rank regression). Otherwise the halves are then optimised in turns. Computed
    in float64.
    """
    taps = patches.shape[2]
    moment, cross = _statistics(patches, targets, dense.unflatten(1, (-1, taps)), centred)
    # The best kernel of any rank, by the normal equations.
    best = torch.linalg.solve(moment.flatten(3, 4).flatten(1, 2), cross.flatten(2).mT).mT
    matrix = best.unflatten(2, (-1, taps)).transpose(2, 3).flatten(1, 2)
    weighted = weighted_basis(matrix, torch.einsum("gcsds->gcd", moment))
    second = weighted.basis[..., :rank]
    first = second.mT @ matrix
    if taps > 1:
        for _ in range(_ROUNDS):
            first = _fit_first(moment, cross, first, second.unflatten(1, (-1, taps)))
            second = _fit_second(moment, cross, first)
    return second, first


def _statistics(patches: Tensor, targets: Tensor, dense: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """E[x xᵀ] (g, c, s, c, s) and E[y xᵀ] (g, o, c, s), with the pull to ``dense`` (g, o, s, c)."""
    count, taps, columns = patches.shape[1:]
    flat = patches.flatten(2)
    # Means are subtracted from samples, not from moments, where rounding would outweigh inputs that hardly vary.
    means = [_mean(side) if centred else side.new_zeros(()) for side in (flat, targets)]
    moment = flat.new_zeros(len(flat), taps * columns, taps * columns, dtype=torch.float64)
    cross = flat.new_zeros(len(flat), targets.shape[2], taps * columns, dtype=torch.float64)
    for samples, outputs in zip(flat.split(_CHUNK, 1), targets.split(_CHUNK, 1), strict=True):
        samples = samples - means[0]
        moment += samples.mT @ samples
        cross += (outputs - means[1]).mT @ samples
    moment, cross = moment.div_(count), cross.div_(count)
    square = torch.linalg.vector_norm(flat, dim=(1, 2)).double().square() / flat[0].numel()
    pull = RIDGE * moment.diagonal(dim1=-2, dim2=-1).mean(-1) + _ROUNDING * square + torch.finfo(torch.float32).tiny
    moment.diagonal(dim1=-2, dim2=-1).add_(pull.unsqueeze(-1))
    cross += pull[:, None, None] * dense.flatten(2).double()
    # Columns before taps, as in the sums; permuting the small moments is cheaper than permuting the many patches.
    by_taps = moment.unflatten(2, (taps, columns)).unflatten(1, (taps, columns))
    return by_taps.permute(0, 2, 1, 4, 3).contiguous(), cross.unflatten(2, (taps, columns)).transpose(2, 3).contiguous()


def _mean(samples: Tensor) -> Tensor:
    """The mean over samples, (g, n, …) → (g, 1, …); exact for equal samples."""
    return samples.mean(1, keepdim=True, dtype=torch.float64).to(samples)


def _fit_first(moment: Tensor, cross: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The best first half (g, r, c) for the second half (g, o, s, r), by conjugate gradients from ``first``."""
    between = torch.einsum("gosr,gotq->grsqt", second, second)

    def normal(value: Tensor) -> Tensor:
        spread = torch.einsum("grsqt,gqd->grsdt", between, value)
        return torch.einsum("gcsdt,grsdt->grc", moment, spread)

    residual = torch.einsum("gocs,gosr->grc", cross, second) - normal(first)
    direction, size = residual, residual.square().sum()
    solved = _SOLVED * float(size)
    for _ in range(_STEPS):
        if size <= solved:
            break
        moved = normal(direction)
        step = size / (direction * moved).sum()
        first, residual = first + step * direction, residual - step * moved
        size, before = residual.square().sum(), size
        direction = residual + size / before * direction
    return first


def _fit_second(moment: Tensor, cross: Tensor, first: Tensor) -> Tensor:
    """The best second half (g, o·s, r) for the first half (g, r, c)."""
    half = torch.einsum("grc,gcsdt->grsdt", first, moment)
    inner = torch.einsum("grsdt,gqd->grsqt", half, first).flatten(3, 4).flatten(1, 2)
    right_side = torch.einsum("gocs,grc->gors", cross, first).flatten(2)
    # If the first half has a lower rank than r, this is the solution of least norm.
    solved = torch.linalg.lstsq(inner, right_side.mT, driver="gelsd" if inner.device.type == "cpu" else None).solution.mT
    return solved.unflatten(2, (first.shape[1], -1)).transpose(2, 3).flatten(1, 2)
