"""LiteRT on the CPU, with XNNPACK. Self-contained: sent to devices with the runner."""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Ports, Runtime, Unsupported


class _Interpreter(Loaded):
    def __init__(self, interpreter: Any, ports: Ports) -> None:
        self._ports = ports
        (signature,) = interpreter.get_signature_list()
        # Not kept: an interpreter whose data others refer to refuses to run.
        runner = interpreter.get_signature_runner(signature)
        given, made = runner.get_input_details(), runner.get_output_details()
        self._interpreter = interpreter
        # litert_torch names inputs and outputs by their places; an input that nothing uses may not exist.
        self._inputs = {f"args_{number}": port for number, port in enumerate(ports.inputs) if f"args_{number}" in given}
        self._names = [f"output_{number}" for number in range(len(ports.outputs))]
        if set(made) != set(self._names) or set(given) != set(self._inputs):
            raise Unsupported(f"its file has inputs {sorted(given)} and outputs {sorted(made)}")
        self._places = {name: details["index"] for name, details in given.items()}
        self._types = {name: details["dtype"] for name, details in given.items()}
        self._made = {name: details["index"] for name, details in made.items()}

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        for name, port in self._inputs.items():
            # Integers of 64 bits may be 32 bits in the file.
            self._interpreter.set_tensor(self._places[name], feed[port.name].astype(self._types[name], copy=False))
        invoke: Callable[[], Any] = self._interpreter.invoke
        return invoke

    def run(self, feed: JsonObject) -> JsonObject:
        self.timed(feed)()
        return {
            port.name: self._interpreter.get_tensor(self._made[name]).astype(port.dtype, copy=False)
            for port, name in zip(self._ports.outputs, self._names)
        }


class LiteRt(Runtime):
    """A file .tflite, with float32 weights."""

    name = "litert"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "ai_edge_litert": "ai-edge-litert"}
    converter: ClassVar[dict[str, str]] = {"torch": "torch", "litert_torch": "litert-torch"}
    suffixes = (".tflite",)
    no_int8 = "its own quantiser is not used yet"
    takes_program = True

    def version(self) -> str:
        from importlib.metadata import version

        importlib.import_module("ai_edge_litert.interpreter")  # no cost of a file
        return version("ai-edge-litert")

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        import litert_torch
        import torch

        program = torch.export.load(source)
        given, _ = program.example_inputs
        path = os.path.join(folder, "model.tflite")
        litert_torch.convert(program.module(check_guards=False), given).export(path)
        return [path]

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        from ai_edge_litert.interpreter import Interpreter

        assert ports is not None
        interpreter = Interpreter(files[0], num_threads=threads or None)
        interpreter.allocate_tensors()
        return _Interpreter(interpreter, ports)


RUNTIME = LiteRt()
