"""What a run that is under way was asked for, and its plan once there is one: by this it can be taken up again."""

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
from lrexport.runs.record import Record, load_record

if TYPE_CHECKING:
    import torch

# What cannot be another when a run is taken up again.
_NETWORK = ("command", "source", *only_in("network", "svd form"))
# What decides which images are held out: others would be images that the network was trained on.
_SPLIT = (*only_in("split"), "data_sha256")
# What belongs to a stage of training alone, in the stages' order.
_OF_STAGES = {stage: only_in(stage) for stage in TRAINED}
# What ranks are chosen and pairs repaired by.
_PRUNING = (*only_in("pruning"), "plan_sha256")
_SHOWN = 10


class Pruned(BaseModel):
    """What choosing ranks came to, but for the folded network's weights, which are in a file of their own."""

    model_config = ConfigDict(extra="forbid")

    plan: Plan
    planned_latency: PlannedLatency | None
    notes: list[str]


class _State(BaseModel):
    model_config = ConfigDict(extra="forbid")

    asked: dict[str, Any]
    log_bytes: int | None = None  # of the log when choosing ranks began
    pruned: Pruned | None = None
    pruned_sha256: str = ""


class Progress:
    """``checkpoint/state.json`` of a run. ``asked`` is all that decides what comes out."""

    def __init__(self, run: Path, state: _State) -> None:
        self.run, self.folder = run, run / CHECKPOINTS
        self._state = state

    @property
    def pruned(self) -> Pruned | None:
        """The plan, where ranks have been chosen already."""
        return self._state.pruned

    def begin_pruning(self) -> None:
        """Keep the log's length; where ranks were being chosen when the run was stopped, cut it back to that.

        Where nothing was trained yet nothing is written: a goal that is out of reach leaves no run that was stopped.
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
        """Keep the plan and the folded network's weights, these first."""
        content = tensors.packed(weights)
        run_folder.make_folder(self.run, CHECKPOINTS)
        run_folder.write_bytes(self.run, f"{CHECKPOINTS}/{PRUNED}", content)
        digest = hashlib.sha256(content).hexdigest()
        self._state = self._state.model_copy(update={"pruned": pruned, "pruned_sha256": digest})
        self.save()

    def read_pruned(self) -> tuple[Pruned, dict[str, torch.Tensor]]:
        """The plan and the folded network's weights, as this or another process wrote them.

        Raises InputError where the weights are not what was written.
        """
        self._state, path = _read(self.run), run_folder.plain(self.run, f"{CHECKPOINTS}/{PRUNED}")
        if self._state.pruned is None or not path.is_file() or files.sha256(path) != self._state.pruned_sha256:
            raise InputError(f"{path} is missing or was damaged", f"Remove {self.folder} and begin again.")
        return self._state.pruned, tensors.load(path)

    def save(self) -> None:
        """Write it atomically."""
        run_folder.make_folder(self.run, CHECKPOINTS)
        run_folder.write_json(self.run, f"{CHECKPOINTS}/{STATE}", self._state.model_dump(mode="json"))


def is_stopped(run: Path) -> bool:
    """Whether the folder holds a compression or a training that did not come to its end."""
    return (run / CHECKPOINTS / STATE).is_file()


def stopped(run: Path) -> UsageError:
    """For a run that is to begin where another one was stopped."""
    return UsageError(
        f"{run} holds a run that was stopped",
        f"Give the same command with --resume to go on, or remove {run / CHECKPOINTS} to begin again.",
    )


def check_folder(run: Path, log_to: Collection[str]) -> None:
    """That a job may work in ``run``: see :func:`lrexport.artifacts.run_folder.check`."""
    run_folder.check(run, (*OF_A_JOB, *((LOGS,) if log_to else ())), OF_A_RUN)


def check_free(run: Path, resume: bool) -> None:
    """Raise UsageError where something that took training would be written over.

    A run that was stopped is another matter. One without a result has a record and its dense network: it was killed before
    its first checkpoint, where it is to go on, or ended by a goal out of reach, which may be given again.
    """
    if not (run / RECORD).exists() or is_stopped(run):
        return
    record = load_record(run)
    trained = SVD in record.files or record.results.compressed is not None
    if trained or (record.config.get("dense_epochs") and not resume):
        raise UsageError(f"{run} already holds a run", "Choose another folder with -o, or remove it first.")


def clear(run: Path) -> None:
    """Remove what only a run that was stopped would need, what names it one first."""
    made = run_folder.made_in(run, CHECKPOINTS)
    run_folder.remove(run, *sorted(made, key=lambda name: name != f"{CHECKPOINTS}/{STATE}"))


def is_clear(run: Path) -> bool:
    """Whether there is nothing that :func:`clear` would remove."""
    return not run_folder.made_in(run, CHECKPOINTS)


def follow(run: Path) -> Progress:
    """The progress of a run in a process that leaves its state to the first one."""
    return Progress(run, _State(asked={}))


def take_up(run: Path, asked: dict[str, Any], resume: bool = False, allow_changes: bool = False) -> Progress:
    """The progress of a run that begins, or with ``resume`` goes on.

    Raises UsageError where there is one that was stopped and ``resume`` is not given, and where it was asked for something
    else, unless ``allow_changes``; InputError where its state is damaged.
    """
    asked = json.loads(json.dumps(asked))
    if not is_stopped(run):
        clear(run)  # without that file they are what a finished run's last moment left
        return Progress(run, _State(asked=asked))
    if not resume:
        raise stopped(run)
    state = _read(run)
    changes = differences(state.asked, asked)
    fixed = _fixed(run, state, asked)
    if changes and not (allow_changes and fixed.isdisjoint(changes)):
        settled = f" Settled by now: {', '.join(sorted(fixed & changes.keys()))}." if allow_changes else ""
        raise UsageError(
            f"{run} was begun with other choices: {'; '.join(map(str, [*changes.values()][:_SHOWN]))}",
            f"Give those it was begun with, or --allow-changes to go on with new ones where that is possible.{settled}",
        )
    if not changes.keys().isdisjoint(_PRUNING):  # ranks are chosen again, and what came after them begins again
        state = state.model_copy(update={"pruned": None})
        for stage in ("fine-tune", "baseline"):
            stale = [name for name in run_folder.made_in(run, CHECKPOINTS) if name.startswith(f"{CHECKPOINTS}/{stage}-")]
            run_folder.remove(run, *stale)
    if "svd_epochs" in changes and state.log_bytes is not None:  # its epochs come before what choosing ranks has logged
        run_folder.truncate(run, LOG, state.log_bytes)
        state = state.model_copy(update={"log_bytes": None})
    return Progress(run, state.model_copy(update={"asked": asked}))


def _read(run: Path) -> _State:
    path = run_folder.plain(run, f"{CHECKPOINTS}/{STATE}")
    try:
        return _State.model_validate_json(files.read_bytes(path))
    except ValidationError as error:
        hint = f"Remove {path.parent} and begin again."
        raise InputError(f"{path} is damaged: {error.errors()[0]['msg']}", hint) from error


def _fixed(run: Path, state: _State, asked: dict[str, Any]) -> set[str]:
    """What cannot be another any more: the network itself, and the choices of stages that are done or were passed over.

    A stage without epochs leaves no file: it is passed over once a later one has begun or, of those before it, the plan
    is there.
    """
    before, folder = state.asked, run / CHECKPOINTS
    done = {stage for stage in _OF_STAGES if any(folder.glob(f"{stage}-done.*"))}
    begun = [stage for stage in _OF_STAGES if any(folder.glob(f"{stage}-*"))]
    stages = [*_OF_STAGES]
    passed = stages.index("fine-tune") if state.pruned is not None else 0
    passed = max([passed, *(stages.index(stage) for stage in begun)])
    behind = {*stages[:passed], *done}
    fixed = {*_NETWORK, *(name for stage in behind for name in _OF_STAGES[stage])}
    if "dense" not in done:  # which leaves nothing of the weights that it began with
        fixed.add("weights_sha256")
    if begun or state.pruned is not None:
        fixed |= {*_SPLIT}
    steered = "auto" in (before.get("sparsity_strength"), asked.get("sparsity_strength"))
    if "svd" in done and (before.get("falling_ranks") or steered):
        fixed.add("goal")
    if "svd" in begun and steered:  # a checkpoint of a λ_s that is steered is none of a fixed one, and back
        fixed.add("sparsity_strength")
    return fixed


def other_choices(record: Record, asked: dict[str, Any], without: Collection[str] = ()) -> list[str]:
    """In what a finished run's choices differ from those ``asked`` for, in words; what was left open is no difference."""
    open_choices = undecided(asked)
    if record.data is None:  # nothing was trained, whatever was asked
        open_choices.add("svd_epochs")
    held = {name: value for name, value in {**record.config, **record.digests}.items() if name in asked}
    changes = differences(held, json.loads(json.dumps(asked)))
    return [str(change) for name, change in changes.items() if name not in open_choices and name not in without]
