"""A sweep's study: trials are claimed in it, given back, and told; sweep.json is what it says."""

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
_MOST_DEATHS = 3  # of the processes of one trial, before it is left: it may be what kills them
_UNSIGNED_SECONDS = 10.0  # a trial is signed milliseconds after it was taken, or its process died in between
_POLL_SECONDS = 1.0
_ENVIRONMENT = 4  # the exit code of what was not the trial's fault
_SIGNALS = 128  # exit codes above are those of signals
Made = tuple[Figures, Figures]


class Book:
    """The study of one sweep, as ``process`` sees it. ``begin`` and ``make`` take turns until there is nothing to do.

    Between ``begin`` and the moment in ``make`` when the trial's point is settled no other process on this folder claims
    a trial, so that none is made twice and all together make as many as were asked for.
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
        """From now on the study is of this request alone. Raises UsageError where another process bound it to its own."""
        with self._process.claimed():
            self._check_same()
            if _MADE_WITH not in self._study.user_attrs:
                self._study.set_user_attr(_MADE_WITH, self.request.made_with())
            self._save()

    def has_work(self) -> bool:
        """Whether trials are to be made, here or elsewhere."""
        trials = live(self._study.get_trials(deepcopy=False))
        open_ones = any(not trial.state.is_finished() or _failed_by_environment(trial) for trial in trials)
        return open_ones or len(trials) < self.request.wanted

    def begin(self, on_wait: Callable[[int], None]) -> bool:
        """Claim the right to the next trial, for ``make``; False when all are done.

        Where other processes have the last ones it waits: should they die, somebody has to do their work.
        """
        waited = False
        while True:
            self._process.take_claim()
            self._revive(failed_by_environment=not self._started)
            self._started = True
            trials = live(self._study.get_trials(deepcopy=False))
            states = [trial.state for trial in trials]
            if TrialState.WAITING in states or len(trials) < self.request.wanted:
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
        """Take a trial and let ``make`` give figures of its network and of the dense one; its errors are recorded.

        Ctrl-C and SIGTERM queue the trial again, for whoever comes next, and are raised again.
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
            return figures.heldout_top1, cost(self.request.objective, figures)

        try:
            self._study.optimize(objective, n_trials=1, catch=(Exception,))
        except ValueError:  # this process was silent for so long that its trial was queued again
            if not self._is_finished(taken):
                raise
        finally:
            self._process.release_claim()
            with self._process.claimed():
                if stopped:
                    self._revive()
                self._save()
        if stopped:  # Optuna has caught it where it is an Exception
            raise stopped[0]

    def save(self) -> Sweep:
        """Write sweep.json as the study is now, and return it."""
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
            wanted=max(self.request.wanted, len(trials)),
            dense=Figures.model_validate(attributes[_DENSE]) if _DENSE in attributes else None,
            trials=trials,
            front=front_of(self.request.objective, trials),
        )

    def _claim(self, trial: optuna.Trial) -> tuple[Point, str]:
        """Sign a trial, settle its point, and take over what an earlier life of it has left to go on with."""
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
        """Queue trials whose process has died, and where asked those that a full disk, say, made fail."""
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
                run = self.folder / run_of(trial.number)  # whatever a storage of somebody else's says
                if is_dead and "run" in noted and not run.is_symlink() and not is_stopped(run):
                    with suppress(LrexportError):  # what is in the way is said where the trial is made again
                        remove_run(run)

    def _is_dead(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on a trial any more, as far as this machine can tell; heartbeats tell of others."""
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
        """Refuse to go on with a sweep that was made with something else. Raises UsageError with what differs."""
        if len(self._study.directions) != len(_DIRECTIONS):
            raise UsageError(f"the study {self.name!r} in the storage is not a sweep", "Choose another name with --study.")
        known = self._study.user_attrs.get(_MADE_WITH)
        if is_sweep(self.folder):
            sweep = load_sweep(self.folder)
            if known is None and sweep.trials:
                raise InputError(
                    f"{self.folder / SWEEP} has {len(sweep.trials)} trials, the study {self.name!r} in the storage has none",
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
    """Whether somebody wants the process to end: Ctrl-C, SIGTERM."""
    return not isinstance(error, Exception) or (isinstance(error, LrexportError) and error.exit_code > _SIGNALS)


def _note(trial: optuna.Trial, reason: str, exit_code: int) -> None:
    trial.set_user_attr("reason", reason)
    trial.set_user_attr("exit_code", exit_code)
