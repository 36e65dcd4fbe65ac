"""MNN on the CPU. Self-contained: sent to devices with the runner.

Its converter is called without ``MNN.tools``, which would install a package and send telemetry.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Ports, Runtime, Unsupported

_KINDS = {
    "float32": "Halide_Type_Float",
    "int32": "Halide_Type_Int",
    "int64": "Halide_Type_Int",
    "uint8": "Halide_Type_Uint8",
}


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
    suffixes = (".mnn",)
    no_int8 = "its own quantiser is not used yet"

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
