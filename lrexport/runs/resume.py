"""The state of an unfinished run, by which it can be resumed: its choices, and its plan once ranks are chosen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lrexport.artifacts import files, run_folder, tensors
from lrexport.artifacts.run_files import CHECKPOINTS, LOG, LOGS, OF_A_JOB, OF_A_RUN, PRUNED, RECORD, STATE, SVD
from lrexport.config.comparison import differences, only_in, undecided
from lrexport.config.options import TRAINED
from lrexport.errors import InputError, UsageError
from lrexport.plan import Plan, PlannedLatency
from lrexport.runs.figures import Fidelity
from lrexport.runs.record import Record, load_record

if TYPE_CHECKING:
    import torch

# Choices that must stay the same when a run is resumed.
_NETWORK = ("command", "source", "model_sha256", *only_in("network", "svd form"))
# Choices of the held-out images; a change could hold out images that the network was trained on.
_SPLIT = (*only_in("split"), "data_sha256")
_TASK = "task"  # decides what the best epoch so far was best by
# Choices that only affect one stage of training, in the order of stages.
_OF_STAGES = {stage: only_in(stage) for stage in TRAINED}
# Choices that affect ranks and repair.
_PRUNING = (*only_in("pruning"), "plan_sha256")
_SHOWN = 10


class Pruned(BaseModel):
    """The result of choosing ranks, without the folded network's weights, which have their own file."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    planned_latency: PlannedLatency | None
    notes: list[str]
    fidelity: Fidelity | None = None


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    asked: dict[str, Any]
    log_bytes: int | None = None  # of the log when choosing ranks began
    pruned: Pruned | None = None
    pruned_sha256: str = ""


class Progress:
    """``checkpoint/state.json`` of a run. ``asked`` has everything that decides the result."""

    def __init__(self, run: Path, state: _State) -> None:
        self.run, self.folder = run, run / CHECKPOINTS
        self._state = state

    @property
    def pruned(self) -> Pruned | None:
        """The plan, if ranks have been chosen."""
        return self._state.pruned

    def begin_pruning(self) -> None:
        """Store the log's length; if the run was interrupted while choosing ranks, truncate the log to that length.

        Without any training nothing is written, so an unreachable goal does not leave an unfinished run.
        """
        if self._state.log_bytes is None:
            log = self.run / LOG
            size = log.stat().st_size if log.exists() else 0
            self._state = self._state.model_copy(update={"log_bytes": size})
            if (self.folder / STATE).is_file():
                self.save()
        else:
            run_folder.truncate(self.run, LOG, self._state.log_bytes)

    def note_pruned(self, pruned: Pruned, weights: Mapping[str, torch.Tensor]) -> None:
        """Save the folded network's weights, then the plan."""
        content = tensors.packed(weights)
        run_folder.make_folder(self.run, CHECKPOINTS)
        run_folder.write_bytes(self.run, f"{CHECKPOINTS}/{PRUNED}", content)
        digest = hashlib.sha256(content).hexdigest()
        self._state = self._state.model_copy(update={"pruned": pruned, "pruned_sha256": digest})
        self.save()

    def read_pruned(self) -> tuple[Pruned, dict[str, torch.Tensor]]:
        """The plan and the folded network's weights, which this or another process wrote.

        Raises InputError if the weights are missing or damaged.
        """
        self._state, path = _read(self.run), run_folder.plain(self.run, f"{CHECKPOINTS}/{PRUNED}")
        if self._state.pruned is None or not path.is_file() or files.sha256(path) != self._state.pruned_sha256:
            raise InputError(f"{path} is missing or damaged", f"Remove {self.folder} and start again.")
        return self._state.pruned, tensors.load(path)

    def save(self) -> None:
        """Write state.json atomically."""
        run_folder.make_folder(self.run, CHECKPOINTS)
        run_folder.write_json(self.run, f"{CHECKPOINTS}/{STATE}", self._state.model_dump(mode="json"))


def is_stopped(run: Path) -> bool:
    """Whether the folder has an unfinished run."""
    return (run / CHECKPOINTS / STATE).is_file()


def stopped(run: Path) -> UsageError:
    """The error for a new run in the folder of an unfinished one."""
    return UsageError(
        f"{run} has an unfinished run",
        f"Repeat its command with --resume to continue it, or remove {run / CHECKPOINTS} to start again.",
    )


def check_folder(run: Path, log_to: Collection[str]) -> None:
    """Check that a job may work in ``run``, by :func:`lrexport.artifacts.run_folder.check`."""
    run_folder.check(run, (*OF_A_JOB, *((LOGS,) if log_to else ())), OF_A_RUN)


def check_free(run: Path, resume: bool) -> None:
    """Raise UsageError if a trained network would be overwritten.

    Unfinished runs are handled elsewhere. A run without a result has only its record and its dense network: it was killed
    before its first checkpoint and can be resumed, or its goal was unreachable and can be given again.
    """
    if not (run / RECORD).exists() or is_stopped(run):
        return
    record = load_record(run)
    trained = SVD in record.files or record.results.compressed is not None
    if trained or (record.config.get("dense_epochs") and not resume):
        raise UsageError(f"{run} already has a run", "Choose another folder with -o, or remove it first.")


def clear(run: Path) -> None:
    """Remove the files that only an unfinished run needs, state.json first."""
    made = run_folder.made_in(run, CHECKPOINTS)
    run_folder.remove(run, *sorted(made, key=lambda name: name != f"{CHECKPOINTS}/{STATE}"))


def is_clear(run: Path) -> bool:
    """Whether :func:`clear` has nothing to remove."""
    return not run_folder.made_in(run, CHECKPOINTS)


def follow(run: Path) -> Progress:
    """The progress of a run in a process that does not write it."""
    return Progress(run, _State(asked={}))


def take_up(run: Path, asked: dict[str, Any], resume: bool = False, allow_changes: bool = False) -> Progress:
    """The progress of a new run or, with ``resume``, of an interrupted one.

    Raises UsageError if the folder has an unfinished run and ``resume`` is not given, or if its choices differ, unless
    ``allow_changes`` permits them; InputError if its state is damaged.
    """
    asked = json.loads(json.dumps(asked))
    if not is_stopped(run):
        clear(run)  # files without state.json are leftovers of a finished run
        return Progress(run, _State(asked=asked))
    if not resume:
        raise stopped(run)
    state = _read(run)
    changes = differences(state.asked, asked)
    fixed = _fixed(run, state, asked)
    if changes and not (allow_changes and fixed.isdisjoint(changes)):
        settled = f" These can no longer change: {', '.join(sorted(fixed & changes.keys()))}." if allow_changes else ""
        raise UsageError(
            f"{run} was started with other choices: {'; '.join(map(str, [*changes.values()][:_SHOWN]))}",
            f"Give the same choices, or --allow-changes to continue with new ones if possible.{settled}",
        )
    if not changes.keys().isdisjoint(_PRUNING):  # ranks are chosen again, and later stages start again
        state = state.model_copy(update={"pruned": None})
        for stage in ("fine-tune", "baseline"):
            stale = [name for name in run_folder.made_in(run, CHECKPOINTS) if name.startswith(f"{CHECKPOINTS}/{stage}-")]
            run_folder.remove(run, *stale)
    if "svd_epochs" in changes and state.log_bytes is not None:  # in the log, new epochs must precede choosing ranks
        run_folder.truncate(run, LOG, state.log_bytes)
        state = state.model_copy(update={"log_bytes": None})
    return Progress(run, state.model_copy(update={"asked": asked}))


def _read(run: Path) -> _State:
    path = run_folder.plain(run, f"{CHECKPOINTS}/{STATE}")
    try:
        return _State.model_validate_json(files.read_bytes(path))
    except ValidationError as error:
        hint = f"Remove {path.parent} and start again."
        raise InputError(f"{path} is damaged: {error.errors()[0]['msg']}", hint) from error


def _fixed(run: Path, state: _State, asked: dict[str, Any]) -> set[str]:
    """Choices that can no longer change: those of the network, and those of stages that are done or were skipped.

    A stage without epochs leaves no file. It counts as skipped once a later stage has begun, or once the plan exists if the
    stage precedes choosing ranks.
    """
    before, folder = state.asked, run / CHECKPOINTS
    done = {stage for stage in _OF_STAGES if any(folder.glob(f"{stage}-done.*"))}
    begun = [stage for stage in _OF_STAGES if any(folder.glob(f"{stage}-*"))]
    stages = [*_OF_STAGES]
    passed = stages.index("fine-tune") if state.pruned is not None else 0
    passed = max([passed, *(stages.index(stage) for stage in begun)])
    over = {*stages[:passed], *done}
    fixed = {*_NETWORK, *(name for stage in over for name in _OF_STAGES[stage])}
    if "dense" not in done:  # after dense training the initial weights are no longer used
        fixed.add("weights_sha256")
    if begun or state.pruned is not None:
        fixed |= {*_SPLIT, _TASK}
    steered = "auto" in (before.get("sparsity_strength"), asked.get("sparsity_strength"))
    if "svd" in done and (before.get("falling_ranks") or steered):
        fixed.add("goal")
    if "svd" in begun and steered:  # checkpoints of steered and fixed λ_s are incompatible
        fixed.add("sparsity_strength")
    return fixed


def other_choices(record: Record, asked: dict[str, Any], without: Collection[str] = ()) -> list[str]:
    """How a finished run's choices differ from those ``asked`` for, as text; choices that were left open do not count."""
    open_choices = undecided(asked)
    if record.data is None:  # nothing was trained, whatever the option says
        open_choices.add("svd_epochs")
    recorded = {name: value for name, value in {**record.config, **record.digests}.items() if name in asked}
    changes = differences(recorded, json.loads(json.dumps(asked)))
    return [str(change) for name, change in changes.items() if name not in open_choices and name not in without]
