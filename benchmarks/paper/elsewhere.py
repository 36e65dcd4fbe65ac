"""Networks that `lrexport compress` does not make: pruned architectures from scratch, and what other tools give.

They are trained by the same loop, on the same images, with the same options as all other rows, and scored alike. README.md
beside this says how to install the tools.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import machine
from benchmarks.paper.study import Study
from benchmarks.paper.tables import GOALS, Row
from lrexport.artifacts import files, tensors
from lrexport.data.images import Splits, draw, hold_out
from lrexport.data.resolve import load_data
from lrexport.errors import Stopped
from lrexport.lowrank.fold import fold_structure
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.cifar_resnet import BasicBlock
from lrexport.models.resolve import resolve
from lrexport.models.weights import load_weights
from lrexport.progress import is_stopped
from lrexport.record import CHECKPOINTS, LOG, MODEL, RECORD, Plan, Record
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric, to_fast_layout
from lrexport.training.loops import train_stage
from lrexport.training.scoring import reestimate_batchnorm, score
from lrexport.training.stage import Stage

SHAPE = (3, 32, 32)
# What begins at random needs no care for weights that are good already. Adam's rate is the paper's own for both.
SCRATCH_LR = {"sgd": 0.1, "adam": 0.001}
_BATCH = 250  # images at a time for BatchNorm, as in lrexport
_STEPS = 200  # in which Torch-Pruning would remove everything
_HALVINGS = 10  # of the interval in which Tucker-2's share of channels is searched
# What a stage takes over from the record of a run.
_OPTIONS = ("batch_size", "optimizer", "scale_gradients", "weight_decay", "schedule", "warmup_epochs", "checkpoint_minutes")


class ToolAbsentError(Exception):
    """A tool that is not installed."""


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


def torch_pruning(study: Study, share: float) -> nn.Module:
    """Whole channels removed by Torch-Pruning: those of least group magnitude, one after the other, until the MACs are met.

    Nothing is rounded to multiples of four or eight, which its README advises for speed: the budget here is one of MACs.
    """
    try:
        import torch_pruning as tp
    except ImportError as error:
        raise ToolAbsentError("pip install torch-pruning") from error

    network = _dense(study)
    most = share * count_torch_macs(network, SHAPE).total
    with_followed_shortcuts(network)
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, *SHAPE),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        # Against over-pruning, as the README has it: by global pruning alone the first stage is left with one channel.
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=[network.linear],
    )
    while pruner.current_step < _STEPS:
        for group in pruner.step(interactive=True):
            group.prune()
            if _macs_without_shortcuts(network) <= most:
                return with_free_shortcuts(network)
    raise AssertionError("pruning came to its end above the budget")


class FollowedBlock(nn.Module):
    """A block of a CIFAR ResNet whose shortcut is a module of its own."""

    def __init__(self, block: BasicBlock, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Selection(nn.Module):
    """Every ``stride``-th pixel; channel i is channel ``source[i]`` of the input, or zeros where that is one too many."""

    def __init__(self, stride: tuple[int, ...], source: Tensor) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("source", source)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride[0], :: self.stride[1]], (0, 0, 0, 0, 0, 1))[:, self.source]


def with_followed_shortcuts(network: nn.Module) -> None:
    """Write option-A shortcuts as 1×1 convolutions of zeros and ones, the same function, in place.

    Torch-Pruning's graph takes the padding of channels for an operator from each channel to that of the same number: it
    ties channels of all three stages that have nothing to do with each other, and the network no longer runs.
    """
    for name, block in list(network.named_modules()):
        if isinstance(block, BasicBlock) and block.new_channels:
            channels, before = block.conv1.in_channels, block.new_channels // 2
            shortcut = nn.Conv2d(channels, channels + block.new_channels, 1, block.stride, bias=False)
            nn.init.zeros_(shortcut.weight)
            shortcut.weight.data[before : before + channels, :, 0, 0] = torch.eye(channels)
            network.set_submodule(name, FollowedBlock(block, shortcut))


def with_free_shortcuts(network: nn.Module) -> nn.Module:
    """The network itself, such convolutions made selections again, which multiply nothing."""
    for block in network.modules():
        if isinstance(block, FollowedBlock) and isinstance(block.shortcut, nn.Conv2d):
            weight = block.shortcut.weight.detach()[:, :, 0, 0]
            source = torch.where(weight.any(1), weight.argmax(1), weight.shape[1])
            block.shortcut = Selection(block.shortcut.stride, source)
    return network


def _macs_without_shortcuts(network: nn.Module) -> int:
    counted = count_torch_macs(network, SHAPE)
    return counted.total - sum(macs for name, macs in counted.by_layer.items() if name.endswith(".shortcut"))


def tucker(study: Study, share: float) -> nn.Module:
    """Tucker-2 by tensorly: the same share of channels kept in all layers, the largest that meets the budget."""
    dense = _dense(study)
    most, low, high = share * count_torch_macs(dense, SHAPE).total, 0.0, 1.0
    best = None
    for _ in range(_HALVINGS):
        kept = (low + high) / 2
        made = with_tucker(copy.deepcopy(dense), kept)
        if count_torch_macs(made, SHAPE).total <= most:
            low, best = kept, made
        else:
            high = kept
    assert best is not None
    return best


def with_tucker(network: nn.Module, kept: float) -> nn.Module:
    """The network itself, its k×k convolutions as 1×1, k×k, 1×1 with ``kept`` of their channels in between.

    A layer that would not get cheaper stays as it is, and so does the first: of three colours it would keep one.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and layer.in_channels != SHAPE[0]:
            given, taken = (max(1, round(kept * channels)) for channels in (layer.out_channels, layer.in_channels))
            kernel, stride = layer.kernel_size[0] * layer.kernel_size[1], layer.stride[0] * layer.stride[1]
            # Of one pixel of the output: the first 1×1 runs on all pixels of the input.
            macs = taken * layer.in_channels * stride + kernel * given * taken + given * layer.out_channels
            if macs < kernel * layer.in_channels * layer.out_channels:
                network.set_submodule(name, _tucker_layers(layer, given, taken))
    return network


def _tucker_layers(layer: nn.Conv2d, given: int, taken: int) -> nn.Sequential:
    try:
        from tensorly import set_backend
        from tensorly.decomposition import partial_tucker
    except ImportError as error:
        raise ToolAbsentError("pip install tensorly") from error

    set_backend("pytorch")
    (core, (left, right)), _ = partial_tucker(layer.weight.detach(), rank=[given, taken], modes=[0, 1])
    first = nn.Conv2d(layer.in_channels, taken, 1, bias=False)
    middle = nn.Conv2d(taken, given, layer.kernel_size, layer.stride, layer.padding, bias=False)
    last = nn.Conv2d(given, layer.out_channels, 1, bias=layer.bias is not None)
    for part, weight in ((first, right.T[:, :, None, None]), (middle, core), (last, left[:, :, None, None])):
        part.weight = nn.Parameter(weight.contiguous())
    if layer.bias is not None:
        last.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(first, middle, last)


def aimet(study: Study, share: float) -> nn.Module:
    """Spatial SVD by AIMET, ranks by its greedy search; made once, by the Python of an environment of its own."""
    made = study.work / "aimet" / f"{share:g}.safetensors"
    if not made.is_file():
        python = os.environ.get("AIMET_PYTHON")
        if python is None:
            raise ToolAbsentError("AIMET_PYTHON is to name the Python of an environment that has AIMET")
        words = [study.model, "--weights", study.start(), "--data", study.data, "--seed", study.seed]
        words += ["--share", f"{share:g}", "-o", made]
        done = subprocess.run([python, "-m", "benchmarks.paper.aimet", *map(str, words)], check=False)
        if done.returncode:
            raise SystemExit(f"AIMET ended with {done.returncode}; the same command tries again")
    network, weights = _dense(study), tensors.load(made)
    for name, layer in list(network.named_modules()):
        if f"{name}.first.weight" in weights:
            network.set_submodule(name, _spatial_pair(layer, len(weights[f"{name}.first.weight"])))
    network.load_state_dict(weights)
    return network


def _spatial_pair(layer: Any, rank: int) -> nn.Sequential:
    """The pair that AIMET puts in a layer's place, k×1 then 1×k, to be filled.

    Its halves have the names of lrexport's own, by which training takes steps in factors that are as long as dense ones.
    """
    (height, width), (down, right), (top, left) = layer.kernel_size, layer.stride, layer.padding
    first = nn.Conv2d(layer.in_channels, rank, (height, 1), (down, 1), (top, 0), bias=False)
    second = nn.Conv2d(rank, layer.out_channels, (1, width), (1, right), (0, left), bias=layer.bias is not None)
    return nn.Sequential(OrderedDict(first=first, second=second))


TOOLS: dict[str, Callable[[Study, float], nn.Module]] = {
    "Torch-Pruning": torch_pruning,
    "Tucker-2": tucker,
    "AIMET": aimet,
}


def _ours(study: Study, share: float) -> str:
    """Name of the run of the table `recipe` that other networks are compared with."""
    name = f"ours-{share:g}-{study.schedule.epochs}"
    if not (study.work / name / RECORD).is_file() or is_stopped(study.work / name):
        raise SystemExit(f"{name} is not there yet: make the table recipe first")
    return name


def _drawn_anew(study: Study, plan: Plan) -> nn.Module:
    torch.manual_seed(study.seed)
    return fold_structure(resolve(study.model, SHAPE).build(), plan)


def _dense(study: Study) -> nn.Module:
    network = resolve(study.model, SHAPE).build()
    load_weights(network, study.start())
    return network


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
            network, splits, stage, fabric, tell, teacher=_dense(study) if distill else None, checkpoints=checkpoints
        )
    except Stopped as stopped:
        raise SystemExit(f"{name}: {stopped.message}; the same command goes on") from stopped
    tensors.save(folder / MODEL, network.state_dict())
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    row = {
        "name": name,
        "model": study.model,
        "schedule": study.schedule.name,
        "seed": study.seed,
        "top1": score(network, splits.test, fabric.device, "test", fabric=fabric).top1,
        "n": len(splits.test),
        "heldout_top1": score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1,
        "macs": count_torch_macs(network, SHAPE).total,
        "dense_macs": count_torch_macs(_dense(study), SHAPE).total,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": len(log),
        "hours": round(sum(event["seconds"] for event in log) / 3600, 3),
        "pruned": pruned,
        "machine": machine(),
    }
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
