"""How closely outputs follow those of the dense network: no labels are needed.

SQNR, the signal to quantisation-noise ratio, is 10·log10(Σ y² / Σ (y − ŷ)²) in dB over all values of all samples, for each
output by name. It is held within ±150 dB: float32 has no more digits, and equal outputs would have infinitely many. Outputs
with NaN or infinity have the least.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from torch import Tensor

from lrexport.errors import InputError
from lrexport.torch_tools.outputs import named_tensors

SQNR = "SQNR"  # dB, the mean over the outputs
AGREEMENT = "agreement"  # share of samples with the same top-1, the mean over outputs that are class scores
MOST_DB = 150.0


def is_class_scores(output: Tensor) -> bool:
    """Whether an output is taken for scores of classes: (B, K) with several classes."""
    return output.ndim == 2 and output.shape[1] > 1 and output.is_floating_point()


def followed(outputs: Any, dense: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The floating-point outputs of two networks by name, each with the dense network's.

    A network may return more in training mode: a tuple whose first item is the only output of eval mode, or further named
    ones. Raises InputError if an output of the dense network is missing or has another shape.
    """
    if isinstance(dense, Tensor) and isinstance(outputs, tuple | list) and outputs:
        outputs = outputs[0]
    mine = named_tensors(outputs)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, truth in named_tensors(dense).items():
        if not truth.is_floating_point():
            continue
        if name not in mine or mine[name].shape != truth.shape:
            what = f"shape {tuple(mine[name].shape)}" if name in mine else "nothing"
            raise InputError(
                f"the network returns {what} for {name!r}; expected shape {tuple(truth.shape)}, as the dense network",
                "Outputs that are to follow the dense network's must have the same names and shapes.",
            )
        pairs[name] = mine[name], truth
    if not pairs:
        raise InputError(
            "the dense network returns no floating-point tensor, so there is nothing to follow",
            "Its forward must return tensors: alone, or in tuples, lists, dicts or dataclasses.",
        )
    return pairs


class FidelityMeter:
    """Sums over batches; ``update`` takes the outputs of a network and the dense network's for the same inputs."""

    def __init__(self) -> None:
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._same: dict[str, int] = {}
        self._samples: dict[str, int] = {}

    def update(self, outputs: Any, targets: Any) -> None:
        """Add a batch. Raises InputError if the outputs do not have the same names and shapes."""
        for name, (mine, dense) in followed(outputs, targets).items():
            wide = dense.detach().cpu().double()  # Apple's GPUs have no float64
            self._signal[name] = self._signal.get(name, 0.0) + float(wide.square().sum())
            error = mine.detach().cpu().double() - wide
            self._noise[name] = self._noise.get(name, 0.0) + float(error.square().sum())
            if is_class_scores(dense):
                same = int((mine.argmax(1) == dense.argmax(1)).sum())
                self._same[name] = self._same.get(name, 0) + same
                self._samples[name] = self._samples.get(name, 0) + len(dense)

    def compute(self) -> dict[str, float]:
        """SQNR, the agreement if an output is class scores, and the SQNR of each of several outputs as ``SQNR NAME``."""
        each = {name: decibels(signal, self._noise[name]) for name, signal in self._signal.items()}
        values = {SQNR: fmean(each.values())}
        if self._samples:
            values[AGREEMENT] = fmean(self._same[name] / count for name, count in self._samples.items())
        if len(each) > 1:
            values |= {f"{SQNR} {name}": value for name, value in each.items()}
        return values


def decibels(signal: float, noise: float) -> float:
    """10·log10 of the ratio of two sums of squares, within ±150 dB; the least if one is not finite."""
    if not noise:
        return MOST_DB
    if not signal or not math.isfinite(signal) or not math.isfinite(noise):
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * (math.log10(signal) - math.log10(noise))))
