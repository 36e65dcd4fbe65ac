"""The options of a target, after ``?`` and joined by ``&``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from lrexport.errors import UsageError
from lrexport.measure.runtimes.base import DEFAULT, IN_BROWSER, NAMES
from lrexport.text import nearest


def options_of(text: str, query: str, known: Sequence[str], syntax: str) -> dict[str, str]:
    """The options in ``query`` of the target ``text``. Raises UsageError for an unknown one, or one given twice."""
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise UsageError(f"invalid target {text!r}: unknown option {', '.join(unknown)}", f"Known: {syntax}.")
    if len(options) < len(pairs):
        raise UsageError(f"invalid target {text!r}: an option is given twice", f"Expected: {syntax}.")
    return options


def runtime_in(text: str, options: Mapping[str, str]) -> str:
    """The runtime that a target's options name, or the default. Raises UsageError for an unknown one."""
    name = options.get("runtime", DEFAULT)
    if name not in NAMES:
        if name == IN_BROWSER:
            raise UsageError(f"invalid target {text!r}: {name} runs in browsers", "Use --target browser.")
        near = nearest(name, NAMES)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UsageError(f"invalid target {text!r}: unknown runtime {name!r}", f"{hint}Known: {', '.join(NAMES)}.")
    return name
