"""Sizes of a graph's inputs: those a user gives, and 1 for a free batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lrexport.errors import UsageError

if TYPE_CHECKING:
    import onnx


def inputs_of(graph: Any) -> list[Any]:
    """What a user feeds: old files list their weights among the inputs, too."""
    initial = {tensor.name for tensor in graph.initializer}
    return [item for item in graph.input if item.name not in initial]


def sizes_of(item: Any) -> Any:
    """The dimensions of an input, an output or a value, as messages that can be written to."""
    return item.type.tensor_type.shape.dim


def with_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """A copy of the model whose inputs have the sizes of ``shapes``; a symbol gets its value wherever it stands.

    Raises UsageError for a name that is not an input, and for sizes that contradict those of the file or one another.
    """
    if not shapes:
        return model
    sized = type(model)()
    sized.CopyFrom(model)
    inputs = {item.name: item for item in inputs_of(sized.graph)}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(f"the file has no input {name!r}", f"Its inputs: {_listed(inputs.values())}.")
        _set_sizes(inputs[name], shape, symbols)
    for item in (*sized.graph.input, *sized.graph.output, *sized.graph.value_info):
        for size in sizes_of(item):
            if size.dim_param in symbols:
                size.dim_value = symbols[size.dim_param]
    return sized


def _set_sizes(item: Any, shape: Sequence[int], symbols: dict[str, int]) -> None:
    said = f"{item.name} of {shape_text(item)}"
    if not item.type.HasField("tensor_type"):
        raise UsageError(f"{item.name} is not a tensor: it has no shape", "Give shapes of the file's tensors only.")
    if not item.type.tensor_type.HasField("shape"):
        for size in shape:
            item.type.tensor_type.shape.dim.add().dim_value = size
        return
    sizes = sizes_of(item)
    if len(sizes) != len(shape):
        raise UsageError(f"invalid shape {_sized(shape)} for {said}: expected {len(sizes)} sizes, not {len(shape)}")
    for dim, size in zip(sizes, shape, strict=True):
        if dim.dim_value > 0 and dim.dim_value != size:
            raise UsageError(f"invalid shape {_sized(shape)} for {said}: the file fixes {dim.dim_value}, not {size}")
        known = symbols.setdefault(dim.dim_param, size) if dim.dim_param else size
        if known != size:
            raise UsageError(f"invalid shape {_sized(shape)} for {said}: {dim.dim_param} is {known} already, not {size}")
        if not dim.dim_param:
            dim.dim_value = size


def shape_text(item: Any) -> str:
    """``1,3,H,W``; ``?`` for a free size without a name."""
    if not item.type.tensor_type.HasField("shape"):
        return "unknown shape"
    sizes = (str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in sizes_of(item))
    return ",".join(sizes) or "no axes"


def _listed(items: Any) -> str:
    return ", ".join(f"{item.name} of {shape_text(item)}" for item in items) or "none"


def _sized(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))
