"""A sweep's study: processes claim trials in it and record them; sweep.json is its snapshot."""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import TrialState

from lrexport.artifacts.run_files import SWEEP
from lrexport.artifacts.run_lock import remove_run
from lrexport.config.comparison import differences
from lrexport.errors import InputError, LrexportError, UsageError
from lrexport.runs.resume import is_stopped
from lrexport.runs.sweep_record import Figures, Sweep, cost, front_of, is_sweep, load_sweep
from lrexport.sweep.locks import Process
from lrexport.sweep.request import SweepRequest
from lrexport.sweep.sampling import Sampler, suggest
from lrexport.sweep.snapshot import live, run_of, to_trial
from lrexport.sweep.space import Point

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

_MADE_WITH, _DENSE = "made_with", "dense"  # attributes of the study
_DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
_MOST_DEATHS = 3  # processes that may die in one trial before it is given up: the trial may be the cause
_UNSIGNED_SECONDS = 10.0  # a process signs its trial within milliseconds, unless it died
_POLL_SECONDS = 1.0
_ENVIRONMENT = 4  # exit code of failures that are not the trial's fault
_SIGNALS = 128  # exit codes above are those of signals
Made = tuple[Figures, Figures]


class Book:
    """The study of one sweep for ``process``: call ``begin`` and ``make`` in turn until ``begin`` returns False.

    From ``begin`` until the trial's point is chosen in ``make``, no other process on this folder can claim a trial. So no
    trial is made twice, and all processes together make the requested number.
    """

    def __init__(self, request: SweepRequest, folder: Path, storage: BaseStorage, name: str, process: Process) -> None:
        self.request, self.folder, self.name, self._process = request, folder, name, process
        sampler = Sampler(request.space, request.train.seed)
        self._study = optuna.create_study(
            storage=storage, study_name=name, directions=_DIRECTIONS, sampler=sampler, load_if_exists=True
        )
        self._check_same()
        self._started = False

    def bind(self) -> None:
        """Bind the study to this request. Raises UsageError if another process bound it to a different one."""
        with self._process.claimed():
            self._check_same()
            if _MADE_WITH not in self._study.user_attrs:
                self._study.set_user_attr(_MADE_WITH, self.request.made_with())
            self._save()

    def has_work(self) -> bool:
        """Whether any trial is unfinished, here or elsewhere."""
        trials = live(self._study.get_trials(deepcopy=False))
        open_ones = any(not trial.state.is_finished() or _failed_by_environment(trial) for trial in trials)
        return open_ones or len(trials) < self.request.trial_count

    def begin(self, on_wait: Callable[[int], None]) -> bool:
        """Claim the next trial for ``make``; False when all are done.

        Waits while other processes run the last trials, to take over if they die.
        """
        waited = False
        while True:
            self._process.take_claim()
            self._revive(failed_by_environment=not self._started)
            self._started = True
            trials = live(self._study.get_trials(deepcopy=False))
            states = [trial.state for trial in trials]
            if TrialState.WAITING in states or len(trials) < self.request.trial_count:
                return True
            self._process.release_claim()
            running = states.count(TrialState.RUNNING)
            if not running:
                return False
            if not waited:
                on_wait(running)
                waited = True
            time.sleep(_POLL_SECONDS)
            fail_stale_trials(self._study)

    def make(self, make: Callable[[int, Point, Path], Made]) -> None:
        """Take a trial; ``make`` returns figures of its network and of the dense one. Its errors are recorded.

        Ctrl-C and SIGTERM queue the trial again for the next process and are re-raised.
        """
        taken: list[int] = []
        stopped: list[BaseException] = []

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            taken.append(trial.number)
            try:
                point, run = self._claim(trial)
            finally:
                self._process.release_claim()
            try:
                figures, dense = self._recorded(trial, lambda: make(trial.number, point, self.folder / run))
            except BaseException as error:
                if _is_stop(error):
                    trial.set_user_attr("interrupted", True)
                    stopped.append(error)
                raise
            trial.set_user_attr("figures", figures.model_dump())
            if _DENSE not in self._study.user_attrs:
                self._study.set_user_attr(_DENSE, dense.model_dump())
            return figures.metric.merit(figures.heldout_score), cost(self.request.objective, figures)

        try:
            self._study.optimize(objective, n_trials=1, catch=(Exception,))
        except ValueError:  # no heartbeat for so long that the trial was queued again
            if not self._is_finished(taken):
                raise
        finally:
            self._process.release_claim()
            with self._process.claimed():
                if stopped:
                    self._revive()
                self._save()
        if stopped:  # Optuna caught it if it is an Exception
            raise stopped[0]

    def save(self) -> Sweep:
        """Write the study's current state to sweep.json and return it."""
        with self._process.claimed():
            return self._save()

    def _save(self) -> Sweep:
        sweep = self._sweep()
        sweep.save(self.folder)
        return sweep

    def _sweep(self) -> Sweep:
        trials = [to_trial(trial) for trial in live(self._study.get_trials(deepcopy=False))]
        attributes = self._study.user_attrs
        return Sweep(
            study=self.name,
            objective=self.request.objective,
            made_with=attributes.get(_MADE_WITH) or self.request.made_with(),
            wanted=max(self.request.trial_count, len(trials)),
            dense=Figures.model_validate(attributes[_DENSE]) if _DENSE in attributes else None,
            trials=trials,
            front=front_of(self.request.objective, trials),
        )

    def _claim(self, trial: optuna.Trial) -> tuple[Point, str]:
        """Sign a trial, choose its point, and take over the stopped run of an earlier attempt."""
        run = run_of(trial.number)
        known = self._study.get_trials(deepcopy=False)[trial.number]
        for earlier in RetryHeartbeatStaleTrialCallback.retry_history(known)[-1:]:
            before = self.folder / run_of(earlier)
            if is_stopped(before) and not (self.folder / run).exists():
                before.rename(self.folder / run)
        by = self._process
        for key, value in (("run", run), ("host", by.host), ("place", by.place), ("process", by.id)):
            trial.set_user_attr(key, value)
        return {dimension.name: suggest(trial, dimension) for dimension in self.request.space}, run

    def _recorded(self, trial: optuna.Trial, make: Callable[[], Made]) -> Made:
        try:
            return make()
        except UsageError as error:  # a goal out of reach
            _note(trial, str(error), error.exit_code)
            raise optuna.TrialPruned(error.message) from error
        except LrexportError as error:
            if _is_stop(error):
                raise
            _note(trial, str(error), error.exit_code)
            raise
        except Exception as error:
            _note(trial, f"unexpected {type(error).__name__}: {error}", _ENVIRONMENT)
            raise

    def _is_finished(self, numbers: list[int]) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        return bool(numbers) and all(trials[number].state.is_finished() for number in numbers)

    def _revive(self, failed_by_environment: bool = False) -> None:
        """Queue trials whose process died; on request also those that failed by the environment, such as a full disk."""
        for trial in live(self._study.get_trials(deepcopy=False)):
            if trial.state not in (TrialState.RUNNING, TrialState.FAIL):
                continue
            noted, is_dead = trial.user_attrs, self._is_dead(trial)
            if trial.state == TrialState.RUNNING:
                if not is_dead:
                    continue
                self._study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
            died = "reason" not in noted
            if died or (failed_by_environment and _failed_by_environment(trial)):
                self._queue_again(trial, _MOST_DEATHS if died and "interrupted" not in noted else None)
                run = self.folder / run_of(trial.number)  # not the path in the storage, which is untrusted
                if is_dead and "run" in noted and not run.is_symlink() and not is_stopped(run):
                    with suppress(LrexportError):  # the next attempt reports what blocks it
                        remove_run(run)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Whether the process of a trial is dead, as far as this machine can tell; heartbeats cover other machines."""
        noted = trial.user_attrs
        if "process" in noted:
            return self._process.is_dead(noted["process"], noted.get("place", ""))
        began = trial.datetime_start or datetime.datetime.now()
        return (datetime.datetime.now() - began).total_seconds() > _UNSIGNED_SECONDS

    def _queue_again(self, trial: FrozenTrial, most: int | None) -> None:
        again = copy.deepcopy(trial)
        again.user_attrs = {}
        RetryHeartbeatStaleTrialCallback(max_retry=most)(self._study, again)

    def _check_same(self) -> None:
        """Raise UsageError, with the differences, if the sweep was made with other options."""
        if len(self._study.directions) != len(_DIRECTIONS):
            raise UsageError(f"the study {self.name!r} in the storage is not a sweep", "Choose another name with --study.")
        known = self._study.user_attrs.get(_MADE_WITH)
        if is_sweep(self.folder):
            sweep = load_sweep(self.folder)
            if known is None and sweep.trials:
                raise InputError(
                    f"{self.folder / SWEEP} has {len(sweep.trials)} trials, but the study {self.name!r} has none",
                    "Give the --storage and --study that this sweep was made with, or another folder with -o.",
                )
            known = known or sweep.made_with
        changes = differences(known, self.request.made_with()) if known is not None else {}
        if changes:
            raise UsageError(
                f"the sweep in {self.folder} was made with other options: {'; '.join(map(str, changes.values()))}",
                "Use the same options again, or another folder with -o.",
            )


def _failed_by_environment(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("exit_code") == _ENVIRONMENT


def _is_stop(error: BaseException) -> bool:
    """Whether the process was asked to end: Ctrl-C, SIGTERM."""
    return not isinstance(error, Exception) or (isinstance(error, LrexportError) and error.exit_code > _SIGNALS)


def _note(trial: optuna.Trial, reason: str, exit_code: int) -> None:
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("exit_code", exit_code)
