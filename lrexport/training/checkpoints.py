"""Checkpoints of a run's training: whole files named by their content's hash, the last two and the best of each stage.

While a stage's loss is not sound, the last checkpoint that sound losses followed stays beside them: it is what remains where
training diverges, since weights are often blown up long before the loss is no number.

``STAGE-EPOCH-STEP.HASH.safetensors`` is everything that a stage needs to go on as if it had never stopped: weights,
optimiser, and numbers in the file's metadata. Order, augmentation, dropout and learning rate are functions of epoch and
step, so no random state is among it. ``STAGE-best.HASH.safetensors`` are the weights that are best so far, and
``STAGE-done.HASH.safetensors`` those that a finished stage ended with. A file that is not what its name says is passed
over for the one before it.
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
# By the optimiser's kind: what it keeps for a parameter.
_KEEPS = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}}
_PLAIN = ("epoch", "step", "batch_size", "loss_sum", "images", "best_top1", "log_bytes")


@dataclass
class StageState:
    """Where a stage stands: ``step`` steps of ``batch_size`` images of ``epoch``, from 0, are done.

    ``loss_sum`` over ``images`` is the epoch's mean loss so far. ``optimizer`` is what an optimiser keeps for each
    parameter, by its name; ``best`` are the weights of the best epoch; ``extra`` is what the loss that is added keeps.
    """

    epoch: int = 0
    step: int = 0
    batch_size: int = 0
    loss_sum: float = 0.0
    images: int = 0
    best_top1: float = -1.0
    network: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, Tensor] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    log_bytes: int = 0


@dataclass
class Checkpoints:
    """Those of one ``stage`` of a run.

    The run's file ``log`` is cut back to what it was when a checkpoint is taken up; of several processes one ``writes``.
    """

    run: Path
    stage: str
    log: str | None = None
    writes: bool = True
    _best: tuple[float, str] | None = None  # what was written last as the best
    # Checkpoints with the best that they need: the one written or taken up last, and the last that sound losses followed.
    _last: tuple[str, str | None] | None = None
    _good: tuple[str, str | None] | None = None

    @property
    def folder(self) -> Path:
        """Where they are, which need not be there yet."""
        return self.run / CHECKPOINTS

    def load(self) -> StageState | None:
        """The last whole state, None where there is none."""
        for path in sorted(self.folder.glob(f"{self.stage}-[0-9]*{_SUFFIX}"), reverse=True):
            whole = _read_whole(path)
            if whole is None:
                continue
            held, numbers = whole
            best = None
            if numbers["best"] is not None:
                kept = _read_whole(self.folder / numbers["best"])
                if kept is None:
                    continue
                best = kept[0]
                self._best = (numbers["best_top1"], numbers["best"])
            self._last, good = (path.name, numbers["best"]), numbers.get("good")
            self._good = (good[0], good[1]) if good else None
            if self.log is not None and self.writes:
                run_folder.truncate(self.run, self.log, numbers["log_bytes"])
            plain = {name: numbers[name] for name in _PLAIN}
            network, extra = _under("network.", held), _under("extra.", held)
            kept_by_optimizer = _optimizer(held, numbers["optimizer"])
            return StageState(**plain, network=network, optimizer=kept_by_optimizer, best=best, extra=extra)
        return None

    def save(self, state: StageState, sound: bool = True) -> None:
        """Write ``state``, and only then remove what it makes superfluous. Raises DeviceError where the disk is full.

        ``sound`` says that the losses since the checkpoint before were: that one is good then, or where there is no other.
        """
        if not self.writes:
            return
        run_folder.make_folder(self.run, CHECKPOINTS)
        best = self._save_best(state)
        place = f"{state.epoch:04d}-{state.step:07d}"
        if sound or self._good is None:
            self._good = self._last
        if self._good is not None and _place(self._good[0]) >= f"{self.stage}-{place}":
            self._good = None  # of an epoch that began again, see below
        held = {f"network.{name}": value for name, value in state.network.items()}
        held |= {f"extra.{name}": value for name, value in state.extra.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for name, entries in state.optimizer.items():
            for entry, value in entries.items():
                if isinstance(value, Tensor):
                    held[f"optimizer.{entry}.{name}"] = value
                else:
                    scalars.setdefault(name, {})[entry] = value
        log = self.run / self.log if self.log is not None else None
        state.log_bytes = log.stat().st_size if log is not None and log.exists() else 0
        plain = {name: getattr(state, name) for name in _PLAIN}
        numbers = {**plain, "best": best, "good": self._good, "optimizer": scalars}
        written = self._write(place, held, numbers)
        self._last = written, best
        # What an earlier life left further on was damaged, or of an epoch that began again with batches of another size.
        there = sorted(self.folder.glob(f"{self.stage}-[0-9]*{_SUFFIX}"))
        before = [path.name for path in there if _place(path.name) < _place(written)]
        kept = {written, *before[::-1][: _KEPT - 1], *(self._good or ())}
        # The best of before stays for the checkpoint of before.
        bests = sorted(self.folder.glob(f"{self.stage}-best.*{_SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
        self._remove(old.name for old in (*there, *bests[:-_KEPT]) if old.name not in kept)

    def fall_back(self) -> None:
        """Remove what came after the last good checkpoint: training diverged."""
        if not self.writes or self._good is None:
            return
        good, best = self._good
        names = [path.name for path in self.folder.glob(f"{self.stage}-*{_SUFFIX}")]
        self._remove(name for name in names if _place(name) > _place(good) and name != best)

    def _save_best(self, state: StageState) -> str | None:
        if state.best is None:
            return None
        if self._best is None or self._best[0] != state.best_top1:
            self._best = (state.best_top1, self._write("best", state.best, {}))
        return self._best[1]

    def finish(self, network: nn.Module) -> None:
        """Keep what the finished stage ended with, and nothing else of it."""
        if not self.writes:
            return
        run_folder.make_folder(self.run, CHECKPOINTS)
        done = self._write("done", network.state_dict(), {})
        self._remove(old.name for old in self.folder.glob(f"{self.stage}-*{_SUFFIX}") if old.name != done)

    def finished(self) -> dict[str, Tensor] | None:
        """The weights that the stage ended with, None where it has not."""
        for path in self.folder.glob(f"{self.stage}-done.*{_SUFFIX}"):
            whole = _read_whole(path)
            if whole is not None:
                return whole[0]
        return None

    def _write(self, name: str, held: Mapping[str, Tensor], numbers: dict[str, Any]) -> str:
        content = tensors.packed(held, {_NUMBERS: json.dumps(numbers)})
        full = f"{self.stage}-{name}.{hashlib.sha256(content).hexdigest()[:_HASH]}{_SUFFIX}"
        run_folder.write_bytes(self.run, f"{CHECKPOINTS}/{full}", content)
        return full

    def _remove(self, names: Iterable[str]) -> None:
        run_folder.remove(self.run, *(f"{CHECKPOINTS}/{name}" for name in names))


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, dict[str, Any]]:
    """What the optimiser keeps for each parameter of the network, by its name."""
    return {name: dict(optimizer.state[each]) for name, each in network.named_parameters() if each in optimizer.state}


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> bool:
    """Put ``state`` into an optimiser of the network's parameters, but for parameters that have another shape now.

    Its tensors get the layout of theirs: sums over tensors of another layout could round differently. Adam's count of steps
    stays where it was. False, and nothing is changed, where ``state`` is another kind of optimiser's.
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


def _place(name: str) -> str:
    """Stage, epoch and step in a checkpoint's name."""
    return name.split(".")[0]


def _read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and numbers of a file that is what its name says, else None."""
    try:
        content = run_folder.read_bytes(path.parent.parent, f"{path.parent.name}/{path.name}")
    except InputError:
        return None
    if hashlib.sha256(content).hexdigest()[:_HASH] != path.name.split(".")[-2]:
        return None
    held, metadata = tensors.unpacked(content)
    return held, json.loads(metadata.get(_NUMBERS, "{}"))


def _under(prefix: str, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


def _optimizer(held: Mapping[str, Tensor], scalars: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    state: dict[str, dict[str, Any]] = {name: dict(entries) for name, entries in scalars.items()}
    for full, value in held.items():
        if full.startswith("optimizer."):
            _, entry, name = full.split(".", 2)
            state.setdefault(name, {})[entry] = value
    return state
