"""MNN on the CPU. Self-contained: sent to devices with the runner.

Its converter and its quantiser are called without ``MNN.tools``, which would install a package and send telemetry.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import Calibration, JsonObject, Loaded, Ports, Runtime, Unsupported

_KINDS = {
    "float32": "Halide_Type_Float",
    "int32": "Halide_Type_Int",
    "int64": "Halide_Type_Int",
    "uint8": "Halide_Type_Uint8",
}
# Axes of an input that its quantiser takes; with another number it reads beyond the end of the shape.
_QUANTISED_AXES = 4
# Inputs that its quantiser gets at most: it runs all of them as one batch.
_QUANTISED_BYTES = 32 << 20


class _Session(Loaded):
    def __init__(self, interpreter: Any, session: Any, ports: Ports) -> None:
        self._interpreter, self._session, self._ports = interpreter, session, ports

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        known = self._interpreter.getSessionInputAll(self._session)
        for port in self._ports.inputs:
            if port.name in known:
                self._interpreter.getSessionInput(self._session, port.name).copyFrom(_tensor(feed[port.name]))
        return lambda: self._interpreter.runSession(self._session)

    def run(self, feed: JsonObject) -> JsonObject:
        import numpy

        self.timed(feed)()
        outputs = {}
        for port in self._ports.outputs:
            tensor = self._interpreter.getSessionOutput(self._session, port.name)
            shape = tuple(tensor.getShape())
            kept = _tensor(numpy.zeros(shape, port.dtype if port.dtype in _KINDS else "float32"))
            tensor.copyToHostTensor(kept)
            outputs[port.name] = numpy.array(kept.getNumpyData()).reshape(shape).astype(port.dtype)
        return outputs


class Mnn(Runtime):
    """A file .mnn, with float32 weights; asked for high precision, which is float32 everywhere."""

    name = "mnn"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "MNN": "MNN"}
    quantiser: ClassVar[dict[str, str]] = {"_tools": "MNN"}
    suffixes = (".mnn",)

    def version(self) -> str:
        import MNN

        return str(MNN.version())

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        import _tools  # MNN's converter

        path = os.path.join(folder, "model.mnn")
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", source, "--MNNModel", path, "--bizCode", "lrexport"])
        if not os.path.exists(path):
            raise Unsupported("MNN's converter writes no file")
        return [path]

    def quantised_by(self) -> str:
        return f"MNN {self.version()}"

    def quantise(self, files: Sequence[str], folder: str, calibration: Calibration) -> list[str]:
        import _tools

        data, config, path = (os.path.join(folder, name) for name in ("inputs", "config.json", "model.mnn"))
        described, count = _write_inputs(calibration, data)
        if count < len(calibration):
            self.notes.append(f"calibrated on the first {count} images: its quantiser holds all of them in memory at once")
        options = {
            "path": data,
            "used_sample_num": count,
            "input_type": "sequence",
            "inputs": described,
            # Of its other methods KL crashes on values from files, and the files of EMA compute something else (MNN 3.6.1).
            "feature_quantize_method": "ADMM",
            "weight_quantize_method": "MAX_ABS",
            "quant_bits": 8,
            # A filter of zeros has no scale: such a convolution would return anything.
            "skip_quant_op_names": calibration.zero,
        }
        _write_json(config, options)
        _tools.mnnquant(["mnnquant", files[0], path, config])
        if not os.path.exists(path):
            raise Unsupported("MNN's quantiser writes no file")
        if calibration.zero:
            self.notes.append(f"convolutions with a filter of zeros stay in float32: {', '.join(calibration.zero)}")
        return [path]

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        import MNN

        assert ports is not None
        interpreter = MNN.Interpreter(files[0])
        options = {"backend": "CPU", "precision": "high", **({"numThread": threads} if threads else {})}
        session = interpreter.createSession(options)
        known = interpreter.getSessionInputAll(session)
        for port in ports.inputs:
            if port.name in known:
                interpreter.resizeTensor(interpreter.getSessionInput(session, port.name), tuple(port.shape))
        interpreter.resizeSession(session)
        missing = [port.name for port in ports.outputs if port.name not in interpreter.getSessionOutputAll(session)]
        if missing:
            raise Unsupported(f"its file has no output {', '.join(map(repr, missing))}")
        return _Session(interpreter, session, ports)


def _write_inputs(calibration: Calibration, folder: str) -> tuple[list[JsonObject], int]:
    """The inputs as MNN's quantiser reads them: a folder for each sample with its shapes, and a text file for each input.

    Returns the names and shapes of the network's inputs, and the number of samples: a batch of several is taken apart, since
    the quantiser would read the last one of them only.
    """
    described: list[JsonObject] = []
    samples = ({name: array[k : k + 1] for name, array in feed.items()} for feed in calibration for k in range(_batch(feed)))
    count, taken = 0, 0
    for count, sample in enumerate(samples, start=1):
        taken += sum(array.nbytes for array in sample.values())
        if taken > _QUANTISED_BYTES and count > 1:
            return described, count - 1
        place = os.path.join(folder, f"{count:08d}")
        os.makedirs(place)
        for name, array in sample.items():
            with open(os.path.join(place, f"{name}.txt"), "w", encoding="utf-8") as file:
                file.write(" ".join(f"{value:.9g}" for value in array.ravel().tolist()))
        described = [{"name": name, "shape": list(array.shape)} for name, array in sample.items()]
        # Without this file it crashes.
        _write_json(os.path.join(place, "input.json"), {"inputs": described})
    return described, count


def _batch(feed: JsonObject) -> int:
    """The number of samples in one input of the network. Raises Unsupported for inputs that the quantiser cannot read."""
    for name, array in feed.items():
        if os.path.basename(name) != name or name in ("", ".", ".."):
            raise Unsupported(f"its quantiser reads an input from a file of its name, which {name!r} cannot be")
        if array.ndim != _QUANTISED_AXES:
            raise Unsupported(f"input {name!r} has {array.ndim} axes: its quantiser takes {_QUANTISED_AXES}")
    (batch,) = {len(array) for array in feed.values()}
    return batch


def _write_json(path: str, value: JsonObject) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file)


def _tensor(array: Any) -> Any:
    """A tensor of MNN on the host. Integers of 64 bits become 32 bits."""
    import MNN
    import numpy

    kind = _KINDS.get(array.dtype.name)
    if kind is None:
        raise Unsupported(f"it has no tensors of {array.dtype.name}")
    narrow = numpy.ascontiguousarray(array.astype("int32") if array.dtype.name == "int64" else array)
    return MNN.Tensor(tuple(array.shape) or (1,), getattr(MNN, kind), narrow, MNN.Tensor_DimensionType_Caffe)


RUNTIME = Mnn()
