"""Comparison of two networks' outputs, output by output and channel by channel, each relative to its own scale.

The largest value of a tensor is not the scale of all its parts: a detector's head may hold boxes in pixels next to scores
from 0 to 1. The axis of the channels is unknown, so each slice along every axis except the first is compared, over all
inputs together: a channel that happens to be near 0 for one input is scaled by its values for the others.

Rounding errors of float32 are allowed: if values cancel out, a slice near 0 has the rounding errors of the large numbers
that it is computed from. They are measured on the network, slice by slice (:data:`Rounding`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lrexport.errors import InputError

# float32 through different kernels: largest difference relative to the largest value.
RELATIVE_TOLERANCE = 1e-4
# A slice may differ by this many times its measured rounding error: the largest of many normally distributed errors can be
# that far above a single measurement.
_ROUNDINGS = 20.0
# The same for a whole output, whose largest error is measured over many values. Both sides have errors, so at least 2.
_ROUNDINGS_OF_ALL = 4.0
# Share of the largest value of an output below which a whole slice is nothing to float32, such as a state after a gate that
# is shut: runtimes round it to 0, or to something else.
_NOTHING = float(np.finfo(np.float32).eps) ** 2
# A slice of few values may be exact by chance: its error counts as at least this quantile of the others.
_EXACT_BY_CHANCE = 0.25

Array = npt.NDArray[np.float64]
# Measures rounding errors of one output, |less exact − more exact|, for some inputs; called only if they matter.
Rounding = Callable[[], Sequence[Array]]


@dataclass(frozen=True)
class ComparedOutputs:
    """One output for one input: the expected and the actual values."""

    where: str
    expected: Array
    actual: Array

    @property
    def difference(self) -> Array:
        """|actual − expected|; 0 if both are NaN or the same infinity, infinite if only one is."""
        with np.errstate(invalid="ignore"):
            apart = np.abs(self.actual - self.expected)
        same = (self.actual == self.expected) | (np.isnan(self.actual) & np.isnan(self.expected))
        return np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))


@dataclass(frozen=True)
class Rows:
    """Rows that a network chose by their values: how many both sides returned, of all that either did.

    ``of`` names the modules whose outputs it chose from.
    """

    same: int
    all: int
    of: tuple[str, ...]

    @property
    def apart(self) -> float:
        """The share that only one side returned."""
        return 1 - self.same / self.all if self.all else 0.0

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.same + other.same, self.all + other.all, self.of)


@dataclass(frozen=True)
class Agreement:
    """The largest difference relative to the largest value of its output, and the input with it.

    If a network chooses ``rows`` by values, as detectors do, the difference is that of what it chooses from.
    """

    relative_error: float
    where: str
    rows: Rows | None = None

    def worst(self, other: Agreement) -> Agreement:
        worse = self if self.relative_error >= other.relative_error else other
        both = [each.rows for each in (self, other) if each.rows is not None]
        return replace(worse, rows=max(both, key=lambda rows: rows.apart, default=None))


@dataclass(frozen=True)
class Terms:
    """Names of the compared networks, and tolerances.

    ``tolerance`` is relative to the largest value, of the whole output and of each slice; ``step`` is a difference allowed
    everywhere, relative to the largest value of the output; ``lenient`` is for extreme inputs: the whole output may differ
    by as many times its rounding errors as a slice, and its difference is not reported.
    """

    actual: str
    expected: str
    tolerance: float = RELATIVE_TOLERANCE
    step: float = 0.0
    lenient: bool = False


def check_agreement(pairs: Sequence[ComparedOutputs], rounding: Rounding, terms: Terms, output: str = "") -> Agreement:
    """Compare one output for several inputs. Raises InputError with the largest difference and its place.

    ``output`` is its name if the network has several.
    """
    errors: list[Sequence[Array]] = []  # measured once

    def measured(shape: tuple[int, ...]) -> list[Array]:
        if not errors:
            errors.append(rounding())
        return [error for error in errors[0] if error.shape[1:] == shape]

    for pair in pairs:
        if pair.actual.shape != pair.expected.shape:
            shapes = f"{pair.actual.shape} on {pair.where}, {terms.expected} {pair.expected.shape}"
            raise InputError(f"{terms.actual} returns {f'{output!r} of ' if output else ''}shape {shapes}")
    worst = Agreement(0.0, "nowhere")
    for pair in pairs:
        worst = worst.worst(_check_whole(pair, measured, terms, output))
    alike: dict[tuple[int, ...], list[ComparedOutputs]] = defaultdict(list)
    for pair in pairs:
        alike[pair.expected.shape[1:]].append(pair)
    for shape, group in alike.items():
        for axis in range(1, len(shape) + 1):
            _check_slices(group, axis, partial(measured, shape), terms, output)
    return worst


def _check_whole(
    pair: ComparedOutputs, measured: Callable[[tuple[int, ...]], list[Array]], terms: Terms, output: str
) -> Agreement:
    if not pair.expected.size:
        return Agreement(0.0, pair.where)
    difference = pair.difference
    scale = max(float(_size(pair.expected).max()), float(np.finfo(np.float32).tiny))
    place = np.unravel_index(int(difference.argmax()), difference.shape)
    relative = float(difference[place]) / scale
    allowed = terms.tolerance
    if allowed < relative < np.inf:
        rounding = max((float(error.max()) for error in measured(pair.expected.shape[1:])), default=0.0)
        allowed += (_ROUNDINGS if terms.lenient else _ROUNDINGS_OF_ALL) * rounding / scale
    if relative > allowed:
        raise InputError(
            f"{terms.actual} differs from {terms.expected} by {relative:.2g} of the largest output on {pair.where}, "
            f"{_at(pair, place, output)}",
            f"At most {allowed:.2g} is allowed. No files were written.",
        )
    return Agreement(0.0 if terms.lenient else relative, pair.where)


def _check_slices(
    pairs: list[ComparedOutputs], axis: int, measured: Callable[[], list[Array]], terms: Terms, output: str
) -> None:
    """Compare every slice along ``axis``, relative to its largest value over all inputs. Raises InputError."""
    if not all(pair.expected.size for pair in pairs):
        return
    scales = np.max([_largest(_size(pair.expected), axis) for pair in pairs], axis=0)
    differences = np.max([_largest(pair.difference, axis) for pair in pairs], axis=0)
    allowed = terms.tolerance * scales + max(terms.step, _NOTHING) * scales.max()
    if (differences <= allowed).all():
        return
    errors = measured()
    if errors:
        noise = np.max([_largest(error, axis) for error in errors], axis=0)
        allowed = allowed + _ROUNDINGS * np.maximum(noise, np.quantile(noise, _EXACT_BY_CHANCE, method="lower"))
    over = np.flatnonzero(differences > allowed)
    if not len(over):
        return
    index = int(over[np.argmax(differences[over] / np.maximum(allowed[over], np.finfo(np.float64).tiny))])
    pair = max(pairs, key=lambda pair: _largest(pair.difference, axis)[index])
    slices = np.moveaxis(pair.difference, axis, 0)[index]
    rest = [int(part) for part in np.unravel_index(int(slices.argmax()), slices.shape)]
    place = [*rest[:axis], index, *rest[axis:]]
    raise InputError(
        f"{terms.actual} differs from {terms.expected} by {differences[index]:.2g} in slice {index} of axis {axis}, "
        f"whose largest value is {scales[index]:.3g}, on {pair.where}, {_at(pair, place, output)}",
        f"At most {allowed[index]:.2g} is allowed: {terms.tolerance:g} of the slice's largest value, plus rounding errors. "
        "No files were written.",
    )


def _size(values: Array) -> Array:
    """Absolute values; 0 for NaN and infinity."""
    return np.where(np.isfinite(values), np.abs(values), 0.0)


def _largest(values: Array, axis: int) -> Array:
    """The largest value of each slice along ``axis``."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    return np.asarray(values.max(axis=others))


def _at(pair: ComparedOutputs, place: Sequence[Any], output: str) -> str:
    index = tuple(int(part) for part in place)
    named = f"output {output!r} " if output else "output "
    return f"at {named}{index}: {pair.actual[index]:.6g} instead of {pair.expected[index]:.6g}"
