"""lrexport: train convolutional networks in SVD form, prune, fold, export, measure. The public API, loaded when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrexport.check.asserting import assert_within_budget
    from lrexport.config.goals import AccuracyDrop, Energy, FromPlan, Latency, Macs, Params, Size
    from lrexport.errors import DeviceError, InputError, LrexportError, UsageError
    from lrexport.formats.onnx import export_onnx
    from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
    from lrexport.lowrank.factors.fold import fold
    from lrexport.lowrank.factors.moments import input_moments
    from lrexport.lowrank.factors.rebuild import rebuild
    from lrexport.lowrank.factors.truncation import Selection
    from lrexport.lowrank.regularisation.regularisers import losses
    from lrexport.lowrank.repair.reconstruct import reconstruct
    from lrexport.lowrank.selection.select import select
    from lrexport.networks.weights import load_weights
    from lrexport.plan import Plan
    from lrexport.runs.loading import load
    from lrexport.torch_tools.plain_form import make_plain
    from lrexport.workflow.compress_network import Compressed, compress

__version__ = "0.1.0"

# Where each public name lives. `import lrexport` itself imports neither torch nor anything else heavy.
_HOMES = {
    "compress": "lrexport.workflow.compress_network",
    "Compressed": "lrexport.workflow.compress_network",
    "rebuild": "lrexport.lowrank.factors.rebuild",
    "SVDNetwork": "lrexport.lowrank.factors.decompose",
    "Selection": "lrexport.lowrank.factors.truncation",
    "Plan": "lrexport.plan",
    "Macs": "lrexport.config.goals",
    "Params": "lrexport.config.goals",
    "Size": "lrexport.config.goals",
    "Latency": "lrexport.config.goals",
    "AccuracyDrop": "lrexport.config.goals",
    "Energy": "lrexport.config.goals",
    "FromPlan": "lrexport.config.goals",
    "decompose": "lrexport.lowrank.factors.decompose",
    "losses": "lrexport.lowrank.regularisation.regularisers",
    "input_moments": "lrexport.lowrank.factors.moments",
    "select": "lrexport.lowrank.selection.select",
    "fold": "lrexport.lowrank.factors.fold",
    "reconstruct": "lrexport.lowrank.repair.reconstruct",
    "load": "lrexport.runs.loading",
    "load_weights": "lrexport.networks.weights",
    "make_plain": "lrexport.torch_tools.plain_form",
    "export_onnx": "lrexport.formats.onnx",
    "assert_within_budget": "lrexport.check.asserting",
    "LrexportError": "lrexport.errors",
    "UsageError": "lrexport.errors",
    "InputError": "lrexport.errors",
    "DeviceError": "lrexport.errors",
}
__all__ = [
    "AccuracyDrop",
    "Compressed",
    "DeviceError",
    "Energy",
    "FromPlan",
    "InputError",
    "Latency",
    "LrexportError",
    "Macs",
    "Params",
    "Plan",
    "SVDNetwork",
    "Selection",
    "Size",
    "UsageError",
    "assert_within_budget",
    "compress",
    "decompose",
    "export_onnx",
    "fold",
    "input_moments",
    "load",
    "load_weights",
    "losses",
    "make_plain",
    "rebuild",
    "reconstruct",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrexport' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
