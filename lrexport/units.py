"""Parse and print bytes, milliseconds, MACs and ratios. One place, so that every table reads alike."""

from __future__ import annotations

import math
import re

from lrexport.errors import UsageError

_BYTE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match:
        raise UsageError(f"{text!r} is no {what}", f"Write it like {example}.")
    return float(match[1]), match[2]


def parse_bytes(text: str) -> int:
    """Bytes from ``"500 KB"`` (10³) or ``"500 KiB"`` (2¹⁰); a unit is required. Raises UsageError."""
    value, unit = _split(text, "size", "500KB or 1.5 MiB")
    if unit.upper() not in _BYTE_UNITS:
        raise UsageError(f"{text!r} is no size: unit {unit!r} is not one of B, KB, MB, GB, KiB, MiB, GiB")
    return round(value * _BYTE_UNITS[unit.upper()])


def parse_share(text: str) -> float:
    """A share of the dense network in (0, 1], from ``"0.5"`` or ``"50%"``. Raises UsageError."""
    percent = text.strip().endswith("%")
    value, unit = _split(text.strip().rstrip("%"), "share", "0.5 or 50%")
    value = value / 100 if percent else value
    if unit or not 0 < value <= 1:
        raise UsageError(f"{text!r} is no share of the dense network", "Give a number above 0 and at most 1, like 0.5.")
    return value


def format_bytes(count: float) -> str:
    """``1234567`` → ``"1.23 MB"`` (decimal units)."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """``40551040`` → ``"40.55M"``; used for MACs and parameters."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return f"{count:.0f}"


def format_ms(milliseconds: float) -> str:
    """Three significant digits: ``"0.842 ms"``."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    digits = 3 if milliseconds <= 0 else max(0, 2 - math.floor(math.log10(milliseconds)))
    return f"{milliseconds:.{min(digits, 4)}f} ms"


def format_share(part: float, whole: float) -> str:
    """compressed ÷ dense: ``"0.48×"``; a dash where there is nothing to divide by."""
    return f"{part / whole:.2f}×" if whole else "—"


def format_percent(fraction: float) -> str:
    """``0.9178`` → ``"91.78 %"``."""
    return f"{100 * fraction:.2f} %"


def format_duration(seconds: float) -> str:
    """``"42 s"``, ``"3 min 05 s"`` or ``"1 h 02 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
