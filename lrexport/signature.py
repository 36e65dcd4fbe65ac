"""What a network takes: its inputs by name, each with shape, dtype and range. No torch, no I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from lrexport.errors import UsageError

INPUT = "input"  # how a single input is called where nobody named it
FLOATS = ("float32", "float64", "float16", "bfloat16")
INTEGERS = ("int64", "int32", "int16", "int8", "uint8")
DTYPES = (*FLOATS, *INTEGERS, "bool")
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_EXAMPLE = "For example image=3,224,224 or tokens=16:int64:0..100."

SpecLike = Union[str, Sequence[int], "InputSpec"]


@dataclass(frozen=True)
class InputSpec:
    """One input, without the batch axis. ``dtype`` None is the precision of the network's weights.

    Random values are drawn from ``low`` to ``high``, both included. Without a range floats are drawn from a normal
    distribution, and integers are 0 or 1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.name or any(char in self.name for char in "=:,\n"):
            raise UsageError(f"invalid input name {self.name!r}: expected a name without '=', ':' and ','", _EXAMPLE)
        if not all(isinstance(size, int) and size > 0 for size in self.shape):
            raise UsageError(f"invalid shape {self.shape!r} of input {self.name!r}: expected sizes above 0", _EXAMPLE)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(
                f"invalid dtype {self.dtype!r} of input {self.name!r}: expected one of {', '.join(DTYPES)}", _EXAMPLE
            )
        if (self.low is None) != (self.high is None) or (self.low is not None and not self.low <= (self.high or 0)):
            raise UsageError(f"invalid range of input {self.name!r}: expected LOW..HIGH, LOW at most HIGH", _EXAMPLE)

    @property
    def is_float(self) -> bool:
        """Whether its values are floating-point numbers."""
        return self.dtype is None or self.dtype in FLOATS

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """From ``[NAME=]SIZE,SIZE,…[:DTYPE[:LOW..HIGH]]``; no size at all is one number a sample. Raises UsageError."""
        name, _, rest = text.rpartition("=")
        sizes, *more = rest.split(":")
        parts = [part.strip() for part in sizes.split(",")] if sizes.strip() else []
        if len(more) > 2 or not all(part.isascii() and part.isdecimal() for part in parts) or (not parts and not more):
            raise UsageError(f"invalid input {text!r}: expected NAME=SIZE,SIZE,…[:DTYPE[:LOW..HIGH]]", _EXAMPLE)
        low, high = _range(more[1], text) if len(more) > 1 else (None, None)
        dtype = (more[0].strip() or None) if more else None
        return cls(name.strip() or INPUT, tuple(map(int, parts)), dtype, low, high)

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        text = f"{self.name}={','.join(map(str, self.shape))}"
        if self.dtype is not None or self.low is not None or not self.shape:
            text += f":{self.dtype or ''}"
        return text if self.low is None or self.high is None else f"{text}:{_plain(self.low)}..{_plain(self.high)}"


@dataclass(frozen=True)
class Signature:
    """The inputs of a network in the order of its forward."""

    inputs: tuple[InputSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.inputs]
        if not names:
            raise UsageError("a network without inputs: expected at least one", _EXAMPLE)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            hint = "Name each of several inputs, as in --input image=3,224,224 --input state=2,128."
            raise UsageError(f"two inputs of the name {twice!r}: expected one", hint)

    @classmethod
    def of(cls, inputs: Signature | Sequence[int] | Mapping[str, SpecLike]) -> Signature:
        """From the shape of a single input, (3, 224, 224), or from shapes or texts by name. Raises UsageError."""
        if isinstance(inputs, Signature):
            return inputs
        if isinstance(inputs, Mapping):
            return cls(tuple(_spec(name, value) for name, value in inputs.items()))
        return cls((InputSpec(INPUT, tuple(inputs)),))

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Signature:
        """From texts, an input each: see :meth:`InputSpec.parse`."""
        return cls(tuple(map(InputSpec.parse, texts)))

    def __iter__(self) -> Iterator[InputSpec]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __str__(self) -> str:
        """For people: ``3 × 224 × 224``, or ``image 3 × 224 × 224, tokens 16 int64``."""
        return ", ".join(self._words(spec) for spec in self.inputs)

    def _words(self, spec: InputSpec) -> str:
        words = [] if self.is_plain else [spec.name]
        words.append(" × ".join(map(str, spec.shape)) or "one number")
        return " ".join(words if spec.dtype is None else [*words, spec.dtype])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in their order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first input, without the batch axis."""
        return self.inputs[0].shape

    @property
    def is_plain(self) -> bool:
        """Whether it is a single input of which nothing but the shape is known."""
        return len(self.inputs) == 1 and self.inputs[0] == InputSpec(INPUT, self.shape)

    @property
    def takes_images(self) -> bool:
        """Whether it is a single input of floats, (C, H, W)."""
        return len(self.inputs) == 1 and len(self.shape) == 3 and self.inputs[0].is_float

    def as_pixels(self) -> Signature:
        """A single image (C, H, W) as pictures have it: uint8 (H, W, C)."""
        channels, height, width = self.shape
        return Signature((InputSpec(self.inputs[0].name, (height, width, channels), "uint8", 0, 255),))

    def texts(self) -> tuple[str, ...]:
        """As :meth:`parse` reads them."""
        return tuple(map(str, self.inputs))


def _spec(name: str, value: Any) -> InputSpec:
    if isinstance(value, InputSpec):
        return InputSpec(name, value.shape, value.dtype, value.low, value.high)
    if isinstance(value, str):
        return InputSpec.parse(f"{name}={value}")
    if isinstance(value, Sequence) and all(isinstance(size, int) for size in value):
        return InputSpec(name, tuple(value))
    raise UsageError(f"invalid input {name!r}: expected a shape or a text like '16:int64:0..100', not {value!r}", _EXAMPLE)


def _range(text: str, whole: str) -> tuple[float, float]:
    match = re.fullmatch(rf"\s*({_NUMBER})\.\.({_NUMBER})\s*", text)
    if match is None or not all(math.isfinite(float(number)) for number in match.groups()):
        raise UsageError(f"invalid range {text!r} in {whole!r}: expected LOW..HIGH", _EXAMPLE)
    return float(match[1]), float(match[2])


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)
