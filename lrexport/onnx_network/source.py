"""The model of a file with its large values apart from it: they are in memory once, and torch uses them where they are."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, helper, numpy_helper

from lrexport.artifacts.onnx_graphs import bodies

# Types with whole bytes a value that weights have; runs of operators look into integers of other types.
_HELD = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8)
_LEAST_BYTES = 1 << 14


class SourceModel:
    """A file's model. ``light`` has everything of it but large values, in whose places are keys: it is not to be run."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """``model`` is taken over, and has no values afterwards."""
        self._held: dict[bytes, np.ndarray[Any, Any]] = {}
        mark = secrets.token_bytes(16)
        for tensor in tensors_of(model):
            if tensor.data_type in _HELD and len(tensor.raw_data) >= _LEAST_BYTES:
                key = mark + len(self._held).to_bytes(4, "big")
                self._held[key] = np.frombuffer(tensor.raw_data, np.uint8).copy()
                tensor.raw_data = key
        # Only a new message has less memory than the old one.
        self.light = onnx.ModelProto.FromString(model.SerializeToString())
        model.Clear()

    def array(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        """The values of a tensor of ``light``; held ones are not copied. Raises the errors of a damaged tensor."""
        held = self._held_for(tensor)
        if held is None:
            return numpy_helper.to_array(tensor)
        return held.view(helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))

    def fill(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Put the values into their places in a model that was made from ``light``, which is returned."""
        for tensor in tensors_of(model):
            held = self._held_for(tensor)
            if held is not None:
                tensor.raw_data = held.tobytes()
        return model

    def _held_for(self, tensor: TensorProto) -> np.ndarray[Any, Any] | None:
        """The bytes that a tensor has a key for; None if it has its values itself, which are not copied to look them up."""
        return self._held.get(tensor.raw_data) if len(tensor.raw_data) < _LEAST_BYTES else None

    def whole(self) -> onnx.ModelProto:
        """A copy of the model as the file has it."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self.light)
        return self.fill(copy)


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """The initializers of all graphs, and the tensors of Constant nodes."""
    for body in bodies(model):
        if isinstance(body, GraphProto):
            yield from body.initializer
        for node in body.node:
            if node.op_type == "Constant":
                yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
