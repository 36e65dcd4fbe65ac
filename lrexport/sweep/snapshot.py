"""A study's trials that count, each as in sweep.json."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from lrexport.artifacts.run_files import TRIALS
from lrexport.runs.sweep_record import Figures, State, Trial
from lrexport.text import number_of

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def run_of(number: int) -> str:
    """The path of a trial's run in the sweep's folder."""
    return f"{TRIALS}/{number:04d}"


def live(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: all except those queued again under another number."""
    again = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    return [trial for trial in trials if trial.number not in again]


def to_trial(trial: FrozenTrial) -> Trial:
    """A trial of the study for sweep.json."""
    noted = trial.user_attrs
    reason = noted.get("reason")
    if reason is None and trial.state == TrialState.FAIL:
        times = len(RetryHeartbeatStaleTrialCallback.retry_history(trial)) + 1
        reason = f"its process died without an error message, {number_of(times, 'time')}"
    finished = trial.state == TrialState.COMPLETE
    return Trial(
        number=trial.number,
        state=_STATES[trial.state],
        parameters=trial.params,
        figures=Figures.model_validate(noted["figures"]) if finished else None,
        run=run_of(trial.number) if finished else None,
        host=noted.get("host"),
        reason=reason,
        exit_code=noted.get("exit_code"),
    )
