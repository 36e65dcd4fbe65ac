"""What happens in a sweep, beside the events of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrexport.events import Event
from lrexport.runs.sweep_record import Sweep


@dataclass(frozen=True)
class TrialBegun(Event):
    """Trial ``number`` of ``of`` begins with these ``parameters``; the events that follow are those of its run."""

    kind = "trial"
    number: int
    of: int
    parameters: Mapping[str, float | int | str]


@dataclass(frozen=True)
class TrialsSaved(Event):
    """No trial is under way in this process; ``sweep`` is what all processes have made, as saved."""

    kind = "trials"
    sweep: Sweep


@dataclass(frozen=True)
class WaitingForTrials(Event):
    """This process has nothing left to begin; ``running`` trials of others are under way."""

    kind = "others"
    running: int


@dataclass(frozen=True)
class WaitingForStage(Event):
    """Another process does the ``stage`` of training that trials share."""

    kind = "sharing"
    stage: str
