"""Accuracy right after pruning, without training: lrexport's steps one by one, on CIFAR ResNets at 2, 3, 4 times fewer MACs.

Weighting and reconstruction see 512 training images, BatchNorm 1000, none of them labels. Plans are compared on held-out
images, without their labels. Ranks have any size. All test images are scored, in
torch, once per row. `--seconds` measures time instead, on one thread and a quiet machine: SVD form, moments, selection,
folding, reconstruction and BatchNorm, without reading and scoring images. Results of both are kept as JSON beside the table.

    python benchmarks/training_free.py --data folder:DIR --weights-dir DIR [--adapted DIR] [--seconds]

`--weights-dir` holds cifar10_resnet20.safetensors and cifar10_resnet56.safetensors. `--adapted` holds runs adapted20 and
adapted56 whose dense network was trained on for a few epochs on the data:

    lrexport compress resnet20 --weights W --data folder:DIR --dense-epochs 3 --dense-lr 0.02 \\
        --svd-epochs 0 --fine-tune-epochs 0 --macs 0.99 -o DIR/adapted20
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, write_markdown
from torch import Tensor, nn

from lrexport.config.goals import Macs
from lrexport.data.datasets import load_data
from lrexport.data.images import ImageSet, Splits, hold_out
from lrexport.data.unlabelled import Images
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import every_scheme_of, input_moments, own_schemes_of
from lrexport.lowrank.repair.reconstruct import reconstruct
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.lowrank.selection.problem import Problem, Rule
from lrexport.lowrank.selection.solve import choose
from lrexport.networks.building import resolve
from lrexport.networks.weights import load_weights
from lrexport.runs import loading
from lrexport.runs.record import load_record
from lrexport.tasks.scoring import score
from lrexport.torch_tools.batchnorm import reestimate_batchnorm
from lrexport.training.engine import to_fast_layout
from lrexport.workflow.plan_outputs import PlanOutputs
from lrexport.workflow.repair import Repair

CPU = torch.device("cpu")
CALIBRATION, BATCHNORM = 512, 1000
FACTORS, DEPTHS, SHAPE = (2, 3, 4), (20, 56), (3, 32, 32)


@dataclass(frozen=True)
class Method:
    """Which of lrexport's steps are taken."""

    label: str
    rule: Rule = "global"
    weighting: bool = True
    reconstruct: bool = True
    every_scheme: bool = False
    compared: bool = False  # with the plan by each layer's effect on the outputs


METHODS = {
    "paper": Method("one threshold (the paper's rule)", "threshold", weighting=False, reconstruct=False),
    "global": Method("global, not weighted", weighting=False, reconstruct=False),
    "threshold": Method("one threshold, weighted", "threshold", reconstruct=False),
    "weighted": Method("global, weighted", reconstruct=False),
    "paper+": Method("one threshold, reconstructed", "threshold", weighting=False),
    "full": Method("global, weighted, reconstructed"),
    "auto": Method("the same with --scheme auto", every_scheme=True),
    "compared": Method("the closer of this and the plan by effects on outputs (the default)", compared=True),
}


# The networks trained on for a few epochs show whether the order of the methods is the same there.
FEW = ("paper", "weighted", "full", "compared")
JSON = RESULTS / "training_free.json"


def compress(
    network: nn.Module, factor: int, method: Method, splits: Splits, drawn: Tensor
) -> tuple[nn.Module, float, float]:
    """The repaired network, its share of the MACs, and the seconds it took."""
    calibration, batchnorm = (splits.train.subset(drawn[:count]) for count in (CALIBRATION, BATCHNORM))
    heldout = Images(splits.heldout, CPU, 0)
    batches = list(calibration.batches(128, CPU))
    images = torch.cat([batch.only for batch, _ in batches])
    began = time.perf_counter()
    svd = decompose(network, SHAPE, "auto" if method.every_scheme else "spatial")
    schemes = every_scheme_of(svd) if method.every_scheme else own_schemes_of(svd)
    moments = input_moments(svd, batches, schemes) if method.weighting else None
    problem = Problem(svd, method.rule, moments, schemes)
    if method.compared:
        problem = replace(problem, outputs=PlanOutputs(heldout, Repair(svd, Images(batchnorm, CPU, 0))))
    chosen = choose(Macs(1 / factor), problem)
    small = to_fast_layout(fold(svd, chosen), SHAPE)
    if method.reconstruct:
        reconstruct(small, svd, chosen.plan, images)
    reestimate_batchnorm(small, (batch for batch, _ in batchnorm.batches(250, CPU)))
    return small, plan_macs(svd, chosen.plan) / svd.dense_macs, time.perf_counter() - began


def networks(arguments: argparse.Namespace) -> Iterator[tuple[str, Sequence[str], Callable[[], nn.Module]]]:
    """Name, methods to try, and a maker of fresh copies."""
    for depth in arguments.depths:

        def published(depth: int = depth) -> nn.Module:
            network = resolve(f"resnet{depth}").build()
            load_weights(network, arguments.weights_dir / f"cifar10_resnet{depth}.safetensors")
            return network

        yield f"ResNet-{depth}, published weights", list(METHODS), published
    for depth in arguments.depths if arguments.adapted else ():
        run = arguments.adapted / f"adapted{depth}"
        record = load_record(run)
        epochs = record.config["dense_epochs"]
        name = f"ResNet-{depth}, {epochs} epoch{'s' if epochs > 1 else ''} on this data"
        yield name, FEW, partial(loading.load_start, run, record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights-dir", type=Path, required=True)
    parser.add_argument("--adapted", type=Path)
    parser.add_argument("--depths", nargs="+", type=int, choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="others are left for later")
    parser.add_argument("--seconds", action="store_true", help="measure time of the default method only")
    parser.add_argument("--heldout", action="store_true", help="score held-out training images, to make choices with")
    arguments = parser.parse_args()
    splits = hold_out(load_data(arguments.data, SHAPE))
    images = splits.heldout if arguments.heldout else splits.test
    drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(JSON.read_text()) if JSON.is_file() else {}
    for name, methods, make in networks(arguments):
        here = found.setdefault(name, {})
        if not arguments.seconds and "dense" not in here:
            here["dense"] = top1(make(), images)
        for factor in FACTORS:
            for key in ("full", "compared") if arguments.seconds else [key for key in methods if key in arguments.methods]:
                row = here.setdefault(f"{factor} {key}", {})
                if "top1" in row and not arguments.seconds:  # of a run that was stopped
                    continue
                small, row["share"], seconds = compress(make(), factor, METHODS[key], splits, drawn)
                if arguments.seconds:
                    row["seconds"] = seconds
                else:
                    row["top1"] = top1(small, images)
                print(name, factor, key, row, flush=True)
                if not arguments.heldout:
                    JSON.write_text(json.dumps(found, indent=1) + "\n")
    if not arguments.heldout:
        write_markdown(Path("training_free.md"), "Accuracy right after pruning, without training", table(found), machine())


def top1(network: nn.Module, images: ImageSet) -> float:
    return 100 * score(to_fast_layout(network, SHAPE), images, CPU, "test").top1


def table(found: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, rows in found.items():
        lines += [f"## {name}: dense {rows['dense']:.2f} %", "", "| method | 2× fewer MACs | 3× | 4× |", "|---|---|---|---|"]
        for key, method in METHODS.items():
            cells = [rows.get(f"{factor} {key}", {}) for factor in FACTORS]
            if all("top1" in cell for cell in cells):
                shown = [
                    f"{cell['top1']:.2f} %" + (f" ({cell['seconds']:.1f} s)" if "seconds" in cell else "") for cell in cells
                ]
                lines.append(f"| {method.label} | {' | '.join(shown)} |")
        lines.append("")
    return lines


if __name__ == "__main__":
    main()
