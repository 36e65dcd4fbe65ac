"""Sessions of files whose inputs are not simply batches, used as if they were.

An .onnx file of somebody else may fix its batch, or take inputs without one, such as a state or a rate. Its session then
runs portions of a batch, each as the file takes it, and joins their outputs as :class:`~lrexport.onnx_network.OnnxNetwork`
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from lrexport.onnx_network.inputs import FileInput
from lrexport.onnx_network.network import OnnxNetwork

Arrays = Mapping[str, npt.NDArray[Any]]
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


def like_network(runtime: Any, network: nn.Module | None) -> Any:
    """The session as it is or, for a network from a file, one that takes the network's inputs."""
    if not isinstance(network, OnnxNetwork):
        return runtime
    return SampleSession(runtime, network.inputs, network.portion)


@dataclass(frozen=True)
class _Declared:
    name: str
    shape: list[int | str]
    type: str


class SampleSession:
    """A session of an .onnx file that takes the inputs of its network: a batch of any size, (B, …) each.

    ``portion`` is the number of samples in one run of the file, None for any.
    """

    def __init__(self, runtime: Any, inputs: Sequence[FileInput], portion: int | None) -> None:
        self._runtime, self._inputs, self._portion = runtime, inputs, portion
        self._types = {item.name: item.type for item in runtime.get_inputs()}

    def get_inputs(self) -> list[_Declared]:
        """The network's inputs, with a free batch."""
        return [
            _Declared(each.spec.name, ["batch", *each.spec.shape], self._types.get(each.name, "tensor(float)"))
            for each in self._inputs
        ]

    def get_outputs(self) -> Any:
        """The file's outputs."""
        return self._runtime.get_outputs()

    def get_modelmeta(self) -> Any:
        """The file's metadata."""
        return self._runtime.get_modelmeta()

    def run(self, names: Sequence[str] | None, feed: Arrays) -> list[npt.NDArray[Any]]:
        """The outputs for a batch, as :meth:`onnxruntime.InferenceSession.run` returns them."""
        count = len(next(iter(feed.values())))
        parts = [self._runtime.run(names, portion) for portion in self.portions(feed)]
        if self._portion is None:
            return list(parts[0])
        return [_joined(values, self._portion)[:count] for values in zip(*parts, strict=True)]

    def portions(self, feed: Arrays) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """What the file gets for a batch, a run each; the last one is filled with its last sample."""
        count = len(next(iter(feed.values())))
        size = self._portion or count
        for start in range(0, count, size):
            made = {}
            for each in self._inputs:
                if each.name not in self._types:
                    continue
                part = feed[each.spec.name][start : start + size]
                if self._portion is not None and len(part) < size:
                    part = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
                declared = _TYPES.get(self._types[each.name])
                part = part if declared is None else part.astype(declared, copy=False)
                made[each.name] = np.ascontiguousarray(part[0] if each.is_whole else part)
            yield made


def _joined(values: Sequence[npt.NDArray[Any]], size: int) -> npt.NDArray[Any]:
    first = values[0]
    return np.concatenate(values) if first.ndim and len(first) == size else np.stack(values)
