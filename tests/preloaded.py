"""What the processes of :mod:`tests.forked` begin with: what most commands import, each a second or so."""

from __future__ import annotations

import gc
import importlib

gc.disable()
for _name in (
    *("lrexport.workflow.pipeline", "lrexport.workflow.exporting", "lightning_fabric", "tests.forked", "sklearn.datasets"),
    *("fvcore.nn", "safetensors.torch", "rich.progress", "onnxruntime", "onnxscript", "onnxsim", "torch._dynamo"),
    "torch.onnx._internal.exporter._core",
):
    importlib.import_module(_name)
_exporter = importlib.import_module("torch.onnx._internal.exporter._registration")
with importlib.import_module("lrexport.formats.torch_graph")._searching_once():
    _exporter.ONNXRegistry.from_torchlib(opset_version=18)  # kept, as an export asks for it
gc.freeze()  # no process copies these pages for a look at them
gc.enable()
