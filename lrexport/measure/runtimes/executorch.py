"""ExecuTorch on the CPU, with XNNPACK. Self-contained: sent to devices with the runner.

Operators that XNNPACK does not take run in ExecuTorch's portable kernels, which are slow: they are named.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Ports, Runtime, Unsupported

_CALLS = ("call_delegate", "getitem", "alloc")


class _Method(Loaded):
    def __init__(self, program: Any, ports: Ports) -> None:
        self._program, self._ports = program, ports  # a method lives as long as its program
        self._method = program.load_method("forward")
        made = self._method.metadata.num_outputs()
        if made != len(ports.outputs):
            raise Unsupported(f"its file has {made} outputs, the ONNX file {len(ports.outputs)}")

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        import numpy
        import torch

        given = [torch.from_numpy(numpy.require(feed[port.name], requirements=["C", "W"])) for port in self._ports.inputs]
        return lambda: self._method.execute(given)

    def run(self, feed: JsonObject) -> JsonObject:
        outputs = self.timed(feed)()
        return {port.name: output.detach().clone().numpy() for port, output in zip(self._ports.outputs, outputs)}


class ExecuTorch(Runtime):
    """A file .pte, with float32 weights, lowered to XNNPACK."""

    name = "executorch"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "torch": "torch", "executorch": "executorch"}
    suffixes = (".pte",)
    no_int8 = "its own quantiser works on programs of torch, not on files"
    takes_program = True

    def version(self) -> str:
        for module in ("torch", "executorch.runtime"):  # their imports take seconds that are not the cost of a file
            importlib.import_module(module)
        return str(importlib.import_module("executorch.version").__version__).partition("+")[0]

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = torch.export.load(source)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        left = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
        self.notes = _portable([str(getattr(node.target, "__name__", node.target)) for node in left])
        path = os.path.join(folder, "model.pte")
        with open(path, "wb") as file:
            lowered.to_executorch().write_to_file(file)
        return [path]

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime as Runtimes

        assert ports is not None
        if threads:  # XNNPACK takes its threads from a pool, which only now nothing uses
            _unsafe_reset_threadpool(threads)
        return _Method(Runtimes.get().load_program(files[0]), ports)


def _portable(operators: Sequence[str]) -> list[str]:
    """A note with the operators that no delegate takes, and how often each is there."""
    counts: dict[str, int] = {}
    for operator in operators:
        name = operator.replace("aten.", "").partition(".")[0]
        if not any(word in operator for word in _CALLS):
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return [f"not in XNNPACK, but in ExecuTorch's slow portable kernels: {named}"]


RUNTIME = ExecuTorch()
