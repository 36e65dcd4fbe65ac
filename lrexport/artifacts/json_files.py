"""Read foreign JSON, with the depth and the number size limited to what lrexport's own files need."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import files
from lrexport.errors import InputError

if TYPE_CHECKING:  # commands that read no record need not import pydantic
    from pydantic import ValidationError

_MOST_DEPTH = 64  # deeper values could exceed Python's recursion limit
_MOST_WHOLE = 2**63  # lrexport writes no larger integer
_MOST_SHOWN = 18  # digits of a refused number in its message
Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path, hint: str | None = None, pairs: Pairs | None = None) -> Any:
    """The value in a file; ``pairs`` builds the dictionaries. Raises InputError with the place of the error."""
    content = files.read_bytes(path)
    try:
        return parse_json(content, pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})", hint) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", hint) from error


def parse_json(content: bytes, pairs: Pairs | None = None) -> Any:
    """The value of a JSON text. Raises ValueError, also for NaN, numbers beyond 64 bits and deep nesting."""
    too_deep = f"nested more than {_MOST_DEPTH} levels deep"
    try:
        value = json.loads(content, parse_int=_whole, parse_float=_number, parse_constant=_constant, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(too_deep) from None
    if _depth(value) > _MOST_DEPTH:
        raise ValueError(too_deep)
    return value


def unicode_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary whose names are all valid Unicode, which pydantic needs to write them. Raises ValueError."""
    for name, _ in pairs:
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise ValueError(f"the name {name[:_MOST_SHOWN]!r} is not Unicode")
    return dict(pairs)


def first_fault(error: ValidationError) -> str:
    """The first error and its place: ``results.dense.macs: Input should be a valid integer``."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def _whole(digits: str) -> int:
    if len(digits) > _MOST_SHOWN + 2 or abs(int(digits)) >= _MOST_WHOLE:
        raise ValueError(f"the number {digits[:_MOST_SHOWN]}… is too large")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {digits[:_MOST_SHOWN]} is too large")
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _depth(value: Any) -> int:
    """The depth of nested lists and dictionaries, counted without recursion."""
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        depth += 1
    return depth
