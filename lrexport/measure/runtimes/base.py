"""What every runtime offers: its needs and version, its files made from an ONNX file, and loading them.

Self-contained: sent to devices with the runner. The protocol of a measurement knows only these two classes.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

JsonObject = dict[str, Any]


class Unsupported(ValueError):
    """A runtime cannot have this network: its toolchain fails, or leaves something that the runtime does not know."""


class Port:
    """An input or an output: its name, its shape, and its type as ONNX Runtime writes it, such as ``tensor(float)``."""

    def __init__(self, name: str, shape: Sequence[Any], type: str) -> None:
        self.name, self.shape, self.type = name, list(shape), type

    @property
    def dtype(self) -> str:
        """numpy's name of the type."""
        kind = self.type[len("tensor(") : -1]
        return {"float": "float32", "float16": "float16", "double": "float64"}.get(kind, kind)


class Ports:
    """The inputs and outputs of the ONNX file that a runtime's files are made from, in the file's order, with all sizes."""

    def __init__(self, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.inputs, self.outputs = list(inputs), list(outputs)

    def to_json(self) -> JsonObject:
        return {
            "inputs": [[port.name, port.shape, port.type] for port in self.inputs],
            "outputs": [[port.name, port.shape, port.type] for port in self.outputs],
        }

    @classmethod
    def from_json(cls, value: JsonObject) -> Ports:
        return cls([Port(*port) for port in value["inputs"]], [Port(*port) for port in value["outputs"]])


class Calibration:
    """The inputs by which a network is quantised: a .npy by input name, each of shape (count, *the input's shape).

    ``zero`` names the outputs of convolutions with a filter of zeros, in the ONNX file: its values in int8 have no scale.
    """

    def __init__(self, files: dict[str, str], zero: Sequence[str] = ()) -> None:
        self.files, self.zero = files, list(zero)

    def __len__(self) -> int:
        return len(next(iter(self._arrays().values())))

    def __iter__(self) -> Iterator[JsonObject]:
        arrays = self._arrays()
        return ({name: array[number] for name, array in arrays.items()} for number in range(len(self)))

    def _arrays(self) -> JsonObject:
        import numpy

        return {name: numpy.load(file, mmap_mode="r", allow_pickle=False) for name, file in self.files.items()}


class Loaded:
    """A network in a runtime, ready to run. ``inputs`` are its inputs as declared, with open sizes."""

    inputs: Sequence[Any] = ()

    def timed(self, feed: JsonObject) -> Callable[[], Any]:
        """One inference on ``feed``, arrays by input name, as a function; inputs are handed over before, if possible."""
        raise NotImplementedError

    def run(self, feed: JsonObject) -> JsonObject:
        """The outputs by name, as numpy arrays."""
        raise NotImplementedError

    def profiled(self, run: Callable[[], Any], runs: int) -> list[list[tuple[str, str, float]]]:
        """(name, operator, milliseconds) of every node, for each of ``runs`` runs. Only where ``has_profiler``."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the network holds."""


class Runtime:
    """A runtime. ``needs``: the modules it imports, with the packages that bring them; ``converter``: its toolchain's.

    ``suffixes`` are those of its files, one network's; empty: it loads ONNX files as they are. ``precision`` is what it is
    asked to compute in. ``keeps_open_sizes``: its files leave open what the ONNX file does. ``takes_program``: its toolchain
    converts a program of torch.export, made from the ONNX file. ``notes`` say what a conversion leaves in slow kernels.
    ``is_run``: its files can be loaded here; others are converted only. ``quantiser``: the modules that make int8 files of
    its own files, with the packages that bring them; empty: it has none, and ``no_int8`` says why.
    """

    name = ""
    needs: ClassVar[dict[str, str]] = {"numpy": "numpy"}
    converter: ClassVar[dict[str, str]] = {}
    quantiser: ClassVar[dict[str, str]] = {}
    no_int8 = ""
    suffixes: tuple[str, ...] = ()
    precision = "float32"
    has_profiler = False
    keeps_open_sizes = False
    takes_program = False
    is_run = True

    def __init__(self) -> None:
        self.notes: list[str] = []

    def version(self) -> str:
        """Its version. Raises any error if it cannot be imported."""
        raise NotImplementedError

    def convert(self, source: str, folder: str, ports: Ports, seconds: float) -> list[str]:
        """Write this runtime's files of ``source`` into ``folder``; returns their paths by ``suffixes``.

        ``source`` is the ONNX file, or the program if it ``takes_program``; what stays slow is in ``notes`` afterwards.

        Raises Unsupported, TimeoutError after ``seconds``, or any error of the toolchain.
        """
        raise NotImplementedError

    def quantised_by(self) -> str:
        """Name and version of the quantiser. Only where there is one."""
        raise NotImplementedError

    def quantise(self, files: Sequence[str], folder: str, calibration: Calibration) -> list[str]:
        """Write this runtime's int8 files of its float32 ``files`` into ``folder``; returns their paths by ``suffixes``.

        ``notes`` name afterwards what stays in float32. Raises Unsupported, or any error of the quantiser.
        """
        raise NotImplementedError

    def load(self, files: Sequence[str], threads: int, ports: Ports | None = None, profile_to: str | None = None) -> Loaded:
        """The network in ``files``, on the CPU; ``threads`` 0: the runtime's default. Raises any error of the runtime.

        ``profile_to`` is a path for what a profiler writes; None: no profiler.
        """
        raise NotImplementedError


# Every runtime by name: the module of this package with its class as RUNTIME.
NAMES = ("onnxruntime", "openvino", "ncnn", "mnn", "litert", "executorch")
DEFAULT = NAMES[0]
# Not run by the runner, and not sent to devices.
IN_BROWSER = "onnxruntime-web"
# Whose files are made here, but only run elsewhere.
CONVERTED = "coreml"


def runtime(name: str) -> Runtime:
    """The runtime of that name. Raises ValueError for another name."""
    if name not in (*NAMES, IN_BROWSER, CONVERTED):
        raise ValueError(f"unknown runtime {name!r}")
    found: Runtime = importlib.import_module(f"lrexport.measure.runtimes.{name.replace('-', '_')}").RUNTIME
    return found


def packages() -> set[str]:
    """The packages that some runtime or its toolchain needs."""
    every = [runtime(name) for name in (*NAMES, CONVERTED)]
    parts = (part for each in every for part in (each.needs, each.converter, each.quantiser))
    return {package for part in parts for package in part.values()}


def missing(needs: dict[str, str]) -> tuple[str, str] | None:
    """The package that brings the first module that cannot be imported, and the reason; None if all can."""
    for module, package in needs.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # a package for another machine raises arbitrary errors
            return package, str(error)
    return None
