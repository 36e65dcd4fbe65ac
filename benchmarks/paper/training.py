"""Networks that `lrexport compress` does not make, trained and scored as it trains and scores its own.

The loop, the images and the options are those of a run of the study; only where the network comes from is the table's own
affair. Steps are scaled (docs/training.md) where a layer is a pair of lrexport's names, in all others plain.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.paper.study import SHAPE, Row, Study
from lrexport.artifacts import files, run_folder, tensors
from lrexport.artifacts.run_files import LOG, MODEL, MODEL_ONNX
from lrexport.config.compression import TrainConfig
from lrexport.data.images import Splits, draw
from lrexport.errors import Stopped
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.measure.environment import environment
from lrexport.networks.building import resolve
from lrexport.networks.weights import load_weights
from lrexport.plan import Plan
from lrexport.runs.starting_point import load_svd
from lrexport.tasks.scoring import score
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric, ran_on, to_fast_layout
from lrexport.training.loops import train_stage
from lrexport.training.stage import Stage

_BATCH = 250  # images at a time for BatchNorm, as in lrexport
_ROW = "row.json"
_TRUNCATED = "as-trained"  # under WORK: not in the runs, whose records know of no such file
# What a stage takes over from the record of the study's start.
_OPTIONS = ("batch_size", "optimizer", "scale_gradients", "weight_decay", "schedule", "warmup_epochs", "checkpoint_minutes")


def start_network(study: Study) -> nn.Module:
    """The dense network that all rows start from."""
    network = resolve(study.model, SHAPE).build()
    load_weights(network, study.start())
    return network


@dataclass(frozen=True)
class Training:
    """How ``make`` is trained. It must give the same network each time: a training that was stopped goes on in another one.

    ``repair`` re-estimates BatchNorm first, as after pruning; without ``keep_best`` the last epoch counts. ``options`` say
    what else differs from the study's start.
    """

    make: Callable[[], nn.Module]
    epochs: int
    lr: float
    distill: float = 0.0
    keep_best: bool = True
    repair: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> dict[str, Any]:
        """What may not change while a training goes on."""
        own = {name: value for name, value in vars(self).items() if name not in ("make", "options")}
        return {**self.options, **own}


def dense(study: Study, epochs: int) -> Iterator[Row]:
    """The start, and the dense network after ``epochs`` more: what rows of as many epochs are compared with.

    It is that of its last epoch. Its best by held-out images, which the published weights have seen, is the start.
    """
    yield study.start_row() | {"reference": "dense, at the start"}
    like = Training(partial(start_network, study), epochs, study.schedule.whole_lr, keep_best=False, repair=False)
    yield finished(study, dense_name(epochs), like) | {"reference": "dense, trained on"}


def dense_name(epochs: int) -> str:
    """The folder of the dense network after ``epochs`` more."""
    return f"dense-{epochs}"


def finished(study: Study, name: str, training: Training) -> Row:
    """The row of what :func:`trained` trains, with the test images, which are looked at the first time only."""
    folder, row = study.work / name, trained(study, name, training)
    if "top1" not in row:
        network, fabric = training.make(), make_fabric()
        network.load_state_dict(tensors.load(folder / MODEL))
        to_fast_layout(network.to(fabric.device), SHAPE).eval()
        found = score(network, study.splits().test, fabric.device, "test")
        row |= {"top1": found.top1, "n": found.n}
        files.write_json(folder / _ROW, row)
    return row


def trained(study: Study, name: str, training: Training) -> Row:
    """Train, or read what an earlier life has finished; the row sees held-out images only."""
    folder, epochs = study.work / name, training.epochs
    study.note(name, training.asked)
    if (folder / _ROW).is_file():
        return _read(folder)
    config = {**vars(TrainConfig(study.model)), **study.record("start").config, **training.options}
    network = training.make()
    files.make_run_folder(folder)
    fabric, splits = make_fabric(), study.splits()
    to_fast_layout(network.to(fabric.device), SHAPE)
    pruned = _repaired(network, splits, config) if training.repair else {}

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            run_folder.append_json_line(folder, LOG, event)
            print(f"{name}: epoch {event['epoch']}/{epochs}, held-out {100 * event['heldout_top1']:.1f} %", flush=True)

    options = {option: config[option] for option in _OPTIONS} | {"milestones": tuple(config["milestones"])}
    how = {"distill": training.distill, "keep_best": training.keep_best, "seed": study.seed}
    stage = Stage("fine-tune", epochs, training.lr, **how, **options)
    checkpoints = Checkpoints(folder, stage.name, LOG)
    teacher = start_network(study) if training.distill else None
    try:
        train_stage(network, splits, stage, fabric, tell, teacher=teacher, checkpoints=checkpoints)
    except Stopped as stopped:
        raise SystemExit(f"{name}: {stopped.message}; the same command goes on") from stopped
    tensors.save(folder / MODEL, network.state_dict())
    export_onnx(network, folder / MODEL_ONNX, SHAPE)
    figures = {
        "heldout_top1": score(network, splits.heldout, fabric.device, "heldout").top1,
        "macs": count_torch_macs(network, SHAPE).total,
        "dense_macs": count_torch_macs(start_network(study), SHAPE).total,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "pruned": pruned,
        "lr": training.lr,
        "optimizer": config["optimizer"],
        "distill": training.distill,
    }
    files.write_json(folder / _ROW, study.described(name, figures, environment() | ran_on(fabric)))
    for checkpoint in checkpoints.folder.iterdir():
        checkpoint.unlink()
    return _read(folder)


def truncated_as_trained(study: Study, source: str, plan: Plan) -> float:
    """Test top-1 of an SVD-trained run pruned to a plan's ranks by the s that training left, U and V orthogonal or not.

    That is the paper's truncation. lrexport's own decomposes the composed kernels anew, exactly, and cannot tell what
    orthogonality is for. The test images are looked at the first time only.
    """
    kept = study.work / _TRUNCATED / f"{source}.json"
    if not kept.is_file():
        svd = load_svd(TrainConfig(study.model), study.work / source)
        top1 = score(fold(svd, plan).eval(), study.splits().test, torch.device("cpu"), "test").top1
        kept.parent.mkdir(exist_ok=True)
        files.write_json(kept, {"top1": top1})
    return float(json.loads(kept.read_text(encoding="utf-8"))["top1"])


def _read(folder: Path) -> Row:
    row: Row = json.loads((folder / _ROW).read_text(encoding="utf-8"))
    return row


def _repaired(network: nn.Module, splits: Splits, config: dict[str, Any]) -> dict[str, float]:
    """Held-out top-1 before and after BatchNorm is re-estimated; taken back where it does not help, as lrexport does."""
    device = next(network.parameters()).device

    def heldout() -> float:
        return score(network, splits.heldout, device, "heldout").top1

    before, found = copy.deepcopy(network.state_dict()), {"heldout_top1": heldout()}
    images = draw(splits.train, config["batchnorm_images"], config["seed"])
    reestimate_batchnorm(network, (batch for batch, _ in images.batches(_BATCH, device)))
    found["heldout_top1_after_batchnorm"] = heldout()
    if found["heldout_top1_after_batchnorm"] < found["heldout_top1"]:
        network.load_state_dict(before)
    return found
