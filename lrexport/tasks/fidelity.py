"""How closely outputs follow those of the dense network: no labels are needed.

SQNR, the signal to quantisation-noise ratio, is 10·log10(Σ y² / Σ (y − ŷ)²) in dB over all values of all samples, for each
output by name. It is held within ±80 dB: beyond it the rounding of runtimes decides, and equal outputs would have infinitely
many. Outputs with NaN or infinity have the least.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrexport.config.task_names import FIDELITY
from lrexport.errors import InputError
from lrexport.lowrank.repair.observed import comparable
from lrexport.metric import DECIBEL, SHARE, Metric
from lrexport.tasks.distillation import followed, following, is_class_scores
from lrexport.tasks.task import CallNetwork, Meter, Task
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.copying import copy_network
from lrexport.torch_tools.memory_layout import run
from lrexport.torch_tools.modes import eval_mode

if TYPE_CHECKING:
    from lrexport.data.images import ImageData

SQNR = "SQNR"  # dB, the mean over the outputs
AGREEMENT = "agreement"  # share of samples with the same top-1, the mean over outputs that are class scores
MOST_DB = 80.0
USUAL_DB = 10.0  # repaired pairs of a trained ResNet-20 keep 9.6 dB at a half, 7.0 dB at a third of the MACs


class Fidelity(Task):
    """Inputs without targets: a network follows the outputs of ``dense``, of which it keeps a copy."""

    name = FIDELITY
    metric_infos: tuple[Metric, ...] = (Metric(SQNR, DECIBEL),)
    score_batch = 50
    follows_dense = True

    def __init__(self, dense: nn.Module | None = None) -> None:
        self.dense = dense

    def with_dense(self, dense: nn.Module) -> Fidelity:
        return Fidelity(copy_network(dense).eval().requires_grad_(False))

    @torch.no_grad()
    def targets_of(self, batch: Batch, targets: Any) -> Any:
        """The outputs of the dense network."""
        assert self.dense is not None
        dense = self.dense.to(batch.tensors[0].device)
        with eval_mode(dense):
            return run(dense, batch.clone())

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return following(outputs, targets)

    def training_loss(self, call_network: CallNetwork, batch: Batch, targets: Any) -> tuple[Tensor, Any]:
        """The loss against the dense network. There are no outputs to distil from a teacher: this is distillation."""
        return self.loss(call_network(batch), self.targets_of(batch, targets)), None

    def meter(self) -> Meter:
        return FidelityMeter()

    def check_output(self, output: Any, data: ImageData) -> None:
        """The metrics follow from the outputs: agreement for class scores, and for several their own SQNR."""
        pairs = followed(output, output)
        more = [Metric(AGREEMENT, SHARE)] if any(is_class_scores(mine) for mine, _ in pairs.values()) else []
        more += [Metric(f"{SQNR} {name}", DECIBEL) for name in pairs] if len(pairs) > 1 else []
        self.metric_infos = (Metric(SQNR, DECIBEL), *more)

    def fits(self, data: ImageData) -> bool:
        """Whether outputs have the same shape for all inputs; a detector's boxes are as many as it finds."""
        assert self.dense is not None
        device = next((parameter.device for parameter in self.dense.parameters()), torch.device("cpu"))
        batch, _ = next(iter(data.train.batches(3, device)))
        try:
            return comparable((self.dense,), batch.filled(3)) == ("",)
        except InputError:
            return False


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
    """10·log10 of the ratio of two sums of squares, within ±80 dB; the least if one is not finite."""
    if not noise:
        return MOST_DB
    if not signal or not math.isfinite(signal) or not math.isfinite(noise):
        return -MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * (math.log10(signal) - math.log10(noise))))
