"""The whole flow on one screen: model → SVD form → SVD training → ranks → fold → fine-tune → score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lrexport.artifacts.plan_file import choices_in
from lrexport.config.compression import (
    CompressConfig,
    TrainConfig,
    check_source,
    check_trainable,
)
from lrexport.config.goals import FromPlan, Goal, Latency
from lrexport.events import Noted, OnEvent, Warned, Working
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.truncation import Selection
from lrexport.lowrank.selection.from_plan import check_choices
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import parse_target
from lrexport.plan import Choice, digest
from lrexport.runs.finished import finished
from lrexport.runs.open import OpenRun, Trained, loaded, open_run
from lrexport.runs.record import RANDOM, Record
from lrexport.runs.request import RunRequest
from lrexport.runs.starting_point import load_for_planning
from lrexport.training.engine import failing_together, make_fabric, with_float64
from lrexport.workflow import stages
from lrexport.workflow.expected_score import warn_of_low_score
from lrexport.workflow.pruning import Pruning, metadata_of, schemes_considered
from lrexport.workflow.target_speed import Speed, measure_speed


def compress(request: RunRequest[CompressConfig]) -> Record:
    """Compress up to the fine-tuned folded network.

    Of several processes the first writes; only its record is complete.
    """
    check_source(request.config, request.source)
    choices = _choices(request.config.goal)
    digests = {"plan_sha256": digest(choices)} if choices is not None else {}
    if (record := finished(request, digests)) is not None:
        return record
    with open_run(request, digests) as (run, trained):
        warn_of_low_score(run, trained)
        pruning = _pruning(run, trained, choices)
        if request.source is None:
            trained = stages.train_dense(run, trained)
            trained = stages.train_svd(run, trained, pruning(trained))
        compressed = stages.prune(run, pruning(trained))
        compressed = stages.fine_tune(run, trained, compressed)
        trained = stages.train_baseline(run, trained, compressed)
        return stages.finish(run, trained, compressed)


def train(request: RunRequest[TrainConfig]) -> Record:
    """Dense training if needed, then SVD training; ``compress`` continues from the run.

    With ``source``, a run without SVD training, SVD training starts from its dense network.
    """
    check_trainable(request.config)
    if (record := finished(request, {})) is not None:
        return record
    with open_run(request) as (run, trained):
        warn_of_low_score(run, trained)
        if request.source is None:
            trained = stages.train_dense(run, trained)
        trained = stages.train_svd(run, trained)
        stages.leave(run)
        return trained.record


def _pruning(
    run: OpenRun[CompressConfig], trained: Trained, choices: dict[str, Choice] | None
) -> Callable[[Trained], Pruning]:
    """A constructor of Pruning for the trained network.

    The plan is checked and the target measured before any training: errors show at once, and the machine is quiet.
    """
    config = run.request.config
    if isinstance(config.goal, FromPlan) and choices is not None:
        check_choices(trained.svd, choices, config.goal.source)
    speed = None
    with failing_together(run.fabric):
        if run.first and run.progress.pruned is None:
            speed = _speed(replace(config, train=trained.config), trained.svd, run.request.on_event)
    device = with_float64(run.fabric.device)
    metadata = metadata_of(run.recipe.signature, run.splits.data if run.splits else None, run.recipe.preprocessing)

    def pruning(now: Trained) -> Pruning:
        return Pruning(now.svd, replace(config, train=now.config), run.splits, device, choices, speed, run.task, metadata)

    return pruning


def plan_only(config: CompressConfig, on_event: OnEvent, source: Path | None = None) -> tuple[SVDNetwork, Selection]:
    """The plan for the network before any training, as ``--dry-run`` shows it. Nothing is written."""
    choices = _choices(config.goal)
    on_event(Working("loading the network and its data"))
    start = load_for_planning(config.train, source)
    svd, splits = start.svd, start.splits
    for text in start.notes:
        on_event(Noted(text))
    if splits is not None:
        on_event(loaded(splits))
    for text in splits.data.warnings if splits else ():
        on_event(Warned(text))
    device = with_float64(make_fabric(config.train.device, trains=False).device)
    speed = _speed(config, svd, on_event)
    on_event(Working("choosing ranks"))
    metadata = metadata_of(start.recipe.signature, splits.data if splits else None, start.recipe.preprocessing)
    selection = Pruning(svd, config, splits, device, choices, speed, start.task, metadata).select()
    return svd, replace(selection, warnings=(RANDOM, *selection.warnings)) if start.random else selection


def _speed(config: CompressConfig, svd: SVDNetwork, on_event: OnEvent) -> Speed | None:
    """Latencies on the target, if the goal is latency or a target is given."""
    if config.target is None and not isinstance(config.goal, Latency):
        return None
    times = LayerTimes(parse_target(config.target or "local", on_event), config.threads)
    schemes = schemes_considered(svd, config.train.scheme, config.goal)
    return measure_speed(svd, schemes, times, on_event)


def _choices(goal: Goal) -> dict[str, Choice] | None:
    return choices_in(goal.plan) if isinstance(goal, FromPlan) else None
