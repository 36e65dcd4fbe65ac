"""Events of a sweep, in addition to those of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrexport.events import Event
from lrexport.runs.sweep_record import Sweep


@dataclass(frozen=True)
class TrialBegun(Event):
    """Trial ``number`` of ``of`` starts with these ``parameters``; the events of its run follow."""

    kind = "trial"
    number: int
    of: int
    parameters: Mapping[str, float | int | str]


@dataclass(frozen=True)
class TrialsSaved(Event):
    """No trial is running in this process; ``sweep`` is the state of all processes, as saved."""

    kind = "trials"
    sweep: Sweep


@dataclass(frozen=True)
class WaitingForTrials(Event):
    """This process has no trial left to start, but ``running`` trials of other processes are not finished."""

    kind = "others"
    running: int


@dataclass(frozen=True)
class WaitingForStage(Event):
    """Another process runs the shared ``stage`` of training."""

    kind = "sharing"
    stage: str
