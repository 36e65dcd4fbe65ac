"""A digest of a graph without its trained weights: equal for networks of the same structure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

# Small tensors may be sizes: shapes, axes and pads are integers, the scales of Resize are floats.
_MOST_SIZES, _MOST_FACTORS = 64, 6
_NOT_THE_NETWORK = ("producer_name", "producer_version", "doc_string", "metadata_props")


def structure_digest(model: onnx.ModelProto) -> str:
    """Hex sha256 of the model without weights and descriptions; clears both in ``model`` itself."""
    import onnx

    sizes = {onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL}
    for tensor in list(_tensors(model)):
        if prod(tensor.dims) > (_MOST_SIZES if tensor.data_type in sizes else _MOST_FACTORS):
            _keep(tensor, "dims", "data_type", "name")
    for name in _NOT_THE_NETWORK:
        model.ClearField(name)
    for message in _described(model):
        message.ClearField("doc_string")
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _keep(message: Any, *names: str) -> None:
    for descriptor, _ in message.ListFields():
        if descriptor.name not in names:
            message.ClearField(descriptor.name)


def _tensors(message: Any) -> Iterator[Any]:
    return (part for part in _parts(message) if type(part).__name__ == "TensorProto")


def _described(message: Any) -> Iterator[Any]:
    return (part for part in _parts(message) if "doc_string" in type(part).DESCRIPTOR.fields_by_name)


def _parts(message: Any) -> Iterator[Any]:
    """The message and all messages in it."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        yield part
        for descriptor, value in part.ListFields():
            if descriptor.type == descriptor.TYPE_MESSAGE:
                waiting += [value] if hasattr(value, "ListFields") else list(value)
