"""JSON that somebody else may have written: nested as deep and with numbers as large as lrexport's own files, no more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts import files
from lrexport.errors import InputError

if TYPE_CHECKING:  # commands that read no record start without it
    from pydantic import ValidationError

_MOST_DEPTH = 64  # what is nested deeper would end in the recursion limit wherever it is looked at
_MOST_WHOLE = 2**63  # no whole number of lrexport's is larger
_MOST_SHOWN = 18  # digits of a number that is refused
Pairs = Callable[[list[tuple[str, Any]]], Any]


def read_json(path: Path, hint: str | None = None, pairs: Pairs | None = None) -> Any:
    """The value in a file. ``pairs`` makes the dictionaries. Raises InputError with the place of the mistake."""
    content = files.read_bytes(path)
    try:
        return parse_json(content, pairs)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})", hint) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", hint) from error


def parse_json(content: bytes, pairs: Pairs | None = None) -> Any:
    """The value of a text. Raises ValueError, also for NaN, numbers beyond 64 bits and what is nested too deep."""
    too_deep = f"nested more than {_MOST_DEPTH} levels deep"
    try:
        value = json.loads(content, parse_int=_whole, parse_float=_number, parse_constant=_constant, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError(too_deep) from None
    if _depth(value) > _MOST_DEPTH:
        raise ValueError(too_deep)
    return value


def unicode_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary for what is read into classes, which write no name that is not Unicode. Raises ValueError."""
    for name, _ in pairs:
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            raise ValueError(f"the name {name[:_MOST_SHOWN]!r} is not Unicode")
    return dict(pairs)


def first_fault(error: ValidationError) -> str:
    """``results.dense.macs: Input should be a valid integer``: the first thing that is wrong, and where it stands."""
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
    raise ValueError(f"{name} is not a number that JSON has")


def _depth(value: Any) -> int:
    """How many lists and dictionaries are inside one another, looked at level by level."""
    depth, level = 0, [value]
    while level:
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        depth += 1
    return depth
