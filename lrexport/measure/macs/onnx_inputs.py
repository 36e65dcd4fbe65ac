"""Sizes of a graph's inputs: given by the user, and 1 for a free batch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lrexport.errors import UsageError

# Names of free sizes that are not the batch but lengths within one input.
_LENGTHS = re.compile("seq|len|time|token|frame|step|point|height|width|word|char", re.IGNORECASE)
_NAMELESS = ("?", "*", "None", "-1")


@dataclass(frozen=True)
class SizedInputs:
    """Types of the inputs by name, sizes of symbols such as ``batch``, and given arrays."""

    types: Mapping[str, Any]
    symbols: dict[str, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


def inputs_of(graph: Any) -> list[Any]:
    """The inputs without weights, which old files also list as inputs."""
    initial = {tensor.name for tensor in graph.initializer}
    return [item for item in graph.input if item.name not in initial]


def sized_inputs(graph: Any, shapes: Mapping[str, Sequence[int]], values: Mapping[str, Any] | None = None) -> SizedInputs:
    """Inputs with the sizes of ``shapes``, and 1 for a free batch; the graph itself is not changed.

    ``values`` are arrays for some of the inputs. A symbol has the same size everywhere. Raises UsageError for a name that is
    not an input, and for sizes that contradict the file or one another.
    """
    items = {item.name: _copied(item) for item in inputs_of(graph)}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in items:
            raise UsageError(f"the file has no input named {name!r}", f"Its inputs: {inputs_text(items.values())}.")
        _set_sizes(items[name], shape, symbols)
    free = [item for name, item in items.items() if name not in shapes]
    symbols |= {symbol: 1 for symbol in _batch_symbols(items.values()) if symbol not in symbols}
    if not shapes or free:
        _set_nameless_batch(list(items.values()), free)
    for item in items.values():
        for dim in _dims(item):
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    return SizedInputs({name: item.type for name, item in items.items()}, symbols, values or {})


def _copied(item: Any) -> Any:
    copy = type(item)()
    copy.CopyFrom(item)
    for dim in _dims(copy):
        # Some converters' name for any free size: two of them may differ.
        # protobuf returns text that is not UTF-8 as bytes.
        if (
            (dim.HasField("dim_value") and dim.dim_value <= 0)
            or dim.dim_param in _NAMELESS
            or isinstance(dim.dim_param, bytes)
        ):
            dim.Clear()
    return copy


def _dims(item: Any) -> Any:
    return item.type.tensor_type.shape.dim


def _batch_symbols(items: Iterable[Any]) -> set[str]:
    """Symbols named like a batch; else the first size of the first input, unless it is named like a length."""
    everywhere = [dim.dim_param for item in items for dim in _dims(item) if dim.dim_param]
    said = {symbol for symbol in everywhere if "batch" in symbol.lower()}
    first = next((_dims(item)[0].dim_param for item in items if _dims(item)), "")
    return said or ({first} if first and not _LENGTHS.search(first) else set())


def _set_nameless_batch(items: Sequence[Any], free: Sequence[Any]) -> None:
    """Set unnamed first sizes to 1, if the first input's first size is unnamed as well."""
    first = next((_dims(item)[0] for item in items if _dims(item)), None)
    if first is None or first.HasField("dim_value") or first.dim_param:
        return
    for item in free:
        dims = _dims(item)
        if dims and not dims[0].HasField("dim_value") and not dims[0].dim_param:
            dims[0].dim_value = 1


def _set_sizes(item: Any, shape: Sequence[int], symbols: dict[str, int]) -> None:
    given = ",".join(map(str, shape))
    problem = f"invalid shape {given} for {item.name} of {_shape_text(item)}"
    if not item.type.HasField("tensor_type"):
        raise UsageError(f"invalid shape {given} for {item.name}: it is not a tensor", "Give shapes of tensors only.")
    if not item.type.tensor_type.HasField("shape"):
        for size in shape:
            item.type.tensor_type.shape.dim.add().dim_value = size
        return
    dims = _dims(item)
    if len(dims) != len(shape):
        raise UsageError(f"{problem}: expected {len(dims)} sizes, found {len(shape)}")
    for dim, size in zip(dims, shape, strict=True):
        if dim.HasField("dim_value") and dim.dim_value != size:
            raise UsageError(f"{problem}: the file fixes {dim.dim_value}, not {size}")
        known = symbols.setdefault(dim.dim_param, size) if dim.dim_param else size
        if known != size:
            raise UsageError(f"{problem}: {dim.dim_param} is already {known}, not {size}")
        if not dim.dim_param:
            dim.dim_value = size


def inputs_text(items: Iterable[Any]) -> str:
    """``x of 1,3,H,W, t of H,4``; ``?`` for an unnamed free size."""
    return ", ".join(f"{item.name} of {_shape_text(item)}" for item in items) or "none"


def _shape_text(item: Any) -> str:
    if not item.type.tensor_type.HasField("shape"):
        return "unknown shape"
    sizes = (str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in _dims(item))
    return ",".join(sizes) or "no axes"
