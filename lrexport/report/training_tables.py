"""The epochs of a run's stages as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lrexport.config.compression import STAGES
from lrexport.metric import TOP1, Metric
from lrexport.report.tables import Table
from lrexport.runs.log import LoggedEpoch
from lrexport.text import visible

_UNKNOWN = "—"


def training_table(curves: Mapping[str, Sequence[LoggedEpoch]]) -> Table:
    """Loss and held-out score by stage and epoch."""
    metric = metric_of(curves)
    rows = [
        (
            f"{STAGES[stage]}, {number}",
            _UNKNOWN if epoch.loss is None else f"{epoch.loss:.4f}",
            _UNKNOWN if epoch.heldout_score is None else visible(epoch.metric.format(epoch.heldout_score)),
        )
        for stage, epochs in curves.items()
        for number, epoch in enumerate(epochs, 1)
    ]
    return Table(("stage, epoch", "loss", f"held-out {visible(metric.name)}"), tuple(rows))


def metric_of(curves: Mapping[str, Sequence[LoggedEpoch]]) -> Metric:
    """The metric of the curves' scores, that of the last epoch."""
    return next((epochs[-1].metric for epochs in reversed([*curves.values()]) if epochs), TOP1)
