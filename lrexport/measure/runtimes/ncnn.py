"""ncnn on the CPU, its files made by pnnx. Self-contained: sent to devices with the runner.

pnnx ends with status 0 on networks that ncnn cannot have: what it writes is not trusted. Layers that ncnn does not know are
refused here; outputs are compared before anything is measured.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lrexport.measure.runtimes.base import JsonObject, Loaded, Port, Ports, Runtime, Unsupported

_MAGIC = "7767517"
# pnnx's names of element types; ncnn computes on floats, and takes indices as 32-bit integers.
_TYPES = {"float32": "f32", "int64": "i64", "int32": "i32"}
_MOST_NAMED = 5
_MOST_DIMENSIONS = 4
_MOST_WORDS = 300
_IN_HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage", "use_bf16_packed")


class _Net(Loaded):
    def __init__(self, net: Any, ports: Ports) -> None:
        self._net, self._ports = net, ports
        self._fed: list[tuple[str, Any]] = []
        # pnnx names inputs and outputs by their place; an input that nothing uses does not exist.
        self._inputs = {f"in{number}": port for number, port in enumerate(ports.inputs)}
        self._names = [f"out{number}" for number in range(len(ports.outputs))]

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        known = set(self._net.input_names())
        self._fed = [(name, _mat(feed[port.name])) for name, port in self._inputs.items() if name in known]
        return self._extract

    def run(self, feed: JsonObject) -> JsonObject:
        import numpy

        mats = self.timed(feed)()
        return {port.name: _shaped(numpy.array(mat), port) for port, mat in zip(self._ports.outputs, mats)}

    def _extract(self) -> list[Any]:
        with self._net.create_extractor() as extractor:
            for name, mat in self._fed:
                extractor.input(name, mat)
            outputs = []
            for name in self._names:
                status, mat = extractor.extract(name)
                if status != 0:
                    raise Unsupported(f"the runtime ends with status {status} at output {name}")
                outputs.append(mat)
            return outputs

    def close(self) -> None:
        self._net.clear()


class Ncnn(Runtime):
    """Files .param and .bin, with float32 weights; half precision is switched off."""

    name = "ncnn"
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy", "ncnn": "ncnn"}
    converter: ClassVar[dict[str, str]] = {"pnnx": "pnnx"}
    suffixes = (".param", ".bin")
    no_int8 = "its package has no quantiser: ncnn2table and ncnn2int8 are programs that have to be built"

    def version(self) -> str:
        import ncnn

        return str(ncnn.__version__)

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        _check_inputs(ports)
        # pnnx writes beside its input, whatever paths it is given.
        link = os.path.join(folder, "model.onnx")
        os.symlink(os.path.abspath(source), link)
        shapes = ",".join(f"[{','.join(map(str, port.shape))}]{_TYPES[port.dtype]}" for port in ports.inputs)
        done = _run_pnnx([link, f"inputshape={shapes}", "fp16=0"], folder, seconds)
        paths = [os.path.join(folder, f"model.ncnn{suffix}") for suffix in self.suffixes]
        if done.returncode or not all(map(os.path.exists, paths)):
            raise Unsupported(f"pnnx fails: {_last_words(done)}")
        # It also writes the network in its own format and as ONNX, each with all weights: for the layers of a ResNet-18
        # gigabytes, which only take room.
        for name in set(os.listdir(folder)) - set(map(os.path.basename, paths)):
            os.remove(os.path.join(folder, name))
        _check_layers(paths[0], len(ports.outputs))
        return paths

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        import ncnn

        assert ports is not None
        net = ncnn.Net()
        net.opt.use_vulkan_compute = False
        for name in _IN_HALF:
            if hasattr(net.opt, name):
                setattr(net.opt, name, False)
        if threads:
            net.opt.num_threads = threads
        if net.load_param(files[0]) or net.load_model(files[1]):
            raise Unsupported("ncnn does not load the files that pnnx wrote")
        return _Net(net, ports)


def _check_inputs(ports: Ports) -> None:
    for port in ports.inputs:
        if port.dtype not in _TYPES:
            raise Unsupported(f"input {port.name!r} is {port.dtype}: ncnn takes {', '.join(_TYPES)}")
        if port.shape and port.shape[0] != 1:
            raise Unsupported(f"input {port.name!r} has a batch of {port.shape[0]}: ncnn runs one sample at a time")
        if len(port.shape) - 1 > _MOST_DIMENSIONS:
            raise Unsupported(f"input {port.name!r} has {len(port.shape)} axes: ncnn has at most {_MOST_DIMENSIONS + 1}")


def _run_pnnx(arguments: list[str], folder: str, seconds: float) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("pnnx")  # importing it would load torch
    assert spec is not None
    assert spec.origin is not None
    program = os.path.join(os.path.dirname(spec.origin), "pnnx.exe" if os.name == "nt" else "pnnx")
    try:
        return subprocess.run(
            [program, *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"pnnx takes more than {seconds:g} s") from error


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Why pnnx ended: its exit status and its last line."""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip().isprintable() and line.strip()]
    words = lines[-1][:_MOST_WORDS] if lines else "no message"
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return f"{ended}, {words}"


def _check_layers(path: str, outputs: int) -> None:
    """Raise Unsupported if a .param file has layers that ncnn does not know, or too few outputs."""
    import ncnn

    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.split() for line in file]
    if len(lines) < 2 or lines[0] != [_MAGIC]:
        raise Unsupported("pnnx wrote no network")
    layers = [line for line in lines[2:] if len(line) >= _MOST_DIMENSIONS]
    unknown = dict.fromkeys(layer[0] for layer in layers if ncnn.layer_to_index(layer[0]) < 0)
    if unknown:
        named = ", ".join(list(unknown)[:_MOST_NAMED])
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        raise Unsupported(f"pnnx writes layers that ncnn does not have: {named}{more}")
    made = {word for layer in layers for word in layer[4 + int(layer[2]) : 4 + int(layer[2]) + int(layer[3])]}
    absent = [f"out{number}" for number in range(outputs) if f"out{number}" not in made]
    if absent:
        raise Unsupported(f"pnnx writes a network without {', '.join(absent)} of {outputs} outputs")


def _mat(array: Any) -> Any:
    """An ncnn matrix of one sample, without the batch axis. Integers of 64 bits become 32 bits."""
    import ncnn
    import numpy

    sample = array[0] if array.ndim else array.reshape(1)
    kind = numpy.float32 if sample.dtype.kind == "f" else numpy.int32
    sample = numpy.ascontiguousarray(sample.reshape(sample.shape or (1,)).astype(kind))
    return ncnn.Mat(sample).clone()


def _shaped(array: Any, port: Port) -> Any:
    """An output in the shape of the ONNX file's if only the batch axis of one is missing, and in its type."""
    if list(array.shape) == port.shape[1:] and port.shape[:1] == [1]:
        array = array[None]
    return array.astype(port.dtype)


RUNTIME = Ncnn()
