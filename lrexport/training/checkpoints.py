"""Checkpoints of a run: the weights after each epoch, atomically, the last two kept."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lrexport.artifacts import files, tensors
from lrexport.record import CHECKPOINTS

_KEPT = 2


def save_checkpoint(run: Path, stage: str, epoch: int, network: nn.Module) -> Path:
    """Write ``run/checkpoint/STAGE-EPOCH.safetensors`` and remove all but the last two of the stage."""
    folder = files.make_run_folder(run / CHECKPOINTS)
    path = folder / f"{stage}-{epoch:04d}.safetensors"
    tensors.save(path, network.state_dict())
    for old in sorted(folder.glob(f"{stage}-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return path


def clear_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a run that is finished."""
    for path in (run / CHECKPOINTS).glob("*-*.safetensors"):
        path.unlink()
