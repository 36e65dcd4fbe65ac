"""Log training to services besides log.jsonl: TensorBoard, MLflow, Weights & Biases; each needs an extra.

Every stage has its own axis, optimiser steps from 1. ``loss``, the held-out score, ``lr`` and ``images_per_second`` are
logged (``heldout_score`` for other tasks than classification) at each epoch's last step, ``step_loss`` every STEPS steps.
"""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial, singledispatchmethod
from pathlib import Path
from typing import Any, Protocol

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import LOGS
from lrexport.errors import DeviceError
from lrexport.events import EpochDone, Event, OnEvent, StepDone, Warned
from lrexport.metric import heldout_key

STEPS = 20
PROJECT = "lrexport"


class Logger(Protocol):
    """One service. ``step`` counts the optimiser steps of the stage."""

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None: ...

    def close(self, done: bool) -> None: ...


class TensorBoard:
    """Event files in ``RUN/logs/tensorboard/STAGE``, by Lightning Fabric's logger.

    A resumed stage removes entries after the step from which it continues.
    """

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._root = run_folder.make_folder(run, LOGS)
        for path in (self._root / "tensorboard", *(self._root / "tensorboard").glob("*")):
            run_folder.refuse_link(path)
        self._stages: dict[str, Any] = {}

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        if stage not in self._stages:
            self._stages[stage] = TensorBoardLogger(self._root, name="tensorboard", version=stage, purge_step=step)
        self._stages[stage].log_metrics(dict(values), step)
        self._stages[stage].save()  # the process may be killed at any time

    def close(self, done: bool) -> None:
        for logger in self._stages.values():
            logger.finalize("success" if done else "stopped")


class MLflow:
    """An MLflow run at MLFLOW_TRACKING_URI, in MLFLOW_EXPERIMENT_NAME or ``lrexport``; resumed by its id."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import mlflow

        self._client = mlflow.MlflowClient()
        if (stored := _stored_id(run, "mlflow.id")) is not None:
            self._id = stored
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = mlflow.set_experiment(name).experiment_id
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        _store_id(run, "mlflow.id", self._id)
        for key, value in config.items():
            self._client.log_param(self._id, key, value)

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, f"{stage}/{name}", value, step=step)

    def close(self, done: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")


class WandB:
    """A run of Weights & Biases, in WANDB_PROJECT or ``lrexport``; resumed by its id."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        stored = _stored_id(run, "wandb.id")
        name = os.environ.get("WANDB_PROJECT", PROJECT)
        run_id = stored or secrets.token_hex(8)
        run_folder.refuse_link(run_folder.make_folder(run, LOGS) / "wandb")
        self._run = wandb.init(
            project=name, name=run.name, id=run_id, resume="allow", dir=str(run / LOGS), config=dict(config)
        )
        if not stored:
            _store_id(run, "wandb.id", run_id)
        self._stages: set[str] = set()

    def log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        if stage not in self._stages:  # each stage needs an axis, because the service's own steps must not decrease
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({**{f"{stage}/{name}": value for name, value in values.items()}, f"{stage}/step": step})

    def close(self, done: bool) -> None:
        self._run.finish(exit_code=0 if done else 1)


_KINDS: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_installed(names: Sequence[str]) -> None:
    """Raise DeviceError with the pip command for the first of the services whose package is missing."""
    for name in names:
        missing = None
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            missing = error.name or name
        else:
            if module.__file__ is None:  # not the package, but a folder of that name, which wandb and mlflow create
                missing = name
        if missing is not None:
            raise DeviceError(f"--log-to {name} needs {missing}", f"Install it with: pip install 'lrexport[{name}]'")


class Loggers:
    """Passes a run's events on to the services ``names``. If one fails, it is dropped with a warning; training continues."""

    def __init__(self, names: Sequence[str], run: Path, config: Mapping[str, Any], on_event: OnEvent) -> None:
        self._on_event = on_event
        self._loggers: dict[str, Logger] = {}
        for name in dict.fromkeys(names):
            self._try(name, partial(self._begin, name, run, config))

    def _begin(self, name: str, run: Path, config: Mapping[str, Any]) -> None:
        self._loggers[name] = _KINDS[name](run, config)

    @singledispatchmethod
    def __call__(self, event: Event) -> None:
        """Log epochs and some steps; other events are only in log.jsonl."""

    @__call__.register
    def _(self, event: EpochDone) -> None:
        values = {"loss": event.loss, heldout_key(event.metric): event.heldout_score, "lr": event.lr}
        values |= {"images_per_second": event.images_per_second}
        self._log(event.stage, values, event.epoch * event.steps)

    @__call__.register
    def _(self, event: StepDone) -> None:
        step = event.epoch * event.steps + event.step + 1
        if step % STEPS == 0:
            self._log(event.stage, {"step_loss": event.loss}, step)

    def _log(self, stage: str, values: Mapping[str, float], step: int) -> None:
        for name, logger in list(self._loggers.items()):
            self._try(name, partial(logger.log, stage, values, step))

    def close(self, done: bool) -> None:
        """Close all services; ``done``: the run is finished."""
        for name, logger in list(self._loggers.items()):
            self._try(name, partial(logger.close, done))

    def _try(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # services fail in many ways
            self._loggers.pop(name, None)
            first = next(iter(str(error).splitlines()), "")
            self._on_event(Warned(f"stopped logging to {name}: {type(error).__name__}: {first}"))


def _stored_id(run: Path, name: str) -> str | None:
    """The service's id of this run, stored before an interruption; None without one."""
    path = run_folder.plain(run, f"{LOGS}/{name}")
    return run_folder.read_bytes(run, f"{LOGS}/{name}").decode(errors="replace").strip() if path.is_file() else None


def _store_id(run: Path, name: str, content: str) -> None:
    run_folder.make_folder(run, LOGS)
    run_folder.write_bytes(run, f"{LOGS}/{name}", content.encode())
