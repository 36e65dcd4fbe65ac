"""lrexport: train convolutional networks in SVD form, prune, fold, export, measure. The public API, loaded when used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrexport.check.asserting import assert_within_budget as assert_within_budget
    from lrexport.config.goals import AccuracyDrop as AccuracyDrop
    from lrexport.config.goals import Energy as Energy
    from lrexport.config.goals import FromPlan as FromPlan
    from lrexport.config.goals import Latency as Latency
    from lrexport.config.goals import Macs as Macs
    from lrexport.config.goals import Params as Params
    from lrexport.config.goals import Size as Size
    from lrexport.errors import DeviceError as DeviceError
    from lrexport.errors import InputError as InputError
    from lrexport.errors import LrexportError as LrexportError
    from lrexport.errors import UsageError as UsageError
    from lrexport.formats.onnx import export_onnx as export_onnx
    from lrexport.lowrank.factors.decompose import SVDNetwork as SVDNetwork
    from lrexport.lowrank.factors.decompose import decompose as decompose
    from lrexport.lowrank.factors.fold import fold as fold
    from lrexport.lowrank.factors.moments import input_moments as input_moments
    from lrexport.lowrank.factors.rebuild import rebuild as rebuild
    from lrexport.lowrank.factors.truncation import Selection as Selection
    from lrexport.lowrank.regularisation.regularisers import losses as losses
    from lrexport.lowrank.repair.reconstruct import reconstruct as reconstruct
    from lrexport.lowrank.selection.select import select as select
    from lrexport.metric import Metric as Metric
    from lrexport.networks.onnx_source import read_onnx as read_onnx
    from lrexport.networks.weights import load_weights as load_weights
    from lrexport.plan import Plan as Plan
    from lrexport.runs.loading import load as load
    from lrexport.tasks.task import Task as Task
    from lrexport.torch_tools.plain_form import make_plain as make_plain
    from lrexport.workflow.compress_network import Compressed as Compressed
    from lrexport.workflow.compress_network import compress as compress

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
    "Task": "lrexport.tasks.task",
    "Metric": "lrexport.metric",
    "decompose": "lrexport.lowrank.factors.decompose",
    "losses": "lrexport.lowrank.regularisation.regularisers",
    "input_moments": "lrexport.lowrank.factors.moments",
    "select": "lrexport.lowrank.selection.select",
    "fold": "lrexport.lowrank.factors.fold",
    "reconstruct": "lrexport.lowrank.repair.reconstruct",
    "load": "lrexport.runs.loading",
    "read_onnx": "lrexport.networks.onnx_source",
    "load_weights": "lrexport.networks.weights",
    "make_plain": "lrexport.torch_tools.plain_form",
    "export_onnx": "lrexport.formats.onnx",
    "assert_within_budget": "lrexport.check.asserting",
    "LrexportError": "lrexport.errors",
    "UsageError": "lrexport.errors",
    "InputError": "lrexport.errors",
    "DeviceError": "lrexport.errors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lrexport' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
