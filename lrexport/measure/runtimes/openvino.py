"""OpenVINO on the CPU. Self-contained: sent to devices with the runner.

Asked for float32: by default it computes in bfloat16 where the processor has it. The ONNX frontend of the runtime itself
reads the file; ``openvino.convert_model`` would do the same and send telemetry. NNCF, which makes int8 files, sends
none where its variable for tests is set.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import Calibration, JsonObject, Loaded, Ports, Runtime, Unsupported

_PRECISION = "INFERENCE_PRECISION_HINT"
# What NNCF quantises wherever it can, and what stands between it and its int8 weights.
_WEIGHTED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
_SCALING = ("Multiply", "Subtract", "Convert", "Reshape", "Transpose")
_MOST_NAMED = 5


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
    quantiser: ClassVar[dict[str, str]] = {"nncf": "nncf"}
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

    def quantised_by(self) -> str:
        return f"NNCF {_nncf().__version__}"

    def quantise(self, files: Sequence[str], folder: str, calibration: Calibration) -> list[str]:
        import openvino

        nncf = _nncf()
        model = openvino.Core().read_model(files[0], files[1])
        taken = {name for given in model.inputs for name in given.names}
        data = nncf.Dataset(calibration, lambda feed: {name: array for name, array in feed.items() if name in taken})
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        safe = nncf.AdvancedQuantizationParameters(
            # Weights in half of the range: x86 without VNNI adds two products in 16 bits, as in formats/int8.py.
            overflow_fix=nncf.OverflowFix.ENABLE,
            # The full observed range: its default, the mean of the samples' ranges, costs ResNet-20 9 dB.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
        done = nncf.quantize(
            model, data, target_device=nncf.TargetDevice.CPU, subset_size=len(calibration), advanced_parameters=safe
        )
        self.notes = _in_float(done)
        path = os.path.join(folder, "model.xml")
        openvino.save_model(done, path, compress_to_fp16=False)
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


def _nncf() -> Any:
    """NNCF, which sends telemetry unless it takes this for a test."""
    os.environ["NNCF_CI"] = "1"
    import nncf

    return nncf


def _in_float(model: Any) -> list[str]:
    """A note that names the convolutions and products whose weights are not in int8; empty if all are."""
    weighted = [node for node in model.get_ops() if node.get_type_name() in _WEIGHTED]
    left = [node.get_friendly_name() for node in weighted if not _is_quantised(node.input_value(1).get_node())]
    if not left:
        return []
    more = f" and {len(left) - _MOST_NAMED} more" if len(left) > _MOST_NAMED else ""
    named = f"{', '.join(left[:_MOST_NAMED])}{more}"
    return [f"{len(left)} of {len(weighted)} convolutions and products stay in float32: {named}"]


def _is_quantised(node: Any) -> bool:
    while node.get_type_name() in _SCALING:
        node = node.input_value(0).get_node()
    kind = node.get_type_name()
    return kind == "FakeQuantize" or (kind == "Constant" and node.get_element_type().get_type_name() in ("i8", "u8"))


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
