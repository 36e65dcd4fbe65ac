"""The whole flow on one screen: model → SVD form → SVD training → ranks → fold → fine-tune → score."""

from __future__ import annotations

from pathlib import Path

from lrexport import stages
from lrexport.config import CompressConfig, TrainConfig
from lrexport.errors import UsageError
from lrexport.job import OnEvent, load_svd, open_job, reopen_job
from lrexport.lowrank.decompose import SVDNetwork
from lrexport.lowrank.selection import Selection, select
from lrexport.record import Record
from lrexport.training.checkpoints import clear_checkpoints


def compress(config: CompressConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> Record:
    """Everything up to the fine-tuned folded network; from the run ``source`` on, where one is given."""
    if source is None:
        job = open_job(config.train, run, on_event)
        stages.train_dense(job)
        stages.train_svd(job)
    else:
        job = reopen_job(config.train, source, run, on_event)
    selection = select(job.svd, energy=config.goal.energy, macs=config.goal.macs)
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
    return svd, select(svd, energy=config.goal.energy, macs=config.goal.macs)
