"""What an implementation knows of its node before it runs, and helpers that families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = Sequence[Tensor | None]
Operator = Callable[[Values], tuple[Tensor, ...]]
Form = Callable[["NodeFacts"], Operator | None]
Forms = Mapping[str, Form]

# A foreign graph may ask for tensors of any size; no network of an edge device has one of these many values.
MOST_VALUES = 1 << 30


@dataclass(frozen=True)
class NodeFacts:
    """A node: its operator, the version of the standard operators, its attributes as Python values, tensors as arrays.

    ``inputs`` and ``outputs`` are how many it declares, trailing missing ones left out.
    """

    operator: str
    opset: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    inputs: int = 1
    outputs: int = 1

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or its default."""
        return self.attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a word."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def has_only(self, *names: str) -> bool:
        """Whether it has no other attributes than these."""
        return not set(self.attributes) - set(names)


class TooLargeError(Exception):
    """A graph asks for a tensor with far more values than a network has."""


class NotCoveredError(Exception):
    """A node has a form, seen only when it runs, that its implementation does not cover."""


def only(form: Form, *names: str) -> Form:
    """The form for nodes with no other attributes than these: an unknown attribute may change what a node computes."""
    return lambda facts: form(facts) if facts.has_only(*names) else None


def plain(run: Operator) -> Form:
    """The form of an operator without attributes."""
    return only(lambda facts: run)


def needed(value: Tensor | None) -> Tensor:
    """An input that the operator requires. Raises ValueError without it."""
    if value is None:
        raise ValueError("a required input is missing")
    return value


def at(values: Values, index: int) -> Tensor | None:
    """An optional input."""
    return values[index] if index < len(values) else None


_NUMBERS = "lrexport_numbers"


def with_numbers(value: Tensor, numbers: Sequence[Any]) -> Tensor:
    """The same tensor, whose values :func:`numbers_of` knows: torch's export has no values where it traces a graph."""
    setattr(value, _NUMBERS, list(numbers))
    return value


def numbers_of(value: Tensor) -> list[Any]:
    """The values of a tensor as numbers, in one list."""
    known: list[Any] | None = getattr(value, _NUMBERS, None)
    return value.reshape(-1).tolist() if known is None else known


def integers(value: Tensor | None) -> list[int] | None:
    """A tensor of integers as a list, None if missing."""
    return None if value is None else listed(value)


def listed(value: Tensor) -> list[int]:
    """A tensor of integers as a list."""
    return [int(number) for number in numbers_of(value)]


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front. Raises ValueError outside of the rank."""
    if not -rank <= axis < max(rank, 1):
        raise ValueError(f"axis {axis} of a tensor of rank {rank}")
    return axis % rank if rank else 0


def unary(function: Callable[[Tensor], Tensor]) -> Form:
    """The form of an operator of one input without attributes."""

    def run(values: Values) -> tuple[Tensor, ...]:
        return (function(needed(values[0])),)

    return plain(run)


def check_size(shape: Sequence[int]) -> list[int]:
    """The shape. Raises TooLargeError if a tensor of this shape would have more than MOST_VALUES values."""
    total = 1
    for size in shape:
        total *= max(0, int(size))
    if total > MOST_VALUES:
        raise TooLargeError(f"a tensor of shape {tuple(shape)} has more than {MOST_VALUES:,} values")
    return [int(size) for size in shape]


_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
FLOATS = (1, 10, 11, 16)


def type_of(code: int) -> torch.dtype | None:
    """The torch type of an ONNX type; None for types that torch does not compute with."""
    return _TYPES.get(code)


def from_array(array: np.ndarray[Any, Any], shared: bool = False) -> Tensor | None:
    """A tensor of an array; types that torch lacks become wider ones. None for text and complex numbers.

    It is a copy; ``shared`` uses the array's memory if that can be.

    Integers of four bits become int16, so that none is taken for int8, whose limits quantisation keeps to.
    """
    name = array.dtype.name
    if name in ("bfloat16", "float16") or name.startswith(("float8", "float4")):
        array = array.astype(np.float32)
    elif name in ("uint16", "uint32", "uint64"):
        array = array.astype(np.int64)
    elif name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int16)
    elif array.dtype.kind not in "fiub":
        return None
    return torch.from_numpy(np.require(array, requirements=["C", "W"]) if shared else np.array(array, order="C", copy=True))
