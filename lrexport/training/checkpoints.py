"""Checkpoints of a run's training: files named by the hash of their content, the last two and the best of each stage.

While a stage's loss is not sound, the last checkpoint that was followed by sound losses is kept as well. If training
diverges, it is the one that remains, because weights often explode long before the loss becomes NaN.

``STAGE-EPOCH-STEP.HASH.safetensors`` has everything that a stage needs to continue as if it had not stopped: weights,
optimiser, and numbers in the file's metadata. Order, augmentation, dropout and learning rate are functions of epoch and
step, so no random state is needed. ``STAGE-best.HASH.safetensors`` has the best weights so far, and
``STAGE-done.HASH.safetensors`` the final weights of a finished stage. A file whose content does not match its name is
skipped, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrexport.artifacts import run_folder, tensors
from lrexport.artifacts.run_files import CHECKPOINTS
from lrexport.errors import InputError

_KEPT = 2
_HASH = 16  # hex digits in a name
_SUFFIX = ".safetensors"
_NUMBERS = "lrexport"  # the metadata's key
# The state that each optimiser has for a parameter.
_KEEPS = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}}
_PLAIN = ("epoch", "step", "batch_size", "loss_sum", "images", "best_score", "log_bytes")
_FORMERLY = {"best_score": "best_top1"}  # names in checkpoints of earlier versions


@dataclass
class StageState:
    """The state of a stage: ``step`` steps of ``batch_size`` images are done in ``epoch``, which counts from 0.

    ``loss_sum`` ÷ ``images`` is the epoch's mean loss so far. ``optimizer`` has the optimiser's state by parameter name,
    ``best`` the weights of the best epoch, and ``extra`` the state of the additional loss.
    """

    epoch: int = 0
    step: int = 0
    batch_size: int = 0
    loss_sum: float = 0.0
    images: int = 0
    best_score: float = -1.0  # of no meaning before the first score
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    log_bytes: int = 0


@dataclass
class Checkpoints:
    """The checkpoints of one ``stage`` of a run.

    Loading a checkpoint truncates the run's file ``log`` to its length at that time. Only one of several processes
    ``writes``.
    """

    run: Path
    stage: str
    log: str | None = None
    writes: bool = True
    _best: tuple[float, str] | None = None  # score and name of the best weights written last
    # Checkpoints with the best weights that they refer to: the last written or loaded, and the last before sound losses.
    _last: tuple[str, str | None] | None = None
    _good: tuple[str, str | None] | None = None

    @property
    def folder(self) -> Path:
        """Their folder, which may not exist yet."""
        return self.run / CHECKPOINTS

    def load(self) -> StageState | None:
        """The last intact state, or None."""
        for path in sorted(self.folder.glob(f"{self.stage}-[0-9]*{_SUFFIX}"), reverse=True):
            intact = _read_intact(path)
            if intact is None:
                continue
            values, numbers = intact[0], _as_now(intact[1])
            best = None
            if numbers["best"] is not None:
                intact_best = _read_intact(self.folder / numbers["best"])
                if intact_best is None:
                    continue
                best = intact_best[0]
                self._best = (numbers["best_score"], numbers["best"])
            self._last, good = (path.name, numbers["best"]), numbers.get("good")
            self._good = (good[0], good[1]) if good else None
            if self.log is not None and self.writes:
                run_folder.truncate(self.run, self.log, numbers["log_bytes"])
            plain = {name: numbers[name] for name in _PLAIN}
            network, extra = _under("network.", values), _under("extra.", values)
            optimizer = _optimizer(values, numbers["optimizer"])
            return StageState(**plain, network=network, optimizer=optimizer, best=best, extra=extra)
        return None

    def save(self, state: StageState, sound: bool = True) -> None:
        """Write ``state``, and only then remove obsolete checkpoints. Raises DeviceError if the disk is full.

        ``sound``: the losses since the previous checkpoint were sound, so that one is good.
        """
        if not self.writes:
            return
        run_folder.make_folder(self.run, CHECKPOINTS)
        best = self._save_best(state)
        place = f"{state.epoch:04d}-{state.step:07d}"
        if sound or self._good is None:
            self._good = self._last
        if self._good is not None and _place(self._good[0]) >= f"{self.stage}-{place}":
            self._good = None  # its epoch has started again, see below
        values = {f"network.{name}": value for name, value in state.network.items()}
        values |= {f"extra.{name}": value for name, value in state.extra.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for name, entries in state.optimizer.items():
            for entry, value in entries.items():
                if isinstance(value, Tensor):
                    values[f"optimizer.{entry}.{name}"] = value
                else:
                    scalars.setdefault(name, {})[entry] = value
        log = self.run / self.log if self.log is not None else None
        state.log_bytes = log.stat().st_size if log is not None and log.exists() else 0
        plain = {name: getattr(state, name) for name in _PLAIN}
        numbers = {**plain, "best": best, "good": self._good, "optimizer": scalars}
        written = self._write(place, values, numbers)
        self._last = written, best
        # Later checkpoints from before an interruption are damaged, or their epoch started again with another batch size.
        there = sorted(self.folder.glob(f"{self.stage}-[0-9]*{_SUFFIX}"))
        before = [path.name for path in there if _place(path.name) < _place(written)]
        kept = {written, *before[::-1][: _KEPT - 1], *(self._good or ())}
        # The previous checkpoint refers to the previous best weights.
        bests = sorted(self.folder.glob(f"{self.stage}-best.*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        self._remove(old.name for old in (*there, *bests[:-_KEPT]) if old.name not in kept)

    def fall_back(self) -> None:
        """After training has diverged, remove all checkpoints after the last good one."""
        if not self.writes or self._good is None:
            return
        good, best = self._good
        names = [path.name for path in self.folder.glob(f"{self.stage}-*{_SUFFIX}")]
        self._remove(name for name in names if _place(name) > _place(good) and name != best)

    def _save_best(self, state: StageState) -> str | None:
        if state.best is None:
            return None
        if self._best is None or self._best[0] != state.best_score:
            self._best = (state.best_score, self._write("best", state.best, {}))
        return self._best[1]

    def finish(self, network: nn.Module) -> None:
        """Save the final weights of the stage, and remove its other checkpoints."""
        if not self.writes:
            return
        run_folder.make_folder(self.run, CHECKPOINTS)
        done = self._write("done", network.state_dict(), {})
        self._remove(old.name for old in self.folder.glob(f"{self.stage}-*{_SUFFIX}") if old.name != done)

    def finished(self) -> dict[str, Tensor] | None:
        """The final weights of the stage, None if it is unfinished."""
        for path in self.folder.glob(f"{self.stage}-done.*{_SUFFIX}"):
            intact = _read_intact(path)
            if intact is not None:
                return intact[0]
        return None

    def _write(self, name: str, values: Mapping[str, Tensor], numbers: dict[str, Any]) -> str:
        content = tensors.packed(values, {_NUMBERS: json.dumps(numbers)})
        full = f"{self.stage}-{name}.{hashlib.sha256(content).hexdigest()[:_HASH]}{_SUFFIX}"
        run_folder.write_bytes(self.run, f"{CHECKPOINTS}/{full}", content)
        return full

    def _remove(self, names: Iterable[str]) -> None:
        run_folder.remove(self.run, *(f"{CHECKPOINTS}/{name}" for name in names))


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, dict[str, Any]]:
    """The optimiser's state for each parameter of the network, by name."""
    return {name: dict(optimizer.state[each]) for name, each in network.named_parameters() if each in optimizer.state}


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> bool:
    """Put ``state`` into an optimiser of the network's parameters, except for parameters whose shape has changed.

    Tensors get the memory layout of their parameter, because sums over another layout could round differently; Adam's step
    counter is not moved. Returns False, without changes, if ``state`` is of another type of optimiser.
    """
    keeps = next(names for kind, names in _KEEPS.items() if isinstance(optimizer, kind))
    if any(not entries.keys() <= keeps for entries in state.values()):
        return False
    for name, parameter in network.named_parameters():
        entries = state.get(name, {})
        if any(isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape for value in entries.values()):
            continue
        for entry, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and entry != "step":
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            optimizer.state[parameter][entry] = value
    return True


def _as_now(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a checkpoint by the names of this version."""
    return {**{now: numbers[before] for now, before in _FORMERLY.items() if before in numbers}, **numbers}


def _place(name: str) -> str:
    """Stage, epoch and step in a checkpoint's name."""
    return name.split(".")[0]


def _read_intact(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and numbers of a file whose content has the hash in its name, else None."""
    try:
        content = run_folder.read_bytes(path.parent.parent, f"{path.parent.name}/{path.name}")
    except InputError:
        return None
    if hashlib.sha256(content).hexdigest()[:_HASH] != path.name.split(".")[-2]:
        return None
    values, metadata = tensors.unpacked(content)
    return values, json.loads(metadata.get(_NUMBERS, "{}"))


def _under(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _optimizer(values: Mapping[str, Tensor], scalars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    state: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in scalars.items()}
    for full, value in values.items():
        if full.startswith("optimizer."):
            _, entry, name = full.split(".", 2)
            state.setdefault(name, {})[entry] = value
    return state
