"""Parse and format bytes, milliseconds, MACs and ratios, in the same way for all tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from lrexport.errors import UsageError

_OTHER_UNITS = ("x", "b", "kb", "mb", "gb", "kib", "mib", "gib", "us", "ms", "s", "k", "m", "g", "point", "points", "pp")
_DIGITS = 14  # makes 0.7 ÷ 100 0.007, not 0.006999999999999999


def parse_share(text: str) -> float:
    """A share of the dense network in (0, 1], from ``"0.5"`` or ``"50%"``. Raises UsageError."""
    value = _share(text)
    if value is None or value <= 0:
        raise UsageError(f"invalid share {text!r}: expected a number in (0, 1] or a percentage", "For example 0.5 or 50%.")
    return value


def parse_energy(text: str) -> float:
    """The share of a layer's energy that may be dropped, in [0, 1], from ``"1e-2"`` or ``"1%"``. Raises UsageError."""
    value = _share(text)
    if value is None:
        raise UsageError(f"invalid share {text!r}: expected a number in [0, 1] or a percentage", "For example 1e-2 or 1%.")
    return value


def parse_bytes(text: str) -> int:
    """Bytes from ``"500KB"``, ``"1.5 MB"``, ``"64 KiB"`` or ``"1234 B"``. Raises UsageError, also without a unit."""
    sizes = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    value, unit = _number_and_unit(text)
    size = sizes.get(unit.upper())
    if size is None or round(value * size) < 1:
        raise UsageError(f"invalid size {text!r}: expected a number and its unit", "For example 500KB, 1.5MB or 64KiB.")
    return round(value * size)


def parse_count(text: str) -> int:
    """MACs or parameters from ``"20M"``, ``"1.5 GMACs"`` or ``"270000 params"``. Raises UsageError, also without a unit."""
    value, unit = _number_and_unit(text)
    match = re.fullmatch(r"([KMG]?)(macs?|params?|parameters?|)", unit, re.IGNORECASE)
    if match is None or not unit:
        raise UsageError(
            f"invalid count {text!r}: expected a number and its unit", "For example 20M, 1.5G, 270K or 270000 params."
        )
    return round(value * {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[match[1].upper()])


def parse_ms(text: str) -> float:
    """Milliseconds from ``"5 ms"``, ``"800 us"`` or ``"0.2 s"``. Raises UsageError, also without a unit."""
    value, unit = _number_and_unit(text)
    scale = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}.get(unit)
    if scale is None or value <= 0:
        raise UsageError(
            f"invalid time {text!r}: expected a number above 0 and its unit", "For example 5 ms, 800 us or 0.2 s."
        )
    return value * scale


def parse_ratio(text: str) -> float:
    """A ratio above 0 from ``"0.5x"``, ``"0.5×"`` or ``"50%"``. Raises UsageError, also without a unit."""
    value, unit = _number_and_unit(text)
    scale = {"x": 1, "×": 1, "%": 100}.get(unit)
    if scale is None or value <= 0:
        raise UsageError(f"invalid ratio {text!r}: expected a number above 0 and its unit", "For example 0.5x or 50%.")
    return round(value / scale, _DIGITS)


def parse_percent(text: str) -> float:
    """A fraction from ``"91.5 %"``; it may be 0 or above 1. Raises UsageError, also without a unit."""
    value, unit = _number_and_unit(text)
    if unit != "%":
        raise UsageError(f"invalid percentage {text!r}: expected a number and %", "For example 91.5%.")
    return round(value / 100, _DIGITS)


def parse_points(text: str) -> float:
    """A difference of two shares from ``"0.5 points"``, which is 0.005. Raises UsageError, also without a unit."""
    value, unit = _number_and_unit(text)
    if unit not in ("point", "points", "pp"):
        raise UsageError(
            f"invalid difference {text!r}: expected percentage points with their unit", "For example 0.5 points."
        )
    return round(value / 100, _DIGITS)


def parse_score(text: str) -> tuple[float, str]:
    """A score and the unit or name of its metric, from ``"31 dB"`` or ``"0.95 SSIM"``. Raises UsageError.

    Units of other quantities are refused, because they are mistakes.
    """
    value, unit = _number_and_unit(text)
    if not re.fullmatch(r"[A-Za-z][\w -]*", unit) or unit.lower() in _OTHER_UNITS:
        raise UsageError(
            f"invalid score {text!r}: expected a number and the unit of the metric",
            "For example 91.5% or 0.5 points; 31 dB; 0.95 SSIM for a metric without a unit.",
        )
    return value, unit


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """An input's name and shape, from ``"NAME=1,3,320,320"``. Raises UsageError."""
    name, equals, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.split(",")]
    if not equals or not name.strip() or not all(part.isascii() and part.isdecimal() for part in parts):
        hint = "For example images=1,3,320,320."
        raise UsageError(f"invalid input shape {text!r}: expected NAME=SIZE,SIZE,…", hint)
    return name.strip(), tuple(map(int, parts))


def _share(text: str) -> float | None:
    """A number from 0 to 1, also from a percentage; None for any other text."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*", text)
    value = float(match[1]) / (100 if match[2] else 1) if match else math.inf
    return value if value <= 1 else None


def _number_and_unit(text: str) -> tuple[float, str]:
    """A number and its unit; the unit is "?" without a finite number."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(\D*?)\s*", text)
    value = float(match[1]) if match else math.inf
    return (value, match[2]) if match and math.isfinite(value) else (value, "?")


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


def format_macs(count: int, is_exact: bool = True) -> str:
    """MACs, or a lower bound such as ``"≥ 40.55M"``; a lower bound of 0 is ``"not counted"``."""
    if is_exact:
        return format_count(count)
    return f"≥ {format_count(count)}" if count else "not counted"


def format_macs_share(part: int, whole: int, uncounted: tuple[tuple[str, ...], tuple[str, ...]]) -> str:
    """compressed ÷ dense; a bound or ``"unknown"`` if operators of the part or the whole are ``uncounted``.

    If the same operators are uncounted in both, their cost is the same, so the true ratio lies between that of the counted
    MACs and 1.
    """
    if not any(uncounted):
        return format_share(part, whole)
    return f"≥ {format_share(part, whole)}" if uncounted[0] == uncounted[1] and 0 < part <= whole else "unknown"


def format_ms(milliseconds: float) -> str:
    """Three significant digits: ``"0.842 ms"``."""
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.3g} s"
    digits = 3 if milliseconds <= 0 else max(0, 2 - math.floor(math.log10(milliseconds)))
    return f"{milliseconds:.{min(digits, 4)}f} ms"


def format_share(part: float, whole: float) -> str:
    """compressed ÷ dense: ``"0.48×"``; a dash if ``whole`` is 0."""
    return f"{part / whole:.2f}×" if whole else "—"


def format_percent(fraction: float) -> str:
    """``0.9178`` → ``"91.78 %"``."""
    return f"{100 * fraction:.2f} %"


def format_points(fraction: float) -> str:
    """``0.005`` → ``"0.50 points"``."""
    return f"{100 * fraction:.2f} points"


def format_duration(seconds: float) -> str:
    """``"42 s"``, ``"3 min 05 s"`` or ``"1 h 02 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sum_known(values: Iterable[int | None]) -> int | None:
    """The sum, or None if any value is None."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
