"""Networks that `lrexport compress` does not make: pruned architectures from scratch, and what other tools give.

They are trained by the same loop, on the same images, with the same options as all other rows, and scored alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.common import machine
from benchmarks.paper.study import Study
from benchmarks.paper.tables import GOALS, Row
from lrexport.artifacts import files
from lrexport.data.images import Splits, hold_out
from lrexport.data.resolve import load_data
from lrexport.lowrank.fold import fold_structure
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.resolve import resolve
from lrexport.models.weights import load_weights
from lrexport.record import Plan
from lrexport.training.checkpoints import Checkpoints
from lrexport.training.engine import make_fabric, to_fast_layout
from lrexport.training.loops import train_stage
from lrexport.training.scoring import reestimate_batchnorm, score
from lrexport.training.stage import Stage

SHAPE = (3, 32, 32)


def from_scratch(study: Study) -> Iterator[Row]:
    """Table 2: architectures that pruning found, with weights drawn anew, against the same with the weights that it left."""
    epochs = study.schedule.epochs
    for share in GOALS:
        source = f"ours-{share:g}-{epochs}"
        plan = study.record(source).plan
        yield study.row(source) | {"weights": "kept", "share": share}

        def made(plan: Plan = plan) -> nn.Module:
            torch.manual_seed(study.seed)
            return fold_structure(resolve(study.model, SHAPE).build(), plan)

        # Three times the learning rate: what begins at random needs no care for weights that are good already.
        row = _train(study, f"scratch-{share:g}-{epochs}", made, epochs, lr=0.1, distill=0.0)
        yield row | {"weights": "drawn anew", "share": share}


def other_tools(study: Study) -> Iterator[Row]:
    """Torch-Pruning and tensorly's Tucker-2, from the same start, to the same MACs, with the same fine-tuning."""
    epochs = study.schedule.epochs
    yield study.dense(epochs) | {"tool": "dense"}
    for share in GOALS:
        yield study.row(f"ours-{share:g}-{epochs}") | {"tool": "lrexport", "share": share}
        for tool, make in TOOLS.items():
            for distill in (0.0, 0.5):
                name = f"{tool}-{share:g}-{epochs}" + ("-distilled" if distill else "")
                made = partial(lambda make, share: make(_dense(study), share), make, share)
                row = _train(study, name, made, epochs, lr=0.03, distill=distill)
                yield row | {"tool": tool, "share": share, "distill": distill}


def torch_pruning(network: nn.Module, share: float) -> nn.Module:
    """Channels of least magnitude removed over all layers together, in steps, by Torch-Pruning's defaults."""
    import torch_pruning as tp

    example = torch.zeros(1, *SHAPE)
    steps = 400
    pruner = tp.pruner.BasePruner(
        network,
        example,
        importance=tp.importance.GroupMagnitudeImportance(),
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=steps,
        ignored_layers=[network.linear],
    )
    whole = count_torch_macs(network, SHAPE).total
    for _ in range(steps):
        if count_torch_macs(network, SHAPE).total <= share * whole:
            break
        pruner.step()
    return network


def tucker(network: nn.Module, share: float) -> nn.Module:
    """Tucker-2 by tensorly: each k×k convolution as 1×1, k×k, 1×1, the same share of both channels kept in all of them.

    The share is the largest that meets the budget; layers that would not get cheaper stay as they are.
    """
    import copy

    whole, low, high = count_torch_macs(network, SHAPE).total, 0.0, 1.0
    best = None
    for _ in range(9):
        kept = (low + high) / 2
        made = _tuckered(copy.deepcopy(network), kept)
        if count_torch_macs(made, SHAPE).total <= share * whole:
            low, best = kept, made
        else:
            high = kept
    assert best is not None
    return best


def _tuckered(network: nn.Module, kept: float) -> nn.Module:
    from tensorly import set_backend
    from tensorly.decomposition import partial_tucker

    set_backend("pytorch")
    for name, layer in list(network.named_modules()):
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1):
            continue
        ranks = [max(1, round(kept * layer.out_channels)), max(1, round(kept * layer.in_channels))]
        rest = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels * layer.in_channels
        stride = layer.stride[0] * layer.stride[1]
        small = ranks[1] * layer.in_channels * stride + rest * ranks[0] * ranks[1] / (layer.out_channels * layer.in_channels)
        if small + ranks[0] * layer.out_channels >= rest:
            continue
        (core, (last, first)), _ = partial_tucker(layer.weight.data, rank=ranks, modes=[0, 1], init="svd")
        middle = nn.Conv2d(ranks[1], ranks[0], layer.kernel_size, layer.stride, layer.padding, bias=False)
        pair = (nn.Conv2d(layer.in_channels, ranks[1], 1, bias=False), nn.Conv2d(ranks[0], layer.out_channels, 1))
        pair[0].weight.data, middle.weight.data = first.T[:, :, None, None].contiguous(), core.contiguous()
        pair[1].weight.data = last[:, :, None, None].contiguous()
        if layer.bias is None:
            pair[1].bias = None
        else:
            pair[1].bias.data = layer.bias.data
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Sequential(pair[0], middle, pair[1]))
    return network


TOOLS = {"Torch-Pruning": torch_pruning, "Tucker-2": tucker}


def _splits(study: Study) -> Splits:
    return hold_out(load_data(study.data, SHAPE), seed=study.seed)


def _dense(study: Study) -> nn.Module:
    network = resolve(study.model, SHAPE).build()
    load_weights(network, study.start())
    return network


def _train(study: Study, name: str, make: Callable[[], nn.Module], epochs: int, lr: float, distill: float) -> Row:
    """Train what ``make`` gives and score it, or read what an earlier life of the study left."""
    folder = study.work / name
    kept = folder / "row.json"
    if kept.is_file():
        found: Row = json.loads(kept.read_text(encoding="utf-8"))
        return found
    files.make_run_folder(folder)
    splits, fabric, events = _splits(study), make_fabric(), list[dict[str, Any]]()
    network = make().to(fabric.device)
    macs = count_torch_macs(network, SHAPE).total
    to_fast_layout(network)
    before = score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1
    images = splits.train.subset(torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:1000])
    reestimate_batchnorm(network, images.batches(250, fabric.device))

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            events.append(event)
            files.append_json_line(folder / "log.jsonl", event)
            print(f"{name}: epoch {event['epoch']}/{epochs}, held-out {100 * event['heldout_top1']:.1f} %", flush=True)

    stage = Stage("fine-tune", epochs, lr, distill=distill, seed=study.seed, checkpoint_minutes=5)
    checkpoints = Checkpoints(folder / "checkpoint", stage.name, folder / "log.jsonl")
    teacher = _dense(study) if distill else None
    train_stage(network, splits, stage, fabric, tell, teacher=teacher, checkpoints=checkpoints)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    torch.save(network, folder / "network.pt")
    row = {
        "name": name,
        "model": study.model,
        "schedule": study.schedule.name,
        "seed": study.seed,
        "top1": score(network, splits.test, fabric.device, "test", fabric=fabric).top1,
        "n": len(splits.test),
        "heldout_top1": score(network, splits.heldout, fabric.device, "heldout", fabric=fabric).top1,
        "macs": macs,
        "dense_macs": count_torch_macs(_dense(study), SHAPE).total,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "epochs": len(log),
        "hours": round(sum(event["seconds"] for event in log) / 3600, 3),
        "pruned": {"heldout_top1": before},
        "machine": machine(),
    }
    kept.write_text(json.dumps(row, indent=1), encoding="utf-8")
    return row
