"""From a network in SVD form to the folded one: what a command's options make of goals, repair, scores and times."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lrexport.config.compression import CompressConfig
from lrexport.config.goals import Energy, FromPlan, Latency
from lrexport.data.images import Splits
from lrexport.data.unlabelled import Images
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import Moments, Schemes, every_scheme_of, input_moments, own_schemes_of
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection import solve
from lrexport.lowrank.selection.from_plan import schemes_in
from lrexport.lowrank.selection.problem import Problem
from lrexport.plan import Choice, PlannedLatency
from lrexport.tasks.classification import NotANumber, score
from lrexport.training.engine import to_fast_layout
from lrexport.workflow.repair import BATCH, Repair
from lrexport.workflow.target_speed import Speed


def schemes_considered(svd: SVDNetwork, config: CompressConfig) -> Schemes:
    """By layer. Which scheme is fastest only the target knows, so a goal of latency considers every one."""
    every = config.train.scheme == "auto" or isinstance(config.goal, Latency)
    return every_scheme_of(svd) if every else own_schemes_of(svd)


def written_bytes(network: nn.Module, input_shape: tuple[int, ...]) -> int:
    """The size of a network's ONNX file. Raises what exporting raises."""
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(network, Path(folder) / "model.onnx", input_shape).bytes


@dataclass(frozen=True)
class Pruning:
    """What ranks are chosen and pairs repaired with: a network in SVD form, choices, and data where there is any.

    ``device`` must have float64. ``choices`` are those of the goal's plan, where it is one. ``speed`` is what the target
    says of the dense network, where speed matters.
    """

    svd: SVDNetwork
    config: CompressConfig
    input_shape: tuple[int, ...]
    splits: Splits | None
    device: torch.device
    choices: Mapping[str, Choice] | None = None
    speed: Speed | None = None

    def select(self) -> Selection:
        """The plan for the configuration's goal.

        Raises UsageError for a goal out of reach, with the least that can be reached, and for one that needs data.
        """
        return solve.choose(self.config.goal, self._problem(self._moments()))

    def predict(self) -> Selection:
        """The plan for the goal as the target's table predicts it, with nothing measured. Raises as :meth:`select`."""
        return solve.predict(self.config.goal, self._problem(self._moments()))

    def even_ranks(self) -> dict[str, int]:
        """Of each layer what one e for all leaves within the goal. Raises as :meth:`select`."""
        return solve.even_ranks(self.config.goal, self._problem())

    def fold(self, selection: Selection) -> tuple[nn.Module, dict[str, float]]:
        """The folded network, repaired where there is data; and its held-out top-1 as folded and after each repair."""
        network = fold(self.svd, selection)
        if self.splits is None:
            return network, {}
        to_fast_layout(network.to(self.device), self.input_shape)
        config, images = self.config, Images(self.splits.train, self.device, self.config.train.seed)
        repair = Repair(
            self.svd, self.input_shape, images, config.reconstruct, config.calibration_images, config.batchnorm_images
        )
        return network, repair.apply(network, selection, self._top1)

    def _problem(self, moments: Moments | None = None) -> Problem:
        self.svd.network.to(self.device)
        speed = self.speed
        return Problem(
            self.svd,
            self.config.rule,
            moments,
            self._schemes(),
            speed.latency if speed is not None else None,
            self.choices,
            self._source,
            written_bytes=lambda network: written_bytes(network, self.input_shape),
            heldout_top1=self._heldout_top1 if self.splits is not None else None,
            confirm=self._confirm if speed is not None else None,
        )

    @property
    def _source(self) -> str:
        return self.config.goal.source if isinstance(self.config.goal, FromPlan) else "the plan"

    def _schemes(self) -> Schemes:
        if self.choices is not None:
            return schemes_in(self.svd, self.choices, self._source)
        return schemes_considered(self.svd, self.config)

    def _moments(self) -> Moments | None:
        if self.splits is None or not self.config.weighting or isinstance(self.config.goal, Energy):
            return None  # equation 4 is about the kernel's own energy
        self.svd.network.to(self.device)
        images = Images(self.splits.train, self.device, self.config.train.seed).draw(self.config.calibration_images)
        return input_moments(self.svd, images.batches(BATCH), self._schemes()) if len(images) else None

    def _confirm(self, selection: Selection) -> PlannedLatency:
        assert self.speed is not None
        return self.speed.confirm(selection.plan, fold(self.svd, selection))

    def _top1(self, network: nn.Module) -> float:
        assert self.splits is not None
        return score(network, self.splits.heldout, self.device, "heldout").top1

    def _heldout_top1(self, selection: Selection | None) -> float:
        """Of the network that a selection makes, repaired; -∞ where it gives NaN. Of None the one in SVD form."""
        if selection is None:
            return self._top1(self.svd.network)
        try:
            return max(self.fold(selection)[1].values())
        except NotANumber:
            return -math.inf
