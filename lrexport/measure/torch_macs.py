"""MACs of a torch network, layer by layer, counted by fvcore.

Convention: multiply–accumulates of convolutions and matrix products for one input; bias, normalisation, pooling and
element-wise operators are not counted; 1 MAC = 2 FLOPs. fvcore counts one "flop" per MAC.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import nn

from lrexport.lowrank.decompose import eval_mode

_COUNTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum")


@dataclass(frozen=True)
class TorchMacs:
    """``total`` for one input, ``by_layer`` for modules that multiply themselves, ``skipped``: operators not counted."""

    total: int
    by_layer: dict[str, int]
    skipped: tuple[str, ...]


def count_torch_macs(network: nn.Module, input_shape: tuple[int, ...]) -> TorchMacs:
    """Count for one input of ``input_shape`` (C, H, W), in eval mode; the network's own mode is put back."""
    from fvcore.nn import FlopCountAnalysis

    parameter = next(network.parameters(), torch.empty(0))
    example = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with eval_mode(network), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit.trace, which fvcore uses, announces its retirement
        analysis = FlopCountAnalysis(network, example).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis = analysis.tracer_warnings("none")
        by_layer: dict[str, int] = {}
        modules = dict(network.named_modules())
        for name, counts in analysis.by_module_and_operator().items():
            own = sum(count for operator, count in counts.items() if operator in _COUNTED)
            if own and not any(modules[name].children()):
                by_layer[name] = int(own)
        operators = analysis.by_operator()
        skipped = tuple(sorted(analysis.unsupported_ops()))
    return TorchMacs(int(sum(operators[name] for name in _COUNTED if name in operators)), by_layer, skipped)
