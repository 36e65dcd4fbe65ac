"""What an export returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lrexport.formats.agreement import Agreement
from lrexport.formats.dynamic import FIXED, FreeAxes
from lrexport.measure.macs.onnx_macs import GraphCost


@dataclass(frozen=True)
class Exported:
    """A finished file: its cost counted on the graph, and the largest relative error against torch in all comparisons.

    ``blind``: the output hardly depends on the input, so agreement with torch proves little. ``free`` are the axes of its
    inputs that may have any size. ``passes`` counts by pass the places that have another form than torch gave them, which
    adds ``added_macs`` to the cost.
    """

    path: Path
    bytes: int
    opset: int
    cost: GraphCost
    comparison: Agreement
    simplified: bool
    blind: bool = False
    free: FreeAxes = FIXED
    passes: Mapping[str, int] = field(default_factory=dict)
    added_macs: int = 0
