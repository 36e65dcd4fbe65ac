"""A sweep's events for people: one line per trial; epochs are in each run's log."""

from __future__ import annotations

from functools import singledispatchmethod

from lrexport.cli.progress import Progressing
from lrexport.config.compression import STAGES
from lrexport.events import Event, LayersTimed, Measuring, StepDone, Working
from lrexport.report.sweep_tables import cost_text, parameters_text
from lrexport.runs.sweep_record import Sweep
from lrexport.sweep.events import TrialBegun, TrialsSaved, WaitingForStage, WaitingForTrials
from lrexport.text import number_of


class SweepProgress:
    """Shows shared stages as other commands do; of each trial only the live line and its outcome."""

    def __init__(self, progress: Progressing) -> None:
        self._progress = progress
        self._told: set[int] = set()
        self._in_trial = False

    @singledispatchmethod
    def __call__(self, event: Event) -> None:
        """Show all events of shared stages, but only those for the live line during a trial."""
        if not self._in_trial or isinstance(event, (StepDone, LayersTimed, Measuring, Working)):
            self._progress(event)

    @__call__.register
    def _(self, event: TrialBegun) -> None:
        self._in_trial = True
        self._progress.say(f"trial {event.number}: {parameters_text(event.parameters)}")

    @__call__.register
    def _(self, event: TrialsSaved) -> None:
        self._in_trial = False
        self._tell(event.sweep)

    @__call__.register
    def _(self, event: WaitingForTrials) -> None:
        self._progress.say(f"waiting for {number_of(event.running, 'trial')} of other processes")

    @__call__.register
    def _(self, event: WaitingForStage) -> None:
        self._progress.say(f"waiting for another process's {STAGES[event.stage]}")

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
                metric = trial.figures.metric
                score = metric.format(trial.figures.heldout_score)
                text = f"held-out {metric.name} {score} at {cost_text(sweep, trial.figures)}{front}"
            self._progress.say(f"trial {trial.number}: {text} ({done} of {sweep.wanted} done)")
