"""The inputs of an ONNX file, and the batch among their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor

from lrexport.errors import InputError, UsageError
from lrexport.signature import DTYPES, INPUT, InputSpec, Signature
from lrexport.torch_tools.batch import draw_input

_NAMES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
_NAMES[16] = "bfloat16"


@dataclass(frozen=True)
class FileInput:
    """One input: ``name`` in the file, and ``spec`` of one sample of it.

    ``batch`` is a fixed size of its first axis, None for a free one. ``is_whole``: it has no batch axis, so that a sample
    is the whole input.
    """

    name: str
    spec: InputSpec
    batch: int | None = None
    is_whole: bool = False


@dataclass(frozen=True)
class _Declared:
    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "any shape" if self.shape is None else " × ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {sizes or 'one number'} {self.dtype}"


def inputs_of(model: ModelProto, asked: Signature | None, where: str) -> tuple[FileInput, ...]:
    """The inputs of a model, with the sizes of ``asked`` where the file leaves them free; ``where`` names the file.

    Raises InputError for inputs that are no tensors of numbers, UsageError where sizes are missing or do not fit.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    declared = [_declared(item, where) for item in model.graph.input if item.name not in weights]
    if not declared:
        raise InputError(f"{where} has no inputs: it always returns the same")
    safe = [_safe(item.name) for item in declared]
    if len(set(safe)) < len(safe):
        raise InputError(f"{where} has inputs whose names differ only in '=', ':' and ',': {', '.join(safe)}")
    specs = _asked(declared, asked, where)
    firsts = {item.shape[0] for item in declared if item.shape}
    (shared,) = firsts if len(firsts) == 1 else (None,)
    return tuple(_input(item, specs.get(item.name), shared, where) for item in declared)


def random_inputs(
    inputs: Sequence[FileInput], like: Tensor | None = None, samples: int | None = None, seed: int = 0
) -> list[Tensor]:
    """Random inputs (B, …) in their order, by default as many samples as the file takes at once; ``like`` says where."""
    like, generator = torch.empty(0) if like is None else like, torch.Generator().manual_seed(seed)
    return [draw_input(each.spec, samples or each.batch or 1, like, generator) for each in inputs]


def _declared(item: Any, where: str) -> _Declared:
    kind = item.type.WhichOneof("value")
    name = _NAMES.get(item.type.tensor_type.elem_type) if kind == "tensor_type" else None
    if name not in DTYPES:
        what = kind.removesuffix("_type") if kind and kind != "tensor_type" else "a tensor that holds no numbers"
        raise InputError(f"{where}: input {item.name!r} is {what}; expected a tensor of numbers")
    if not item.type.tensor_type.HasField("shape"):
        return _Declared(item.name, name, None)
    dims = item.type.tensor_type.shape.dim
    return _Declared(item.name, name, tuple(_size(dim, axis) for axis, dim in enumerate(dims)))


def _size(dim: Any, axis: int) -> int | None:
    """A fixed size, None for a free one. A batch that is not the first axis, as of a recurrent state, is 1."""
    if dim.dim_value > 0:
        return int(dim.dim_value)
    return 1 if axis and "batch" in str(dim.dim_param).lower() else None


def _asked(declared: list[_Declared], asked: Signature | None, where: str) -> dict[str, InputSpec]:
    if asked is None:
        return {}
    names = {_safe(item.name): item.name for item in declared}
    if len(asked) == len(declared) == 1 and asked.names == (INPUT,):
        return {declared[0].name: asked.inputs[0]}
    unknown = [name for name in asked.names if name not in names]
    if unknown:
        listed = ", ".join(map(str, declared))
        raise UsageError(f"{where} has no input {unknown[0]!r}", f"Its inputs: {listed}.")
    return {names[spec.name]: spec for spec in asked}


def _input(item: _Declared, asked: InputSpec | None, shared: int | None, where: str) -> FileInput:
    """``shared`` is the first size of all inputs if it is the same."""
    shape = item.shape
    if shape is None:
        if asked is None:
            raise _missing(item, where)
        return FileInput(item.name, _spec(item, asked.shape, asked))
    first = shape[0] if shape else None
    is_whole = not shape or (first is not None and first != 1 and first != shared)
    # Sizes of all axes are given where the first one is free but no batch, as the steps of a sequence.
    is_whole |= asked is not None and len(asked.shape) == len(shape) and first in (None, 1)
    own = shape if is_whole else shape[1:]
    if asked is None:
        if None in own:
            raise _missing(item, where)
        sizes = tuple(size for size in own if size is not None)
    else:
        sizes = asked.shape
        fits = len(sizes) == len(own) and all(size in (None, mine) for size, mine in zip(own, sizes, strict=True))
        if not fits:
            expected = ",".join("?" if size is None else str(size) for size in own) or "no size"
            raise UsageError(
                f"{where}: input {item.name!r} of the shape {','.join(map(str, sizes)) or 'of one number'} does not fit",
                f"Expected {expected}: the file declares {item}"
                + ("." if is_whole else ", whose first axis is the batch and is left out."),
            )
    return FileInput(item.name, _spec(item, sizes, asked), None if is_whole else first, is_whole)


def _spec(item: _Declared, sizes: tuple[int, ...], asked: InputSpec | None) -> InputSpec:
    dtype = None if item.dtype == "float32" else item.dtype
    if asked is not None and asked.dtype not in (None, item.dtype):
        raise UsageError(f"input {item.name!r} is {item.dtype} in the file, not {asked.dtype}", "Omit its type.")
    low, high = (None, None) if asked is None else (asked.low, asked.high)
    return InputSpec(_safe(item.name), sizes, dtype, low, high)


def _safe(name: str) -> str:
    """A name that InputSpec accepts."""
    for char in "=:,\n":
        name = name.replace(char, "_")
    return name


def _missing(item: _Declared, where: str) -> UsageError:
    sizes = "SIZES" if item.shape is None else ",".join("SIZE" if size is None else str(size) for size in item.shape[1:])
    return UsageError(
        f"{where} leaves sizes of its input free: {item}",
        f"Give --input {_safe(item.name)}={sizes}, without the batch; in Python inputs={{{item.name!r}: (…)}}.",
    )
