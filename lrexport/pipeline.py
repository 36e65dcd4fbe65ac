"""The whole flow on one screen: model → SVD form → SVD training → ranks → fold → fine-tune → score."""

from __future__ import annotations

from pathlib import Path

from lrexport import stages
from lrexport.config import CompressConfig, Goal, TrainConfig
from lrexport.errors import UsageError
from lrexport.job import OnEvent, load_svd, open_job, reopen_job
from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.plans import check_choices, plan_from_choices
from lrexport.lowrank.selection import Selection, select
from lrexport.plans import Choice, read_choices
from lrexport.record import Record
from lrexport.training.checkpoints import clear_checkpoints


def compress(config: CompressConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> Record:
    """Everything up to the fine-tuned folded network; from the run ``source`` on, where one is given."""
    choices = _choices(config.goal)
    job = open_job(config.train, run, on_event) if source is None else reopen_job(config.train, source, run, on_event)
    if choices is not None:  # before any training
        check_choices(job.svd, choices, str(config.goal.plan))
    if source is None:
        stages.train_dense(job)
        stages.train_svd(job)
    selection = _select(job.svd, config.goal, choices)
    network = stages.prune(job, selection, config.batchnorm_images)
    stages.fine_tune(job, network, config.fine_tune_epochs)
    stages.train_baseline(job, config)
    stages.finish(job, network, config)
    return job.record


def train(config: TrainConfig, run: Path, on_event: OnEvent) -> Record:
    """Dense training where needed, then SVD training; ``compress`` goes on from the run."""
    if config.data is None:
        raise UsageError("train needs data", "Give --data; without data, compress alone is training-free.")
    job = open_job(config, run, on_event)
    stages.train_dense(job)
    stages.train_svd(job)
    clear_checkpoints(run)
    return job.record


def plan_only(config: CompressConfig, source: Path | None = None) -> tuple[SVDNetwork, Selection]:
    """What ``--dry-run`` shows: the plan for the network as it is, before any training. Nothing is written."""
    svd = load_svd(config.train, source)
    return svd, _select(svd, config.goal, _choices(config.goal))


def _choices(goal: Goal) -> dict[str, Choice] | None:
    return read_choices(goal.plan) if goal.plan is not None else None


def _select(svd: SVDNetwork, goal: Goal, choices: dict[str, Choice] | None) -> Selection:
    if choices is not None:
        return plan_from_choices(svd, choices, str(goal.plan))
    return select(svd, energy=goal.energy, macs=goal.macs)
