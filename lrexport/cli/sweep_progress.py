"""A sweep's events for people: a line a trial; the epochs are in each run's log."""

from __future__ import annotations

from typing import Any

from lrexport.cli.console import Progressing
from lrexport.config.compression import STAGES
from lrexport.report.sweep_tables import cost_text, parameters_text
from lrexport.runs.sweep_record import Sweep
from lrexport.units import format_percent


class SweepProgress:
    """Shows shared stages as other commands do, of trials the live line alone, and what became of each."""

    def __init__(self, progress: Progressing) -> None:
        self._progress = progress
        self._told: set[int] = set()
        self._in_trial = False

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "trial":
            self._in_trial = True
            self._progress.say(f"trial {event['number']}: {parameters_text(event['point'])}")
        elif kind == "trials":
            self._in_trial = False
            self._tell(event["sweep"])
        elif kind == "others":
            count = event["running"]
            self._progress.say(f"waiting for {count} trial{'s' if count > 1 else ''} of other processes")
        elif kind == "sharing":
            self._progress.say(f"waiting for another process's {STAGES[event['stage']]}")
        elif kind in ("step", "table", "measuring") or not self._in_trial:
            self._progress(event)

    def _tell(self, sweep: Sweep) -> None:
        done = sum(trial.state in ("finished", "pruned", "failed") for trial in sweep.trials)
        for trial in sweep.trials:
            if trial.number in self._told or trial.state in ("waiting", "running"):
                continue
            self._told.add(trial.number)
            if trial.figures is None:
                text = f"{trial.state}: {trial.reason_line}"
            else:
                front = "; on the front so far" if trial.number in sweep.front else ""
                accuracy = format_percent(trial.figures.heldout_top1)
                text = f"held-out top-1 {accuracy} at {cost_text(sweep, trial.figures)}{front}"
            self._progress.say(f"trial {trial.number}: {text} ({done} of {sweep.wanted} done)")
