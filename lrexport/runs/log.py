"""log.jsonl: a run's events, one JSON object per line, written as they happen; unreadable lines are skipped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.run_files import LOG
from lrexport.config.compression import STAGES
from lrexport.errors import UsageError
from lrexport.events import EpochDone, Event, PlanChosen, event_to_json
from lrexport.metric import TOP1, Metric, heldout_key


@dataclass(frozen=True)
class LoggedEpoch:
    """Epoch ``number``, from 1, of a ``stage``. ``loss`` and ``heldout_score`` are None where not finite."""

    stage: str
    number: int
    loss: float | None
    heldout_score: float | None
    metric: Metric = TOP1


@dataclass(frozen=True)
class LoggedPlan:
    """Ranks were chosen; later epochs train the folded network."""


def append(run: Path, event: Event) -> None:
    """Write the event's line, all or nothing. Raises DeviceError if the disk is full."""
    run_folder.append_json_line(run, LOG, event_to_json(event))


def read_log(run: Path) -> tuple[list[LoggedEpoch | LoggedPlan], int]:
    """Epochs and plans in order, and the number of unreadable lines, such as half a line after a crash.

    Other events and unknown fields are ignored. A run without a log has no epochs.
    """
    path = run_folder.plain(run, LOG)
    logged: list[LoggedEpoch | LoggedPlan] = []
    unread = 0
    if not path.is_file() or not path.stat().st_size:
        return logged, unread
    for line in files.read_bytes(path).decode(errors="replace").splitlines():
        try:
            entry = _parse(line)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError, UsageError):
            unread += 1
        else:
            logged += [entry] if entry is not None else []
    return logged, unread


def _parse(line: str) -> LoggedEpoch | LoggedPlan | None:
    values = dict(json.loads(line))
    if values["event"] == PlanChosen.kind:
        return LoggedPlan()
    if values["event"] == EpochDone.kind and values["stage"] in STAGES:
        epoch = int(values["epoch"])
        metric = Metric(**values["metric"]) if "metric" in values else TOP1
        return LoggedEpoch(values["stage"], epoch, _finite(values["loss"]), _finite(values[heldout_key(metric)]), metric)
    return None


def _finite(value: str | float) -> float | None:
    """The number, or None for NaN and infinity, which Python's JSON can have. Raises ValueError or TypeError."""
    number = float(value)
    return number if abs(number) < float("inf") else None
