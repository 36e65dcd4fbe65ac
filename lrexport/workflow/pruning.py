"""From a network in SVD form to the folded one, with a command's options for goal, repair, scores and latency."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lrexport.config.compression import UNLABELLED_MINUTES, AskedScheme, CompressConfig
from lrexport.config.goals import Energy, FromPlan, Goal, Latency
from lrexport.data.images import ImageData, Splits
from lrexport.data.unlabelled import Images, Unlabelled
from lrexport.errors import InputError
from lrexport.events import HealingPart, OnEvent, Warned
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import Schemes, every_scheme_of, input_moments, own_schemes_of
from lrexport.lowrank.factors.noise_moments import NoiseMoments
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.repair.parts import Part
from lrexport.lowrank.selection import solve
from lrexport.lowrank.selection.from_plan import with_choices
from lrexport.lowrank.selection.problem import Problem, Rule
from lrexport.plan import Choice, Plan, PlannedLatency
from lrexport.preprocessing import Preprocessing
from lrexport.runs.figures import Fidelity
from lrexport.signature import Signature
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.fidelity import SQNR
from lrexport.tasks.scoring import NotANumber, score
from lrexport.tasks.task import Task
from lrexport.training.engine import to_fast_layout
from lrexport.workflow.healing import Effort, heal, measured_fidelity
from lrexport.workflow.likeness import DenseOutputs
from lrexport.workflow.plan_outputs import PlanOutputs
from lrexport.workflow.repair import BATCH, Repair
from lrexport.workflow.target_speed import Speed

_COMPARED = 512  # held-out inputs that repairs are judged by

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


def schemes_considered(svd: SVDNetwork, scheme: AskedScheme, goal: Goal) -> Schemes:
    """Schemes by layer. A goal of latency considers every scheme: only the target knows which is fastest."""
    every = scheme == "auto" or isinstance(goal, Latency)
    return every_scheme_of(svd) if every else own_schemes_of(svd)


def pose(
    svd: SVDNetwork,
    goal: Goal,
    scheme: AskedScheme,
    rule: Rule,
    choices: Mapping[str, Choice] | None,
    images: Unlabelled | None,
    most: int,
    metadata: Mapping[str, Any] = NO_METADATA,
    *,
    rank_multiple: int,
    weighting: bool = True,
    outputs: PlanOutputs | None = None,
) -> Problem:
    """The selection problem for ``goal``, with energy weighted by the layers' inputs for ``most`` of ``images``, or noise.

    With images, plans are also compared by ``outputs``. Without ``weighting`` the energy is the kernels' own, as in
    equation 4. ``choices`` are those of the plan if the goal is one; ``metadata`` as :func:`written_bytes` takes it. Raises
    InputError if the choices do not fit the network.
    """
    schemes = schemes_considered(svd, scheme, goal)

    def size(network: nn.Module) -> int:
        return written_bytes(network, svd.signature, metadata)

    problem = Problem(svd, rule, schemes=schemes, written_bytes=size, rank_multiple=rank_multiple)
    if isinstance(goal, FromPlan) and choices is not None:
        problem = with_choices(problem, choices, goal.source)
    if not weighting or isinstance(goal, Energy):  # equation 4 uses the kernel's own energy
        return problem
    if images is None:
        drawable = all(spec.is_float or spec.low is not None for spec in svd.signature)
        return replace(problem, moments=NoiseMoments(svd, problem.schemes or schemes)) if drawable else problem
    chosen = images.draw(most)
    if not len(chosen):
        return problem
    moments = input_moments(svd, chosen.batches(BATCH), problem.schemes)
    return replace(problem, moments=moments, outputs=outputs)


def on_target(problem: Problem, speed: Speed) -> Problem:
    """The problem with ranks on the target's grain; the target measures the final plan."""

    def confirm(selection: Selection) -> PlannedLatency:
        return speed.confirm(selection.plan, fold(problem.svd, selection))

    return replace(problem, latency=speed.latency, confirm=confirm, remeasure=speed.remeasure)


def written_bytes(network: nn.Module, signature: Signature, metadata: Mapping[str, Any] = NO_METADATA) -> int:
    """Bytes of a network's ONNX file with ``metadata``, the arguments of :func:`export_onnx` for it. Raises as that does."""
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(network, Path(folder) / "model.onnx", signature, **metadata).bytes


def metadata_of(signature: Signature, data: ImageData | None, stated: Mapping[str, Any]) -> dict[str, Any]:
    """What the export of a run writes into its files; ``stated`` is the preprocessing that the network's source states."""
    if not signature.takes_images:
        preprocessing = None
    elif data is not None:
        preprocessing = data.preprocessing
    else:
        preprocessing = Preprocessing.of(signature.shape, {}, given=stated) if stated else None
    return {"preprocessing": preprocessing, "classes": () if data is None else tuple(map(str, data.classes))}


@dataclass(frozen=True)
class Pruning:
    """Chooses ranks and repairs pairs of a network in SVD form, with data if there is any.

    ``device`` must support float64. ``choices`` are those of the plan if the goal is one. ``speed`` holds latencies on the
    target, if they matter. ``task`` is None if nothing can be scored, as with data without targets. ``metadata`` is that of
    the exported files.
    """

    svd: SVDNetwork
    config: CompressConfig
    splits: Splits | None
    device: torch.device
    choices: Mapping[str, Choice] | None = None
    speed: Speed | None = None
    task: Task | None = CLASSIFICATION
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def select(self) -> Selection:
        """The plan for the configuration's goal.

        Raises UsageError for a goal out of reach, with the least that can be reached, and for one that needs data.
        """
        return solve.choose(self.config.goal, self._problem())

    def predict(self) -> Selection:
        """The plan for the goal by predicted latencies, without a measurement. Raises as :meth:`select`."""
        return solve.predict(self.config.goal, self._problem())

    def even_ranks(self) -> dict[str, int]:
        """Ranks by layer that one e for all layers leaves within the goal. Raises as :meth:`select`."""
        return solve.even_ranks(self.config.goal, self._problem(weighted=False))

    def fold(self, selection: Selection) -> tuple[nn.Module, dict[str, float]]:
        """The folded network, repaired if there is data, and its held-out score as folded and after each repair."""
        network = fold(self.svd, selection)
        if self.splits is None:
            return network, {}
        to_fast_layout(network.to(self.device), self.svd.signature)
        repair = self._repair(self._images(self.splits))
        if self.task is None:
            dense = DenseOutputs(self.svd, self._heldout(self.splits), _COMPARED)
            repair.apply(network, selection, dense.likeness_of)
            return network, {}
        return network, repair.apply(network, selection, self._score, self.task.metric, self._sqnr)

    def _dense(self) -> nn.Module:
        """The network before pruning, for comparison."""
        return to_fast_layout(fold(self.svd, Plan()).to(self.device), self.svd.signature).eval()

    def _sqnr(self, network: nn.Module) -> float:
        """How closely the network follows the one before pruning; 0 where outputs cannot be compared."""
        assert self.splits is not None
        try:
            return measured_fidelity(network, self._dense(), self._heldout(self.splits))[SQNR]
        except InputError:
            return 0.0

    def heal(self, network: nn.Module, on_event: OnEvent) -> Fidelity | None:
        """Heal the repaired network in place, if there is time for it; how closely it follows the network before pruning.

        None, with a warning, if outputs cannot be compared and no healing is asked for. Raises InputError if it is.
        """
        assert self.splits is not None
        seed, minutes = self.config.train.seed, self.config.heal_minutes
        if minutes is None:
            minutes = UNLABELLED_MINUTES if self.task is None or self.task.follows_dense else 0.0
        dense = self._dense()
        heldout = self._heldout(self.splits)
        if not minutes:
            try:
                return Fidelity(repaired=measured_fidelity(network, dense, heldout))
            except InputError as error:
                on_event(Warned(f"fidelity is unknown: {error.message}"))
                return None

        def show(done: int, of: int, part: Part) -> None:
            on_event(HealingPart(done, of, part.kind, part.name))

        return heal(network, dense, self._images(self.splits), heldout, Effort(minutes, seed=seed), show)

    def _problem(self, weighted: bool = True) -> Problem:
        self.svd.network.to(self.device)
        config = self.config
        images = outputs = None
        if self.splits is not None:
            images = self._images(self.splits)
            outputs = PlanOutputs(self._heldout(self.splits), self._repair(images))
        problem = pose(
            self.svd,
            config.goal,
            config.train.scheme,
            config.rule,
            self.choices,
            images,
            config.calibration_images,
            self.metadata,
            rank_multiple=config.rank_multiple,
            weighting=weighted and config.weighting,
            outputs=outputs,
        )
        # An accuracy drop is one of the user's metric, not of the likeness to the dense network.
        if self.splits is not None and self.task is not None and not self.task.follows_dense:
            problem = replace(problem, heldout_score=self._heldout_score, metric=self.task.metric)
        return problem if self.speed is None else on_target(problem, self.speed)

    def _repair(self, images: Images) -> Repair:
        config = self.config
        return Repair(self.svd, images, config.reconstruct, config.calibration_images, config.batchnorm_images)

    def _images(self, splits: Splits) -> Images:
        return Images(splits.train, self.device, self.config.train.seed)

    def _heldout(self, splits: Splits) -> Images:
        return Images(splits.heldout, self.device, self.config.train.seed)

    def _score(self, network: nn.Module) -> float:
        assert self.splits is not None
        assert self.task is not None
        return score(network, self.splits.heldout, self.device, "heldout", task=self.task).primary

    def _heldout_score(self, selection: Selection | None) -> float:
        """Score of the folded, repaired network of a selection, the worst for NaN; with None, of the network in SVD form."""
        assert self.task is not None
        if selection is None:
            return self._score(self.svd.network)
        try:
            return self.task.metric.best(self.fold(selection)[1].values())
        except NotANumber:
            return self.task.metric.worst
