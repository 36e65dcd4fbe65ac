"""Networks that `lrexport compress` does not make, trained and scored as it trains and scores its own.

The same loop, images and options: only where the network comes from is the table's own affair.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.paper.study import Study
from lrexport.artifacts import files, tensors
from lrexport.data.images import Splits, draw, hold_out
from lrexport.data.resolve import load_data
from lrexport.errors import Stopped
from lrexport.export.onnx_export import export_onnx
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.resolve import resolve
from lrexport.models.weights import load_weights
from lrexport.record import CHECKPOINTS, LOG, MODEL, MODEL_ONNX, Record
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric, to_fast_layout
from lrexport.training.loops import train_stage
from lrexport.training.scoring import reestimate_batchnorm, score
from lrexport.training.stage import Stage

SHAPE = (3, 32, 32)
Make = Callable[[], nn.Module]
_BATCH = 250  # images at a time for BatchNorm, as in lrexport
_ROW = "row.json"
# What a stage takes over from the record of a run.
_OPTIONS = ("batch_size", "optimizer", "scale_gradients", "weight_decay", "schedule", "warmup_epochs", "checkpoint_minutes")


def start_network(study: Study) -> nn.Module:
    """The dense network that all rows start from."""
    network = resolve(study.model, SHAPE).build()
    load_weights(network, study.start())
    return network


def trained(
    study: Study, name: str, make: Make, like: Record, *, lr: float, distill: float = 0.0, keep_best: bool = True
) -> dict[str, Any]:
    """Train what ``make`` gives as the run ``like`` was trained; its row without the test images, of which it sees none.

    Read, where an earlier life has finished it. ``make`` must give the same network each time: a stopped training goes on
    in another one.
    """
    folder, epochs = study.work / name, study.schedule.epochs
    if (folder / _ROW).is_file():
        return _read(folder)
    network = make()
    files.make_run_folder(folder)
    fabric, splits = make_fabric(), _splits(study, like)
    to_fast_layout(network.to(fabric.device))
    pruned = _repaired(network, splits, like)

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            files.append_json_line(folder / LOG, event)
            print(f"{name}: epoch {event['epoch']}/{epochs}, held-out {100 * event['heldout_top1']:.1f} %", flush=True)

    options = {option: like.config[option] for option in _OPTIONS} | {"milestones": tuple(like.config["milestones"])}
    stage = Stage("fine-tune", epochs, lr, distill=distill, keep_best=keep_best, seed=study.seed, **options)
    checkpoints = Checkpoints(folder / CHECKPOINTS, stage.name, folder / LOG)
    teacher = start_network(study) if distill else None
    try:
        train_stage(network, splits, stage, fabric, tell, teacher=teacher, checkpoints=checkpoints)
    except Stopped as stopped:
        raise SystemExit(f"{name}: {stopped.message}; the same command goes on") from stopped
    tensors.save(folder / MODEL, network.state_dict())
    export_onnx(network, folder / MODEL_ONNX, SHAPE)
    figures = {
        "heldout_top1": score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1,
        "macs": count_torch_macs(network, SHAPE).total,
        "dense_macs": count_torch_macs(start_network(study), SHAPE).total,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "pruned": pruned,
        "lr": lr,
    }
    files.write_json(folder / _ROW, study.described(name, figures))
    for checkpoint in checkpoints.folder.iterdir():
        checkpoint.unlink()
    return _read(folder)


def tested(study: Study, name: str, make: Make, like: Record) -> dict[str, Any]:
    """The row of what was trained, with the test images, which are looked at the first time only."""
    folder = study.work / name
    row = _read(folder)
    if "top1" not in row:
        network, fabric = make(), make_fabric()
        network.load_state_dict(tensors.load(folder / MODEL))
        to_fast_layout(network.to(fabric.device)).eval()
        found = score(network, _splits(study, like).test, fabric.device, "test", fabric=fabric)
        row |= {"top1": found.top1, "n": found.n}
        files.write_json(folder / _ROW, row)
    return row


def _read(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / _ROW).read_text(encoding="utf-8"))
    return row


def _splits(study: Study, like: Record) -> Splits:
    return hold_out(load_data(study.data, SHAPE), like.config["heldout"], seed=study.seed)


def _repaired(network: nn.Module, splits: Splits, like: Record) -> dict[str, float]:
    """Held-out top-1 before and after BatchNorm is re-estimated; taken back where it does not help, as lrexport does."""
    device = next(network.parameters()).device

    def heldout() -> float:
        return score(network, splits.heldout, device, "heldout").top1

    before, found = copy.deepcopy(network.state_dict()), {"heldout_top1": heldout()}
    images = draw(splits.train, like.config["batchnorm_images"], like.config["seed"])
    reestimate_batchnorm(network, images.batches(_BATCH, device))
    found["heldout_top1_after_batchnorm"] = heldout()
    if found["heldout_top1_after_batchnorm"] < found["heldout_top1"]:
        network.load_state_dict(before)
    return found
