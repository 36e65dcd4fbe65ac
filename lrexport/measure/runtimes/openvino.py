"""OpenVINO on the CPU. Self-contained: sent to devices with the runner.

Asked for float32: by default it computes in bfloat16 where the processor has it. The ONNX frontend of the runtime itself
reads the file; ``openvino.convert_model`` would do the same and send telemetry.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Ports, Runtime, Unsupported

_PRECISION = "INFERENCE_PRECISION_HINT"


class _Compiled(Loaded):
    def __init__(self, compiled: Any, ports: Ports) -> None:
        self._request, self._ports = compiled.create_infer_request(), ports
        self._fed: list[Any] = []

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        import numpy
        import openvino

        # Shared with the runtime, so kept here.
        self._fed = [numpy.require(feed[port.name], requirements=["C", "A"]) for port in self._ports.inputs]
        for port, array in zip(self._ports.inputs, self._fed):
            self._request.set_tensor(port.name, openvino.Tensor(array, shared_memory=True))
        return lambda: self._request.infer()

    def run(self, feed: JsonObject) -> JsonObject:
        self.timed(feed)()
        return {
            port.name: self._request.get_output_tensor(number).data.copy() for number, port in enumerate(self._ports.outputs)
        }

    def profiled(self, run: Callable[[], Any], runs: int) -> list[list[tuple[str, str, float]]]:
        passes = []
        for _ in range(runs):
            run()
            spent = [node for node in self._request.profiling_info if node.real_time.total_seconds() > 0]
            passes.append([(node.node_name, node.node_type, 1e3 * node.real_time.total_seconds()) for node in spent])
        return passes


class OpenVino(Runtime):
    """Files .xml and .bin, with float32 weights."""

    name = "openvino"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "openvino": "openvino"}
    suffixes = (".xml", ".bin")
    has_profiler = True
    keeps_open_sizes = True

    def version(self) -> str:
        import openvino

        return str(openvino.__version__).partition("-")[0]

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        import openvino

        model = openvino.Core().read_model(source)
        _check_names(model, ports)
        path = os.path.join(folder, "model.xml")
        openvino.save_model(model, path, compress_to_fp16=False)
        return [path, path[: -len(".xml")] + ".bin"]

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        import openvino

        assert ports is not None
        core = openvino.Core()
        model = core.read_model(files[0], files[1])
        if model.is_dynamic():
            model.reshape({port.name: openvino.PartialShape(port.shape) for port in _used(model, ports)})
        options: JsonObject = {_PRECISION: "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if profile_to is not None:
            options["PERF_COUNT"] = True
        compiled = core.compile_model(model, "CPU", options)
        precision = compiled.get_property(_PRECISION).get_type_name()
        if precision != "f32":
            raise Unsupported(f"asked for float32, it computes in {precision}")
        return _Compiled(compiled, Ports(_used(model, ports), ports.outputs))


def _used(model: Any, ports: Ports) -> list[Any]:
    """The inputs that the model has: one that nothing uses may have been left out."""
    names = {name for given in model.inputs for name in given.names}
    return [port for port in ports.inputs if port.name in names]


def _check_names(model: Any, ports: Ports) -> None:
    """Raise Unsupported unless the outputs are those of the ONNX file, in its order."""
    names = [set(output.names) for output in model.outputs]
    expected = [port.name for port in ports.outputs]
    if len(names) != len(expected) or not all(name in known for name, known in zip(expected, names)):
        raise Unsupported(f"its outputs are {names}, those of the ONNX file {expected}")


RUNTIME = OpenVino()
