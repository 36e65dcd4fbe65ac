"""From a network in SVD form to the folded one: ranks chosen for any goal, pairs refitted, statistics re-estimated."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport.config.compression import CompressConfig
from lrexport.data.images import ImageSet, Splits, draw
from lrexport.errors import UsageError
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import Moments, Schemes, every_scheme_of, input_moments, own_schemes_of
from lrexport.lowrank.factors.truncation import truncations
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.lowrank.selection.costs import Cost, plan_cost, whole_cost
from lrexport.lowrank.selection.from_plan import plan_from_choices, schemes_in
from lrexport.lowrank.selection.predicted_latency import NetworkLatency
from lrexport.lowrank.selection.select import Selection, at_threshold, first_true, select, smallest, within, within_latency
from lrexport.plan import Choice, Pair, PlannedLatency
from lrexport.tasks.classification import NotANumber, score
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from lrexport.torch_tools.tracing import largest_output
from lrexport.training.engine import to_fast_layout
from lrexport.units import format_bytes, format_ms
from lrexport.workflow.target_speed import Speed

_BATCH = 125  # images at a time where only sums are wanted
_BATCHNORM_BATCH = 250
_MOST_VALUES = 1 << 26  # of one layer's outputs for all images of a reconstruction, 256 MB
_GRID = 64  # steps of the line search for an accuracy drop
_SIZE_TRIES = 5
_LATENCY_TRIES = 5
_LATENCY_CLOSE = 0.03  # a network this much faster than asked is left at that


def considers_every_scheme(config: CompressConfig) -> bool:
    """Whether a layer may get another scheme than that of its SVD form: which one is fastest only the target knows."""
    return config.train.scheme == "auto" or config.goal.is_latency


def schemes_considered(svd: SVDNetwork, config: CompressConfig) -> Schemes:
    """By layer."""
    return every_scheme_of(svd) if considers_every_scheme(config) else own_schemes_of(svd)


@dataclass(frozen=True)
class Pruning:
    """What ranks are chosen and pairs repaired with: a network in SVD form, choices, and data where there is any.

    ``device`` must have float64. ``speed`` is what the target says of the dense network, where speed matters.
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
        self.svd.network.to(self.device)
        if self.speed is not None and self.config.goal.is_latency:
            return self._within_latency(self.speed, self._moments())
        selection = self._select(self._moments())
        if not selection.has_pairs:
            selection = replace(selection, warnings=(*selection.warnings, self._why_nothing(selection)))
        if self.speed is None:
            return selection
        return replace(selection, latency=self._confirm(self.speed, selection))

    def predict(self) -> Selection:
        """The plan for the goal as the target's table predicts it, with nothing measured. Raises as :meth:`select`."""
        self.svd.network.to(self.device)
        moments, goal = self._moments(), self.config.goal
        if self.speed is None or not goal.is_latency:
            return self._select(moments)
        found = truncations(self.svd, moments, self._schemes())
        return within_latency(self.svd, found, self.speed.latency, self.milliseconds(self.speed), self.config.rule)

    def even_ranks(self) -> dict[str, int]:
        """Of each layer what one e for all leaves within the goal by equation 4, in the scheme of its SVD form.

        A goal of latency is taken as the target's table predicts it. Layers that would stay dense are left out. Raises as
        :meth:`select`.
        """
        self.svd.network.to(self.device)
        goal = self.config.goal
        if self.speed is not None and goal.is_latency:
            found, budget = truncations(self.svd), self.milliseconds(self.speed)
            plan = within_latency(self.svd, found, self.speed.latency, budget, "threshold").plan
        else:
            plan = select(self.svd, macs=goal.macs, params=goal.params, rule="threshold", latency=self._latency).plan
        return {name: layer.rank for name, layer in plan.items() if isinstance(layer, Pair)}

    def milliseconds(self, speed: Speed) -> float:
        """The goal of latency on a target."""
        goal = self.config.goal
        return goal.latency_ms or (goal.latency or 0.0) * speed.latency.dense

    def _select(self, moments: Moments | None) -> Selection:
        goal = self.config.goal
        if self.choices is not None:
            return plan_from_choices(self.svd, self.choices, str(goal.plan), moments)
        if goal.size is not None:
            return self._within_bytes(goal.size, moments)
        if goal.accuracy_drop is not None:
            return self._within_drop(goal.accuracy_drop, moments)
        every = considers_every_scheme(self.config)
        options: dict[str, Any] = {"rule": self.config.rule, "moments": moments, "every_scheme": every}
        return select(self.svd, energy=goal.energy, macs=goal.macs, params=goal.params, latency=self._latency, **options)

    def _why_nothing(self, selection: Selection) -> str:
        """Of a plan without a pair what it would take to have one, where that is a threshold."""
        energy = self.config.goal.energy
        least = [
            float(truncation.energy_dropped[min(facts.full_rank, (layer.dense_macs - 1) // facts.macs_per_rank)])
            for name, layer in self.svd.layers.items()
            for scheme, truncation in selection.truncations.get(name, {}).items()
            for facts in [layer.schemes[scheme]]
        ]
        if energy is None or self.speed is not None or not least:
            return "nothing is pruned: every layer stays dense"
        enough = math.ceil(100 * min(least)) / 100  # percent, rounded to where a pair is
        return (
            f"nothing is pruned: with at most {energy:g} of a layer's energy dropped every pair costs more than its layer; "
            f"--energy {enough:g} prunes the first"
        )

    @property
    def _latency(self) -> NetworkLatency | None:
        return self.speed.latency if self.speed is not None else None

    def fold(self, selection: Selection) -> tuple[nn.Module, dict[str, float]]:
        """The folded network, repaired where there is data; and its held-out top-1 as folded and after each repair.

        A repair that does not help on the held-out images is taken back: a network that lost little is better left alone.
        """
        network = fold(self.svd, selection.plan, selection.truncations)
        if self.splits is None:
            return network, {}
        to_fast_layout(network.to(self.device), self.input_shape)
        scores = {"heldout_top1": self._heldout(network)}
        for name, repair in self._repairs().items():
            before = copy.deepcopy(network.state_dict())
            best = max(scores.values())
            if repair(network, selection):
                try:
                    scores[f"heldout_top1_after_{name}"] = after = self._heldout(network)
                except NotANumber:
                    after = -1.0
                if after < best:
                    network.load_state_dict(before)
        return network, scores

    def _repairs(self) -> dict[str, Callable[[nn.Module, Selection], bool]]:
        """By name, in their order; each says whether there were images to do it with."""
        if not self.config.reconstruct and not self.config.batchnorm_images:
            return {}
        first = "reconstruction" if self.config.reconstruct else "bias_correction"
        return {first: self._reconstruct, "batchnorm": self._reestimate_batchnorm}

    def _reconstruct(self, network: nn.Module, selection: Selection) -> bool:
        """Refit pairs and biases, or biases and BatchNorm's statistics alone."""
        images = self._images(self.config.calibration_images)
        if len(images) < 2:  # BatchNorm behind a global pooling has no variance over one image
            return False
        most = max(2, _MOST_VALUES // largest_output(self.svd.network, self.input_shape))
        few = images.subset(torch.arange(min(len(images), most)))
        whole = torch.cat([batch for batch, _ in few.batches(_BATCH, self.device)])
        reconstruct(network, self.svd, selection.plan, whole, self.config.reconstruct)
        return True

    def _reestimate_batchnorm(self, network: nn.Module, _selection: Selection) -> bool:
        images = self._images(self.config.batchnorm_images)
        return len(images) > 1 and reestimate_batchnorm(network, images.batches(_BATCHNORM_BATCH, self.device))

    def _heldout(self, network: nn.Module) -> float:
        assert self.splits is not None
        return score(network, self.splits.heldout, self.device, "heldout").top1

    def _images(self, most: int) -> ImageSet:
        assert self.splits is not None
        return draw(self.splits.train, most, self.config.train.seed)

    def _moments(self) -> Moments | None:
        if self.splits is None or not self.config.weighting or self.config.goal.energy is not None:
            return None  # equation 4 is about the kernel's own energy
        images = self._images(self.config.calibration_images)
        return input_moments(self.svd, images.batches(_BATCH, self.device), self._schemes()) if len(images) else None

    def _schemes(self) -> Schemes:
        if self.choices is not None:
            return schemes_in(self.svd, self.choices, str(self.config.goal.plan))
        return schemes_considered(self.svd, self.config)

    def _within_latency(self, speed: Speed, moments: Moments | None) -> Selection:
        """The plan that is measured to be as fast as asked, with the least loss.

        Prediction is off by some percent, so the budget is corrected by networks that are really measured; of those that
        are fast enough the slowest is taken, where none is, the fastest, with a warning. Only what was asked leaves the
        network dense, never a budget that was corrected.
        """
        goal, dense = self.config.goal, speed.latency.dense
        asked = self.milliseconds(speed) / dense
        found = truncations(self.svd, moments, self._schemes())
        budget, tries = asked, list[tuple[float, Selection]]()
        while len(tries) < _LATENCY_TRIES:
            try:
                selection = within_latency(self.svd, found, speed.latency, budget * dense, self.config.rule)
            except UsageError:
                if not tries:  # what was asked is out of reach, not a corrected budget
                    raise
                break
            latency = self._confirm(speed, selection)
            ratio = latency.ratio if goal.latency is not None else latency.measured / dense
            tries.append((ratio, replace(selection, latency=latency)))
            if not selection.has_pairs or asked * (1 - _LATENCY_CLOSE) <= ratio <= asked:
                return tries[-1][1]
            # At 1 nothing would be pruned, which is not what was asked: half the way there at most.
            budget = min(budget * asked * (1 - _LATENCY_CLOSE / 2) / ratio, (1 + budget) / 2)
        fitting = [each for each in tries if each[0] <= asked]
        if fitting:
            return max(fitting, key=lambda each: each[0])[1]
        ratio, fastest = min(tries, key=lambda each: each[0])
        given = format_ms(goal.latency_ms) if goal.latency_ms is not None else f"{goal.latency:g}"
        note = f"no plan was measured to be as fast as asked ({given}); this one takes {ratio:.3f} of the dense latency"
        return replace(fastest, warnings=(*fastest.warnings, note))

    def _confirm(self, speed: Speed, selection: Selection) -> PlannedLatency:
        return speed.confirm(selection.plan, fold(self.svd, selection.plan, selection.truncations))

    def _within_bytes(self, size: int, moments: Moments | None) -> Selection:
        """The plan whose file has at most ``size`` bytes: parameters in four bytes each, and whatever else a file has.

        What else depends a little on the plan, so the budget of parameters is corrected by files that are really written.
        """
        found = truncations(self.svd, moments, self._schemes())
        cost: Cost = "params"

        def measured(budget: float) -> tuple[Selection, int, float]:
            selection = within(self.svd, found, cost, budget, self.config.rule, self._latency)
            written = self._written_bytes(fold(self.svd, selection.plan, found))
            return selection, written, written - 4.0 * plan_cost(self.svd, selection.plan, cost)

        best = smallest(self.svd, found, cost)
        least, most = plan_cost(self.svd, best.plan, cost), whole_cost(self.svd, cost)
        written = self._written_bytes(fold(self.svd, best.plan, found))
        if written > size:
            raise UsageError(
                f"a file of {format_bytes(size)} is out of reach",
                f"The smallest plan, rank 1 in every layer, is written as {written:,} bytes.",
            )
        overhead = written - 4.0 * least
        for _ in range(_SIZE_TRIES):
            selection, written, overhead = measured(min(float(most), max((size - overhead) / 4, least)))
            better = plan_cost(self.svd, selection.plan, cost) > plan_cost(self.svd, best.plan, cost)
            if written <= size and better:
                best = selection
            elif written <= size:
                break
        return best

    def _written_bytes(self, network: nn.Module) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return export_onnx(network, Path(folder) / "model.onnx", self.input_shape).bytes

    def _within_drop(self, points: float, moments: Moments | None) -> Selection:
        """The cheapest plan that loses at most ``points`` of held-out top-1 by pruning and repair, before any fine-tuning.

        The line search of Yang et al. 2020, section 3.3: over shares of the MACs by the global rule, over e by the threshold
        rule, on a grid, cheapest last. Accuracy is taken to fall with cost.
        """
        if self.splits is None:
            raise UsageError("--accuracy-drop needs data to measure accuracy on", "Give --data, or another goal.")
        found = truncations(self.svd, moments, self._schemes())
        dense = self._heldout(self.svd.network)
        least, most = plan_cost(self.svd, smallest(self.svd, found, "macs").plan, "macs"), whole_cost(self.svd, "macs")

        def plan(step: int) -> Selection:
            if self.config.rule == "threshold":  # from everything to nothing dropped, in equal ratios
                return at_threshold(
                    self.svd, found, 10 ** (-5 * step / (_GRID - 1)) if step < _GRID - 1 else 0.0, self._latency
                )
            return within(self.svd, found, "macs", least + (most - least) * step / (_GRID - 1), latency=self._latency)

        lost: dict[int, float] = {_GRID - 1: 0.0}

        def holds(step: int) -> bool:
            if step not in lost:
                try:
                    lost[step] = 100 * (dense - max(self.fold(plan(step))[1].values()))
                except NotANumber:
                    lost[step] = math.inf
            return lost[step] <= points

        return replace(plan(first_true(_GRID - 1, holds)), heldout_top1=dense)
