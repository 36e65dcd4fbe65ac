"""What the trials of a sweep share: one dense training, and one SVD training for all that want the same."""

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
    """The run that has the dense network of all trials: ``request.source``, or one below ``folder``, trained once."""
    if request.source is not None:
        return request.source
    name, config = f"dense-{request.dense_digest()}", replace(request.train, svd_epochs=0)
    waits = WaitingForStage("dense")
    return _once(folder / STAGES / name, DENSE, lambda: on_event(waits), lambda run: _train(config, run, on_event))


def svd_stage(request: SweepRequest, config: TrainConfig, dense: Path, folder: Path, on_event: OnEvent) -> Path:
    """The run that a trial with ``config`` goes on from: SVD-trained, once for all trials with the same choices."""
    if request.source is not None or config.svd_epochs == 0:
        return dense
    name = f"svd-{request.svd_digest(config)}"
    waits = WaitingForStage("svd")
    return _once(folder / STAGES / name, SVD, lambda: on_event(waits), lambda run: _train(config, run, on_event, dense))


def _once(run: Path, wanted: str, on_wait: Callable[[], None], make: Callable[[Path], None]) -> Path:
    """The folder ``run``, filled by whoever comes first; the others wait, and go on with it should that process die."""
    run_folder.refuse_link(run)
    if _has(run, wanted):
        return run
    with exclusively(run.parent.parent, run.name, on_wait):
        if not _has(run, wanted):
            make(run)
    return run


def _train(config: TrainConfig, run: Path, on_event: OnEvent, source: Path | None = None) -> None:
    """Train, or go on where a process was stopped; the folder's name holds all choices, so only the device may be new."""
    resume = is_stopped(run)
    if not resume:
        remove_run(run)
    pipeline.train(RunRequest(config, run, on_event, source, resume, allow_changes=True))


def _has(run: Path, wanted: str) -> bool:
    """Whether a run is finished as far as ``wanted``; the record is written after the weights."""
    try:
        return wanted in load_record(run).files
    except InputError:
        return False
