"""Sampling at places that the graph computes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lrexport.onnx_network.operators.facts import (
    Forms,
    NodeFacts,
    NotCoveredError,
    Operator,
    Values,
    check_size,
    listed,
    needed,
    only,
)

# The names changed in opset 20.
_MODES = {
    "bilinear": "bilinear",
    "linear": "bilinear",
    "nearest": "nearest",
    "bicubic": "bicubic",
    "cubic": "bicubic",
}


def _grid_sample(facts: NodeFacts) -> Operator | None:
    mode, padding = _MODES.get(facts.text("mode", "bilinear")), facts.text("padding_mode", "zeros")
    corners = bool(facts.get("align_corners", 0))
    if mode is None or padding not in ("zeros", "border", "reflection"):
        return None

    def run(values: Values) -> tuple[Tensor, ...]:
        value, grid = needed(values[0]), needed(values[1])
        if value.ndim not in (4, 5) or (value.ndim == 5 and mode == "bicubic"):
            raise NotCoveredError(f"GridSample of rank {value.ndim}")
        return (F.grid_sample(value, grid.to(value.dtype), mode, padding, corners),)

    return run


def _affine_grid(facts: NodeFacts) -> Operator | None:
    corners = bool(facts.get("align_corners", 0))

    def run(values: Values) -> tuple[Tensor, ...]:
        return (F.affine_grid(needed(values[0]), check_size(listed(needed(values[1]))), corners),)

    return run


FORMS: Forms = {
    "AffineGrid": only(_affine_grid, "align_corners"),
    "GridSample": only(_grid_sample, "mode", "padding_mode", "align_corners"),
}
