"""Parse and print bytes, milliseconds, MACs and ratios. One place, so that every table reads alike."""

from __future__ import annotations

import math
import re

from lrexport.errors import UsageError


def parse_share(text: str) -> float:
    """A share of the dense network in (0, 1], from ``"0.5"`` or ``"50%"``. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise UsageError(f"{text!r} is no share of the dense network", "Give a number above 0 and at most 1, like 0.5.")
    return value


def parse_bytes(text: str) -> int:
    """Bytes from ``"500KB"``, ``"1.5 MB"``, ``"64 KiB"`` or ``"1234 B"``. Raises UsageError; a number needs its unit."""
    sizes = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    size = sizes.get(match[2].upper()) if match else None
    if match is None or size is None or round(float(match[1]) * size) < 1:
        raise UsageError(f"{text!r} is no size", "Give a number and its unit: 500KB, 1.5MB, 64KiB.")
    return round(float(match[1]) * size)


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
