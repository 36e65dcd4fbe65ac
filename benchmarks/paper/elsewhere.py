"""Networks that `lrexport compress` does not make: pruned architectures from scratch, and what other tools give.

They are trained by the same loop, on the same images, with the same options as all other rows, and scored alike.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.paper.other_tools import SHAPE, TOOLS, ToolAbsentError, start_network
from benchmarks.paper.study import Study
from benchmarks.paper.tables import GOALS, Row
from lrexport.artifacts import files, tensors
from lrexport.data.images import Splits, draw, hold_out
from lrexport.data.resolve import load_data
from lrexport.errors import Stopped
from lrexport.lowrank.fold import fold_structure
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.resolve import resolve
from lrexport.progress import is_stopped
from lrexport.record import CHECKPOINTS, LOG, MODEL, RECORD, Plan, Record
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric, to_fast_layout
from lrexport.training.loops import train_stage
from lrexport.training.scoring import reestimate_batchnorm, score
from lrexport.training.stage import Stage

# What begins at random needs no care for weights that are good already. Adam's rate is the paper's own for both.
SCRATCH_LR = {"sgd": 0.1, "adam": 0.001}
_BATCH = 250  # images at a time for BatchNorm, as in lrexport
# What a stage takes over from the record of a run.
_OPTIONS = ("batch_size", "optimizer", "scale_gradients", "weight_decay", "schedule", "warmup_epochs", "checkpoint_minutes")


def from_scratch(study: Study) -> Iterator[Row]:
    """Table 2: architectures that pruning found, with weights drawn anew, against the same with the weights that it left."""
    for share in GOALS:
        ours = _ours(study, share)
        record = study.record(ours)
        yield study.row(ours) | {"weights": "kept", "share": share}
        lr = SCRATCH_LR[record.config["optimizer"]]
        name = f"scratch-{share:g}-{study.schedule.epochs}"
        row = _train(study, name, partial(_drawn_anew, study, record.plan), record, lr=lr, distill=0.0)
        yield row | {"weights": "drawn anew", "share": share}


def other_tools(study: Study) -> Iterator[Row]:
    """Torch-Pruning, tensorly's Tucker-2 and AIMET, from the same start, to the same MACs, with the same fine-tuning."""
    epochs = study.schedule.epochs
    yield study.dense(epochs) | {"tool": "dense"}
    for share in GOALS:
        ours = _ours(study, share)
        record = study.record(ours)
        yield study.row(ours) | {"tool": "lrexport", "share": share, "distill": record.config["distill"]}
        for tool, make in TOOLS.items():
            for distill in (0.0, 0.5):
                name = f"{tool}-{share:g}-{epochs}" + ("-distilled" if distill else "")
                try:
                    row = _train(study, name, partial(make, study, share), record, record.config["lr"], distill)
                except ToolAbsentError as absent:
                    print(f"{name} is left out: {absent}", file=sys.stderr)
                    continue
                yield row | {"tool": tool, "share": share, "distill": distill}


def _ours(study: Study, share: float) -> str:
    """Name of the run of the table `recipe` that other networks are compared with."""
    name = f"ours-{share:g}-{study.schedule.epochs}"
    if not (study.work / name / RECORD).is_file() or is_stopped(study.work / name):
        raise SystemExit(f"{name} is not there yet: make the table recipe first")
    return name


def _drawn_anew(study: Study, plan: Plan) -> nn.Module:
    torch.manual_seed(study.seed)
    return fold_structure(resolve(study.model, SHAPE).build(), plan)


def _train(study: Study, name: str, make: Callable[[], nn.Module], like: Record, lr: float, distill: float) -> Row:
    """Train what ``make`` gives as the run ``like`` was trained, and score it; or read what an earlier life left.

    ``make`` must give the same network each time: a stopped training goes on in another one.
    """
    folder, epochs = study.work / name, study.schedule.epochs
    kept = folder / "row.json"
    if kept.is_file():
        found: Row = json.loads(kept.read_text(encoding="utf-8"))
        return found
    network = make()
    files.make_run_folder(folder)
    fabric, splits = make_fabric(), hold_out(load_data(study.data, SHAPE), like.config["heldout"], seed=study.seed)
    to_fast_layout(network.to(fabric.device))
    pruned = _repaired(network, splits, fabric, like)

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            files.append_json_line(folder / LOG, event)
            print(f"{name}: epoch {event['epoch']}/{epochs}, held-out {100 * event['heldout_top1']:.1f} %", flush=True)

    options = {option: like.config[option] for option in _OPTIONS} | {"milestones": tuple(like.config["milestones"])}
    stage = Stage("fine-tune", epochs, lr, distill=distill, seed=study.seed, **options)
    checkpoints = Checkpoints(folder / CHECKPOINTS, stage.name, folder / LOG)
    try:
        train_stage(
            network, splits, stage, fabric, tell, teacher=start_network(study) if distill else None, checkpoints=checkpoints
        )
    except Stopped as stopped:
        raise SystemExit(f"{name}: {stopped.message}; the same command goes on") from stopped
    tensors.save(folder / MODEL, network.state_dict())
    figures = {
        "top1": score(network, splits.test, fabric.device, "test", fabric=fabric).top1,
        "n": len(splits.test),
        "heldout_top1": score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1,
        "macs": count_torch_macs(network, SHAPE).total,
        "dense_macs": count_torch_macs(start_network(study), SHAPE).total,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "pruned": pruned,
    }
    row = study.described(name, figures)
    files.write_json(kept, row)
    for checkpoint in checkpoints.folder.iterdir():
        checkpoint.unlink()
    return row


def _repaired(network: nn.Module, splits: Splits, fabric: Any, like: Record) -> dict[str, float]:
    """Held-out top-1 before and after BatchNorm is re-estimated; taken back where it does not help, as lrexport does."""

    def heldout() -> float:
        return score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1

    before, found = copy.deepcopy(network.state_dict()), {"heldout_top1": heldout()}
    images = draw(splits.train, like.config["batchnorm_images"], like.config["seed"])
    reestimate_batchnorm(network, images.batches(_BATCH, fabric.device))
    found["heldout_top1_after_batchnorm"] = heldout()
    if found["heldout_top1_after_batchnorm"] < found["heldout_top1"]:
        network.load_state_dict(before)
    return found
