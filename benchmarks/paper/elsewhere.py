"""Networks that are not lrexport's beside those that are: pruned architectures from scratch, and what other tools give."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.paper.other_tools import TOOLS, ToolAbsentError
from benchmarks.paper.study import Study
from benchmarks.paper.tables import GOALS, Row
from benchmarks.paper.training import SHAPE, tested, trained
from lrexport.lowrank.fold import fold_structure
from lrexport.models.resolve import resolve
from lrexport.progress import is_stopped
from lrexport.record import RECORD, Plan

# What begins at random needs no care for weights that are good already. Adam's rate is the paper's own for both.
SCRATCH_LR = {"sgd": 0.1, "adam": 0.001}
# Of which each tool's network gets the one that is best on held-out images; by what factor the run's own is multiplied.
FACTORS = (1.0, 0.3)
DISTILL = 0.5


def from_scratch(study: Study) -> Iterator[Row]:
    """Table 2: architectures that pruning found, with weights drawn anew, against the same with the weights that it left."""
    for share in GOALS:
        ours = _finished(study, "ours", share)
        record = study.record(ours)
        yield study.row(ours) | {"weights": "kept", "share": share}
        name, make = f"scratch-{share:g}-{study.schedule.epochs}", partial(_drawn_anew, study, record.plan)
        trained(study, name, make, record, lr=SCRATCH_LR[record.config["optimizer"]])
        yield tested(study, name, make, record) | {"weights": "drawn anew", "share": share}


def other_tools(study: Study) -> Iterator[Row]:
    """Torch-Pruning, tensorly's Tucker-2 and AIMET, from the same start, to the same MACs, with the same fine-tuning.

    Against both of lrexport's ways: pruned at once as these are, and SVD training before. Each tool with the better of two
    learning rates on held-out images, and with distillation, which is lrexport's, at that rate.
    """
    epochs, share = study.schedule.epochs, GOALS[0]
    yield study.dense(epochs) | {"tool": "dense"}
    at_once = _finished(study, "at once", share)
    like = study.record(at_once)
    for ours, what in ((at_once, "lrexport, at once"), (_finished(study, "ours", share), "lrexport, SVD training")):
        yield study.row(ours) | {"tool": what, "share": share, "distill": study.record(ours).config["distill"]}
    for tool, make_by in TOOLS.items():
        name, make = f"{tool}-{share:g}-{epochs}", partial(make_by, study, share)
        try:
            rates = {f"{name}-lr-{factor * like.config['lr']:g}": factor * like.config["lr"] for factor in FACTORS}
            tried = [trained(study, each, make, like, lr=lr) for each, lr in rates.items()]
            best = max(tried, key=lambda row: float(row["heldout_top1"]))
            taught = trained(study, f"{best['name']}-distilled", make, like, lr=best["lr"], distill=DISTILL)
            for row, distill in ((best, 0.0), (taught, DISTILL)):
                own = {
                    "tool": tool,
                    "share": share,
                    "distill": distill,
                    "tried": {each["lr"]: each["heldout_top1"] for each in tried},
                }
                yield tested(study, row["name"], make, like) | own
        except ToolAbsentError as absent:
            print(f"{tool} is left out: {absent}", file=sys.stderr)


def _finished(study: Study, method: str, share: float) -> str:
    """Name of a run of the table `recipe` that other networks are compared with."""
    name = f"{method.replace(' ', '-')}-{share:g}-{study.schedule.epochs}"
    if not (study.work / name / RECORD).is_file() or is_stopped(study.work / name):
        raise SystemExit(f"{name} is not there yet: make the table recipe first")
    return name


def _drawn_anew(study: Study, plan: Plan) -> nn.Module:
    torch.manual_seed(study.seed)
    return fold_structure(resolve(study.model, SHAPE).build(), plan)
