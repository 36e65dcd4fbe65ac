"""The whole flow on one screen: model → SVD form → SVD training → ranks → fold → fine-tune → score."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from lrexport.artifacts.plan_file import read_choices
from lrexport.artifacts.run_files import HOLDER, RECORD, SVD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.comparison import SETTLED, SVD_TRAINING
from lrexport.config.compression import (
    CompressConfig,
    Goal,
    TrainConfig,
    check_source,
    check_trainable,
)
from lrexport.errors import LrexportError, UsageError
from lrexport.events import AlreadyFinished, Noted, OnEvent, Warned
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.selection.from_plan import check_choices
from lrexport.lowrank.selection.select import Selection
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import parse_target
from lrexport.plan import Choice, digest
from lrexport.runs.open import Opening, open_job
from lrexport.runs.record import RANDOM, Record, load_record
from lrexport.runs.resume import clear, is_clear, is_stopped, other_choices
from lrexport.runs.starting_point import load_for_planning
from lrexport.training.engine import failing_together, make_fabric, with_float64
from lrexport.workflow import stages
from lrexport.workflow.pruning import Pruning, schemes_considered
from lrexport.workflow.target_speed import Speed, measure_speed


def compress(
    config: CompressConfig,
    run: Path,
    on_event: OnEvent,
    source: Path | None = None,
    resume: bool = False,
    allow_changes: bool = False,
) -> Record:
    """Everything up to the fine-tuned folded network; from the run ``source`` on, where one is given.

    With ``resume`` a run that was stopped is taken up where it was, as long as the same is asked of it, or with
    ``allow_changes`` whatever is asked; one that is finished is left as it is, but for ``source`` itself, which is
    compressed again. Of several processes the first writes, and its record alone is whole.
    """
    check_source(config, source)
    choices = _choices(config.goal)
    planned = {"plan_sha256": digest(choices)} if choices is not None else {}
    if resume and run != source and (finished := _finished(run, on_event, config, planned, source, SETTLED)):
        return finished
    asked = {"command": "compress", "source": str(source) if source else None, **config.to_record(), **planned}
    opening = Opening(asked, resume, allow_changes)
    with open_job(config.train, run, on_event, opening, source) as job:
        if choices is not None:  # before any training
            check_choices(job.svd, choices, str(config.goal.plan))
        job.record.digests |= planned
        config = replace(config, train=job.config)
        shape, speed = job.recipe.input_shape, None
        with failing_together(job.fabric):
            if job.first and job.progress.pruned is None:
                # Before any training, too: an unreachable target is found out at once, and the machine is still quiet.
                speed = _speed(config, job.svd, shape, on_event)
        device = with_float64(job.fabric.device)

        def pruning() -> Pruning:  # of the network as it is by then
            return Pruning(job.svd, replace(config, train=job.config), shape, job.splits, device, choices, speed)

        if source is None:
            stages.train_dense(job)
            stages.train_svd(job, pruning())
        network = stages.prune(job, pruning())
        stages.fine_tune(job, network, config.fine_tune_epochs)
        stages.train_baseline(job, config)
        stages.finish(job, network, config)
        return job.record


def train(
    config: TrainConfig,
    run: Path,
    on_event: OnEvent,
    source: Path | None = None,
    resume: bool = False,
    allow_changes: bool = False,
) -> Record:
    """Dense training where needed, then SVD training; ``compress`` goes on from the run.

    With ``source``, a run without SVD training, its dense network is what SVD training starts from. ``resume`` and
    ``allow_changes`` are those of :func:`compress`.
    """
    check_trainable(config)
    of_source = tuple({*SETTLED} - {*SVD_TRAINING})
    if resume and (finished := _finished(run, on_event, config, {}, source, of_source)):
        return finished
    asked = {"command": "train", "source": str(source) if source else None, **config.to_record()}
    opening = Opening(asked, resume, allow_changes)
    with open_job(config, run, on_event, opening, source, anew=SVD_TRAINING) as job:
        if source is None:
            stages.train_dense(job)
        stages.train_svd(job)
        stages.leave(job)
        return job.record


def _finished(
    run: Path,
    on_event: OnEvent,
    config: CompressConfig | TrainConfig,
    planned: dict[str, str],
    source: Path | None,
    of_source: tuple[str, ...],
) -> Record | None:
    """The record of a run that has come to its end, so that a job that is started once more has nothing to do.

    Raises UsageError where it was made with other choices than ``config``'s, but for those that are ``of_source`` where
    there is one, from other weights or the plan of another digest than ``planned``, or where it went on from another run.
    """
    if is_stopped(run) or not (run / RECORD).is_file():
        return None
    record = load_record(run)
    if (record.results.compressed if isinstance(config, CompressConfig) else record.files.get(SVD)) is None:
        return None
    train = config.train if isinstance(config, CompressConfig) else config
    asked = {**config.to_record(), **train.digests(), **planned}
    others = other_choices(record, asked, (*of_source, "model") if source else ())
    before = next((earlier.run for earlier in reversed(record.earlier) if earlier.run is not None), None)
    if source is not None and run.resolve() != source.resolve() and before != str(source):
        others.append(f"it went on from {before}" if before else "it went on from no other run")
    if others:
        raise UsageError(f"{run} is finished, with other choices: {'; '.join(others)}", "Choose another folder with -o.")
    if not is_clear(run) or (run / HOLDER).exists():
        # A job that was killed in its last moment, unless another one is at work here or nothing can be changed.
        with suppress(LrexportError, OSError), RunLock(run):
            clear(run)
    on_event(AlreadyFinished(str(run)))
    return record


def plan_only(config: CompressConfig, on_event: OnEvent, source: Path | None = None) -> tuple[SVDNetwork, Selection]:
    """What ``--dry-run`` shows: the plan for the network as it is, before any training. Nothing is written."""
    choices = _choices(config.goal)
    notes: list[str] = []
    recipe, svd, splits = load_for_planning(config.train, source, notes)
    for text in notes:
        on_event(Noted(text))
    for text in splits.data.warnings if splits else ():
        on_event(Warned(text))
    device = with_float64(make_fabric(config.train.device).device)
    speed = _speed(config, svd, recipe.input_shape, on_event)
    selection = Pruning(svd, config, recipe.input_shape, splits, device, choices, speed).select()
    random = recipe.is_random(config.train.weights) if source is None else RANDOM in load_record(source).notes
    return svd, replace(selection, warnings=(RANDOM, *selection.warnings)) if random else selection


def _speed(config: CompressConfig, svd: SVDNetwork, input_shape: tuple[int, ...], on_event: OnEvent) -> Speed | None:
    """What the target says, where the goal is about it or a target is given."""
    if config.target is None and not config.goal.is_latency:
        return None
    times = LayerTimes(parse_target(config.target or "local"), config.threads)
    return measure_speed(svd, input_shape, schemes_considered(svd, config), times, on_event)


def _choices(goal: Goal) -> dict[str, Choice] | None:
    return read_choices(goal.plan) if goal.plan is not None else None
