"""The whole flow on one screen: model → SVD form → SVD training → ranks → fold → fine-tune → score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrexport import stages
from lrexport.config import SVD_TRAINING, CompressConfig, Goal, TrainConfig
from lrexport.errors import UsageError
from lrexport.job import OnEvent, look, open_job, reopen_job
from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.plans import check_choices
from lrexport.lowrank.selection import Selection
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import parse_target
from lrexport.plans import Choice, read_choices
from lrexport.pruning import Pruning, schemes_considered
from lrexport.record import Record
from lrexport.speed import Speed, measure_speed
from lrexport.training.checkpoints import clear_checkpoints
from lrexport.training.engine import make_fabric, with_float64


def compress(config: CompressConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> Record:
    """Everything up to the fine-tuned folded network; from the run ``source`` on, where one is given."""
    choices = _choices(config.goal)
    job = open_job(config.train, run, on_event) if source is None else reopen_job(config.train, source, run, on_event)
    if choices is not None:  # before any training
        check_choices(job.svd, choices, str(config.goal.plan))
    # Before any training, too: an unreachable target is found out at once, and the machine is still quiet.
    speed = _speed(replace(config, train=job.config), job.svd, job.recipe.input_shape, on_event)
    if source is None:
        stages.train_dense(job)
        stages.train_svd(job)
    config = replace(config, train=job.config)
    device = with_float64(job.fabric.device)
    network = stages.prune(job, Pruning(job.svd, config, job.recipe.input_shape, job.splits, device, choices, speed))
    stages.fine_tune(job, network, config.fine_tune_epochs)
    stages.train_baseline(job, config)
    stages.finish(job, network, config)
    return job.record


def train(config: TrainConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> Record:
    """Dense training where needed, then SVD training; ``compress`` goes on from the run.

    With ``source``, a run without SVD training, its dense network is what SVD training starts from.
    """
    if config.data is None:
        raise UsageError("train needs data", "Give --data; without data, compress alone is training-free.")
    if source is None:
        job = open_job(config, run, on_event)
        stages.train_dense(job)
    else:
        job = reopen_job(config, source, run, on_event, anew=SVD_TRAINING)
    stages.train_svd(job)
    clear_checkpoints(run)
    return job.record


def plan_only(config: CompressConfig, on_event: OnEvent, source: Path | None = None) -> tuple[SVDNetwork, Selection]:
    """What ``--dry-run`` shows: the plan for the network as it is, before any training. Nothing is written."""
    choices = _choices(config.goal)
    recipe, svd, splits = look(config.train, source)
    device = with_float64(make_fabric(config.train.device).device)
    speed = _speed(config, svd, recipe.input_shape, on_event)
    return svd, Pruning(svd, config, recipe.input_shape, splits, device, choices, speed).select()


def _speed(config: CompressConfig, svd: SVDNetwork, input_shape: tuple[int, ...], on_event: OnEvent) -> Speed | None:
    """What the target says, where the goal is about it or a target is given."""
    if config.target is None and not config.goal.is_latency:
        return None
    times = LayerTimes(parse_target(config.target or "local"), config.threads)
    return measure_speed(svd, input_shape, schemes_considered(svd, config), times, on_event)


def _choices(goal: Goal) -> dict[str, Choice] | None:
    return read_choices(goal.plan) if goal.plan is not None else None
