"""What an export returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lrexport.formats.agreement import Agreement
from lrexport.formats.dynamic import FIXED, FreeAxes
from lrexport.measure.macs.onnx_macs import GraphCost


@dataclass(frozen=True)
class Exported:
    """A finished file: its cost counted on the graph, and the largest relative error against torch in all comparisons.

    ``blind``: the output hardly depends on the input, so agreement with torch proves little. ``free`` are the axes of its
    inputs that may have any size.
    """

    path: Path
    bytes: int
    opset: int
    cost: GraphCost
    comparison: Agreement
    simplified: bool
    blind: bool = False
    free: FreeAxes = FIXED
