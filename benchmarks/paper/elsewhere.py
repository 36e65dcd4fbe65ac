"""Networks that are not lrexport's beside those that are: pruned architectures from scratch, and what other tools give."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.paper.other_tools import TOOLS, Make, ToolAbsentError
from benchmarks.paper.study import SHAPE, Row, Study
from benchmarks.paper.tables import GOALS, OWN, TAUGHT, at
from benchmarks.paper.training import Training, dense, finished, trained
from lrexport.lowrank.factors.fold import fold_structure
from lrexport.networks.building import resolve
from lrexport.plan import Plan

# By what lrexport's own learning rate is multiplied; each tool's network gets the one that is best on held-out images. The
# next smaller one is tried as long as it is better.
FACTORS = (1.0, 0.3, 0.1)


def from_scratch(study: Study) -> Iterator[Row]:
    """Table 2: the architecture that pruning found, with weights drawn anew, for as many epochs as all stages together.

    Against it the same with the weights that pruning left, and the dense network drawn anew. The short schedule's start has
    all the epochs behind it that the published weights had, so that its rows from scratch say little; the paper's is fair.
    """
    share, epochs = GOALS[0], study.schedule.start + study.schedule.epochs
    yield from dense(study, study.schedule.epochs)
    kept = at(study, "at once, no distillation", share)
    yield kept | {"weights": "pruned, kept"}
    networks = {"pruned, drawn anew": study.record(kept["name"]).plan, "dense, drawn anew": {}}
    for weights, plan in networks.items():
        training = Training(partial(_drawn_anew, study, plan), epochs, study.schedule.scratch_lr, repair=False)
        name = f"scratch-{f'{share:g}' if plan else 'dense'}-{epochs}"
        yield finished(study, name, training) | {"weights": weights}


def other_tools(study: Study) -> Iterator[Row]:
    """Torch-Pruning, tensorly's Tucker-2 and AIMET, from the same start, to the same MACs, with the same fine-tuning."""
    epochs, share = study.schedule.epochs, GOALS[0]
    earlier = study.kept("others")  # as long as no row of this life has been kept in their place
    yield from dense(study, epochs)
    for method in ("at once, no distillation", "at once"):
        yield at(study, method, share) | {"tool": "lrexport, pruned at once"}
    yield at(study, "steered", share) | {"tool": "lrexport, SVD training"}
    for tool, make in TOOLS.items():
        try:
            tried = _tried(study, f"{tool}-{share:g}-{epochs}", partial(make, study, share))
        except ToolAbsentError as absent:
            print(f"{tool} is left out, or stays as it was: {absent}", file=sys.stderr)
            yield from (row for row in earlier if row.get("tool") == tool and study.has_this_start(row))
            continue
        best, row = max(tried, key=lambda each: float(each[1]["heldout_top1"]))
        own = {"tool": tool, "tried": {each["name"]: each["heldout_top1"] for _, each in tried}}
        yield finished(study, row["name"], best) | own
        yield finished(study, f"{row['name']}-distilled", replace(best, distill=TAUGHT)) | own


def _tried(study: Study, name: str, make: Make) -> list[tuple[Training, Row]]:
    """A tool's network trained at falling learning rates, until the next is worse, and the rows of that."""
    tried: list[tuple[Training, Row]] = []
    for factor in FACTORS:
        training = Training(make, study.schedule.epochs, factor * OWN["lr"], options=OWN)
        tried.append((training, trained(study, f"{name}-lr-{training.lr:g}", training)))
        if len(tried) > 1 and tried[-1][1]["heldout_top1"] < tried[-2][1]["heldout_top1"]:
            break
    return tried


def _drawn_anew(study: Study, plan: Plan) -> nn.Module:
    torch.manual_seed(study.seed)
    return fold_structure(resolve(study.model, SHAPE).build(), plan)
