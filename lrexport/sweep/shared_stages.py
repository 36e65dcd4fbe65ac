"""Stages that the trials of a sweep share: one dense training, and one SVD training per set of its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import DENSE, STAGES, SVD
from lrexport.artifacts.run_lock import remove_run
from lrexport.config.compression import TrainConfig
from lrexport.errors import InputError
from lrexport.events import OnEvent
from lrexport.runs.record import load_record
from lrexport.runs.request import RunRequest
from lrexport.runs.resume import is_stopped
from lrexport.sweep.events import WaitingForStage
from lrexport.sweep.locks import exclusively
from lrexport.sweep.request import SweepRequest
from lrexport.workflow import pipeline


def dense_stage(request: SweepRequest, folder: Path, on_event: OnEvent) -> Path:
    """The run with the dense network of all trials: ``request.source``, or one in ``folder``, trained once."""
    if request.source is not None:
        return request.source
    name, config = f"dense-{request.dense_digest()}", replace(request.train, svd_epochs=0)
    waits = WaitingForStage("dense")
    return _once(folder / STAGES / name, DENSE, lambda: on_event(waits), lambda run: _train(config, run, on_event))


def svd_stage(request: SweepRequest, config: TrainConfig, dense: Path, folder: Path, on_event: OnEvent) -> Path:
    """The run that a trial with ``config`` continues from: SVD-trained once for all trials with the same options."""
    if request.source is not None or config.svd_epochs == 0:
        return dense
    name = f"svd-{request.svd_digest(config)}"
    waits = WaitingForStage("svd")
    return _once(folder / STAGES / name, SVD, lambda: on_event(waits), lambda run: _train(config, run, on_event, dense))


def _once(run: Path, wanted: str, on_wait: Callable[[], None], make: Callable[[Path], None]) -> Path:
    """The folder ``run``, filled by the first process; others wait, and take over if that process dies."""
    run_folder.refuse_link(run)
    if _has(run, wanted):
        return run
    with exclusively(run.parent.parent, run.name, on_wait):
        if not _has(run, wanted):
            make(run)
    return run


def _train(config: TrainConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> None:
    """Train, or resume after a stopped process; the folder's name depends on all options, so only the device may differ."""
    resume = is_stopped(run)
    if not resume:
        remove_run(run)
    pipeline.train(RunRequest(config, run, on_event, source, resume, allow_changes=True))


def _has(run: Path, weights: str) -> bool:
    """Whether a run has the file ``weights``; its record is written after it."""
    try:
        return weights in load_record(run).files
    except InputError:
        return False
