"""What the trials of a sweep share: one dense training, and one SVD training for all that want the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrexport import pipeline
from lrexport.config import TrainConfig
from lrexport.errors import InputError
from lrexport.job import OnEvent
from lrexport.record import DENSE, SVD, load_record
from lrexport.sweep.locks import exclusively
from lrexport.sweep.request import Request

STAGES = "stages"


def dense_stage(request: Request, folder: Path, on_event: OnEvent) -> Path:
    """The run that has the dense network of all trials: ``request.source``, or one below ``folder``, trained once."""
    if request.source is not None:
        return request.source
    name = f"dense-{request.dense_digest()}"
    config = replace(request.train, svd_epochs=0)
    return _once(folder, name, DENSE, on_event, lambda run: pipeline.train(config, run, on_event))


def svd_stage(request: Request, config: TrainConfig, dense: Path, folder: Path, on_event: OnEvent) -> Path:
    """The run that a trial with ``config`` goes on from: SVD-trained, once for all trials with the same choices."""
    if request.source is not None or config.svd_epochs == 0:
        return dense
    name = f"svd-{request.svd_digest(config)}"
    return _once(folder, name, SVD, on_event, lambda run: pipeline.train(config, run, on_event, dense))


def _once(folder: Path, name: str, wanted: str, on_event: OnEvent, make: Callable[[Path], Any]) -> Path:
    """The run ``name``, made by whoever comes first; the others wait, and make it anew should that process die."""
    run = folder / STAGES / name
    if _has(run, wanted):
        return run
    with exclusively(folder, name, lambda: on_event({"event": "sharing", "stage": wanted})):
        if not _has(run, wanted):
            shutil.rmtree(run, ignore_errors=True)  # begun by a process that was stopped
            make(run)
    return run


def _has(run: Path, wanted: str) -> bool:
    """Whether a run is finished as far as ``wanted``; the record is written after the weights."""
    try:
        return wanted in load_record(run).files
    except InputError:
        return False
