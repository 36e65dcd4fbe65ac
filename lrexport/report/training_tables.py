"""The epochs of a run's stages as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lrexport.config.compression import STAGES
from lrexport.report.tables import Table
from lrexport.runs.log import LoggedEpoch
from lrexport.units import format_percent

_UNKNOWN = "—"


def training_table(curves: Mapping[str, Sequence[LoggedEpoch]]) -> Table:
    """Loss and held-out top-1 by stage and epoch."""
    rows = [
        (
            f"{STAGES[stage]}, {number}",
            _UNKNOWN if epoch.loss is None else f"{epoch.loss:.4f}",
            _UNKNOWN if epoch.heldout_top1 is None else format_percent(epoch.heldout_top1),
        )
        for stage, epochs in curves.items()
        for number, epoch in enumerate(epochs, 1)
    ]
    return Table(("stage, epoch", "loss", "held-out top-1"), tuple(rows))
