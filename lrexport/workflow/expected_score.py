"""A warning if the dense network scores far below what its weights are known to reach, before anything is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lrexport.events import Warned
from lrexport.metric import SHARE, Metric
from lrexport.runs.open import OpenRun, Trained
from lrexport.runs.record import load_record
from lrexport.tasks.scoring import score

_FAR = 0.05  # of a share: other subsets of the same data differ by less


def warn_of_low_score(run: OpenRun[Any], trained: Trained) -> None:
    """Score the dense network on the held-out images if its score is known from elsewhere, and warn if it is far below."""
    if run.splits is None or run.task is None or not run.first or run.task.metric.unit != SHARE:
        return
    metric = run.task.metric
    if (known := _known(run, trained, metric)) is None:
        return
    expected, where = known
    network: nn.Module = trained.dense.to(run.fabric.device)
    with torch.no_grad():
        reached = score(network, run.splits.heldout, run.fabric.device, "heldout", task=run.task).primary
    if metric.merit(expected) - metric.merit(reached) > _FAR:
        prepared = run.splits.data.preprocessing
        run.on_event(
            Warned(
                f"the dense network's {metric.name} is {metric.format(reached)} on the held-out images, {where} "
                f"{metric.format(expected)}: check the preprocessing"
                + (f", which is {prepared}" if prepared is not None else "")
                + "; --mean, --std, --value-range, --resize, --crop and --channel-order change it"
            )
        )


def _known(run: OpenRun[Any], trained: Trained, metric: Metric) -> tuple[float, str] | None:
    """What the dense network reached before, and where; None if that is not known."""
    if run.request.source is not None:
        record = load_record(run.request.source)
        same = record.data is not None and run.splits is not None and record.data.source == run.splits.data.source
        before = record.results.dense.heldout_accuracy if same and record.results.dense is not None else None
        value = None if before is None else before.value_of(metric)
        return None if value is None else (value, "in the run it comes from it was")
    classes = run.splits.data.classes if run.splits is not None else ()
    published = run.recipe.published
    if trained.config.dense_epochs or published is None or published.classes != len(classes):
        return None
    value = published.metrics.get(metric.name)
    return None if value is None else (value, "its weights were published with")
