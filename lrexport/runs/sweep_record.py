"""sweep.json: the options of a sweep, its trials and its Pareto front. Fields: docs/sweep.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from lrexport.artifacts import run_folder
from lrexport.artifacts.json_files import first_fault, read_json, unicode_names
from lrexport.artifacts.run_files import RECORD, SWEEP
from lrexport.errors import InputError
from lrexport.metric import TOP1, Metric
from lrexport.pareto import pareto_front
from lrexport.stored import Stored

SCHEMA_VERSION = 1
Objective = Literal["macs", "latency", "size"]
State = Literal["waiting", "running", "finished", "pruned", "failed"]


# How the scores of classification are written.
_NAMES = {"heldout_top1": "heldout_score", "test_top1": "test_score"}


class Figures(Stored):
    """One network's figures. Scores are values of ``metric``, shares in [0, 1] for percent; trials are ranked by the
    held-out one. In JSON those of classification are ``heldout_top1`` and ``test_top1``, without a metric.

    ``bytes`` is the size of the ONNX file. ``latency_ms``, a median, and ``latency_ratio`` were measured on ``target``
    alternating with the dense network; ``latency_warning`` explains why they are unreliable. All are optional.
    """

    heldout_score: float
    test_score: float
    macs: int
    params: int
    bytes: int | None = None
    latency_ratio: float | None = None
    latency_ms: float | None = None
    target: str | None = None
    latency_warning: str | None = None
    metric: Metric = TOP1

    @model_validator(mode="before")
    @classmethod
    def _of_classification(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {_NAMES.get(name, name): value for name, value in values.items()}

    @model_serializer(mode="wrap")
    def _as_classification(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        if self.metric != TOP1:
            return values
        names = {name: written for written, name in _NAMES.items()}
        return {names.get(name, name): value for name, value in values.items() if name != "metric"}


class Trial(Stored):
    """One compression. ``run`` is its folder relative to the sweep's; without ``figures``, ``reason`` says why."""

    number: int
    state: State
    parameters: dict[str, float | int | str] = Field(default={})
    figures: Figures | None = None
    run: str | None = None
    host: str | None = None
    reason: str | None = None
    exit_code: int | None = None

    @property
    def reason_line(self) -> str:
        """The first line of the reason."""
        return (self.reason or "no reason was noted").partition("\n")[0]


class Sweep(Stored):
    """sweep.json. ``wanted`` is the total number of trials; ``front`` has the numbers of trials, cheapest first."""

    schema_version: Literal[1] = 1
    study: str
    objective: Objective
    made_with: dict[str, Any]
    wanted: int
    dense: Figures | None = None
    trials: list[Trial] = Field(default=[])
    front: list[int] = Field(default=[])

    def finished(self) -> list[Trial]:
        """Trials with figures, sorted by number."""
        return [trial for trial in self.trials if trial.state == "finished" and trial.figures is not None]

    def on_front(self) -> list[Trial]:
        """The trials on the Pareto front, cheapest first."""
        by_number = {trial.number: trial for trial in self.trials}
        return [by_number[number] for number in self.front]

    def runs(self, folder: Path, trials: list[Trial] | None = None) -> list[Path]:
        """Existing folders of runs, of ``trials`` or of all finished ones, in the sweep's ``folder``."""
        folders = [folder / trial.run for trial in (self.finished() if trials is None else trials) if trial.run]
        return [run for run in folders if os.path.isfile(run / RECORD)]  # Path.is_file would raise for impossible names

    def save(self, folder: Path) -> None:
        """Write ``folder/sweep.json`` atomically."""
        run_folder.write_json(folder, SWEEP, self.model_dump(mode="json"))


def cost(objective: Objective, figures: Figures) -> float:
    """The cost: MACs, bytes, or latency relative to dense; NaN if it was not measured."""
    value = {"macs": figures.macs, "size": figures.bytes, "latency": figures.latency_ratio}[objective]
    return float("nan") if value is None else float(value)


def front_of(objective: Objective, trials: list[Trial]) -> list[int]:
    """Numbers of the trials on the Pareto front of cost and held-out score, cheapest first."""
    done = [(trial.number, trial.figures) for trial in trials if trial.state == "finished" and trial.figures is not None]
    points = [(cost(objective, figures), figures.metric.merit(figures.heldout_score)) for _, figures in done]
    return [done[index][0] for index in pareto_front(points)]


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` is that of a sweep."""
    return (folder / SWEEP).is_file()


def load_sweep(folder: Path) -> Sweep:
    """The sweep in ``folder``. Raises InputError if sweep.json is missing, malformed, changed or from a newer lrexport."""
    path = run_folder.plain(folder, SWEEP)
    if not path.is_file():
        raise InputError(f"invalid sweep {folder}: it has no {SWEEP}", "Give the folder that lrexport sweep wrote with -o.")
    try:
        value = read_json(path, pairs=unicode_names)
        if isinstance(value, dict) and value.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {value.get('schema_version')!r}; expected {SCHEMA_VERSION}",
                "Use the version of lrexport that wrote it, or a newer one.",
            )
        sweep = Sweep.model_validate(value)
    except ValidationError as error:
        raise InputError(f"invalid sweep {path}: {first_fault(error)}") from error
    _check(path, sweep)
    return sweep


def _check(path: Path, sweep: Sweep) -> None:
    """Raise InputError if the front does not match the trials, or a run is outside of the sweep's folder."""
    for trial in sweep.trials:
        if trial.run is not None and (Path(trial.run).is_absolute() or ".." in Path(trial.run).parts):
            raise InputError(f"{path}: trial {trial.number} has a run outside of the sweep: {trial.run}")
    if len({trial.number for trial in sweep.trials}) < len(sweep.trials):
        raise InputError(f"{path} was changed: two trials have the same number", "lrexport sweep writes the file again.")
    if sweep.front != front_of(sweep.objective, sweep.trials):
        raise InputError(f"{path} was changed: its front does not match its trials", "lrexport sweep writes the file again.")
