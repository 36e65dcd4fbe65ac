"""Budgets from ``[tool.lrexport.budget]``: limits with units, checked key by key. docs/budgets.md lists the keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lrexport.artifacts.toml_files import BUDGET, Settings, kind
from lrexport.budget import figures
from lrexport.budget.figures import Figure
from lrexport.budget.quantities import Quantity, drop_from, grown, itself, to_dense
from lrexport.errors import UsageError
from lrexport.text import nearest
from lrexport.units import parse_bytes, parse_count, parse_ms, parse_percent, parse_points, parse_ratio, parse_score

LOCAL = "local"


@dataclass(frozen=True)
class Limit:
    """One line of a budget: its key, its value as written, and its ``file:line``."""

    key: str
    text: str
    place: str


@dataclass(frozen=True)
class Bound(Limit):
    """A quantity must be at most ``value``; with ``most`` False at least ``value``."""

    quantity: Quantity
    value: float
    most: bool = True


@dataclass(frozen=True)
class Operators(Limit):
    """All operators must match one of ``patterns``; with ``allowed`` False none of them."""

    patterns: tuple[str, ...]
    allowed: bool


@dataclass(frozen=True)
class Budget:
    """Limits on the models that ``paths`` matches and ``exclude`` does not; without paths, on any model.

    ``target`` is where latency was measured, ``dense`` an .onnx file used as the dense network, ``shapes`` sizes by input
    name. With ``is_sum`` the limits are on all models together; with ``warns`` failures are only warnings.
    """

    name: str
    limits: tuple[Limit, ...]
    paths: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target: str = LOCAL
    dense: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_sum: bool = False
    warns: bool = False
    place: str = ""

    @property
    def needs_baseline(self) -> bool:
        return any(isinstance(limit, Bound) and limit.quantity.other == "baseline" for limit in self.limits)

    @property
    def needs_gzip(self) -> bool:
        return any(isinstance(limit, Bound) and limit.quantity.figure is figures.GZIP for limit in self.limits)


Parse = Callable[[str], float]


def _itself(figure: Figure, parse: Parse) -> Callable[[str], tuple[Quantity, float]]:
    return lambda text: (itself(figure), parse(text))


def _ratio(figure: Figure) -> Callable[[str], tuple[Quantity, float]]:
    return lambda text: (to_dense(figure), parse_ratio(text))


def _growth(figure: Figure, parse: Parse) -> Callable[[str], tuple[Quantity, float]]:
    """Growth by ``"2%"`` of the baseline's figure, or by ``"10 KB"``."""

    def read(text: str) -> tuple[Quantity, float]:
        relative = text.rstrip().endswith("%")
        return grown(figure, relative), parse_percent(text) if relative else parse(text)

    return read


def _drop(other: Literal["dense", "baseline"], text: str) -> tuple[Quantity, float]:
    """A largest drop of the score: ``"0.5 points"``, or ``"0.1 dB"`` and ``"0.01 SSIM"`` in the metric's unit or name."""
    try:
        return drop_from(other, figures.TOP1_CHANGE), parse_points(text)
    except UsageError:
        value, unit = parse_score(text)
        return drop_from(other, figures.score_in(unit, only_change=True)), value


def _level(text: str) -> tuple[Quantity, float]:
    """A least score: ``"91.5%"``, or ``"31 dB"`` and ``"0.95 SSIM"`` in the metric's unit or name."""
    try:
        return itself(figures.TOP1), parse_percent(text)
    except UsageError:
        value, unit = parse_score(text)
        return itself(figures.score_in(unit, only_change=False)), value


# Key → parser of its value with a unit.
_AT_MOST: dict[str, Callable[[str], tuple[Quantity, float]]] = {
    "max_bytes": _itself(figures.BYTES, parse_bytes),
    "max_gzip_bytes": _itself(figures.GZIP, parse_bytes),
    "max_macs": _itself(figures.MACS, parse_count),
    "max_params": _itself(figures.PARAMS, parse_count),
    "max_latency_p50": _itself(figures.P50, parse_ms),
    "max_latency_p90": _itself(figures.P90, parse_ms),
    "max_bytes_ratio": _ratio(figures.BYTES),
    "max_macs_ratio": _ratio(figures.MACS),
    "max_params_ratio": _ratio(figures.PARAMS),
    "max_latency_ratio": _itself(figures.RATIO, parse_ratio),
    "max_accuracy_drop": lambda text: _drop("dense", text),
    "max_top5_accuracy_drop": lambda text: (drop_from("dense", figures.TOP5), parse_points(text)),
    "max_bytes_growth": _growth(figures.BYTES, parse_bytes),
    "max_gzip_bytes_growth": _growth(figures.GZIP, parse_bytes),
    "max_macs_growth": _growth(figures.MACS, parse_count),
    "max_params_growth": _growth(figures.PARAMS, parse_count),
    "max_latency_growth": _growth(figures.P50, parse_ms),
    "max_accuracy_loss": lambda text: _drop("baseline", text),
    "max_top5_accuracy_loss": lambda text: (drop_from("baseline", figures.TOP5), parse_points(text)),
}
_AT_LEAST: dict[str, Callable[[str], tuple[Quantity, float]]] = {
    "min_accuracy": _level,
    "min_top5_accuracy": _itself(figures.TOP5, parse_percent),
}
_OPSETS = {"max_opset": True, "min_opset": False}
_OPERATORS = {"allowed_operators": True, "forbidden_operators": False}
_OTHERS = ("path", "exclude", "target", "dense", "shapes", "sum", "severity")
# Figures that can be added up over files.
_ADDED = (figures.BYTES, figures.GZIP, figures.MACS, figures.PARAMS)
_SEVERITIES = {"error": False, "warn": True}
_EXCLUDED = "!"
KEYS = (*_AT_MOST, *_AT_LEAST, *_OPSETS, *_OPERATORS, *_OTHERS)


def read_budgets(settings: Settings) -> list[Budget]:
    """The budgets of a configuration: the table itself if it has limits, and each table in it by name.

    Raises UsageError with file, line and the nearest known key, also for a budget without limits.
    """
    table = settings.table.get(BUDGET, {})
    if not isinstance(table, dict):
        raise UsageError(f"{settings.place(BUDGET)}: invalid {BUDGET}: expected a table of limits, found a {kind(table)}")
    own = {key: value for key, value in table.items() if _canonical(key) in KEYS or not isinstance(value, dict)}
    named = {key: value for key, value in table.items() if key not in own}
    budgets = [make_budget(BUDGET, own, lambda key: settings.place(BUDGET, key))] if own else []
    for name, inner in named.items():
        budgets.append(make_budget(name, inner, lambda key, name=name: settings.place(BUDGET, name, key)))  # type: ignore[misc]
    return budgets


def make_budget(name: str, table: Mapping[str, Any], place: Callable[[str], str]) -> Budget:
    """One budget from its keys and values; ``place(key)`` is the place of a key. Raises UsageError."""
    limits: list[Limit] = []
    others: dict[str, Any] = {}
    for written, value in table.items():
        key, where = _canonical(written), place(written)
        if key not in KEYS:
            raise UsageError(f"{where}: unknown key {written!r} in the budget {name!r}", _nearest(key))
        if key in _OTHERS:
            others |= _other(key, value, where)
        else:
            limits.append(_limit(key, value, where))
    if not limits:
        raise UsageError(f"{place('')}: the budget {name!r} has no limits", 'Add one, for example max_bytes = "500 KB".')
    exclude = (*others.pop("not_paths", ()), *others.pop("exclude", ()))
    budget = Budget(name, tuple(limits), exclude=exclude, place=place(""), **others)
    if budget.is_sum:
        _refuse_in_sum(budget, place)
    return budget


def _other(key: str, value: Any, place: str) -> dict[str, Any]:
    """Fields of :class:`Budget` from a key that is not a limit. Raises UsageError."""
    if key == "path":
        texts = _texts(key, value, place)
        paths = tuple(text for text in texts if not text.startswith(_EXCLUDED))
        if not paths:
            raise UsageError(
                f"{place}: path only has exclusions", 'Add what to include, for example ["*.onnx", "!old.onnx"].'
            )
        excluded = tuple(text[len(_EXCLUDED) :] for text in texts if text.startswith(_EXCLUDED))
        return {"paths": paths, "not_paths": excluded}
    if key == "exclude":
        return {"exclude": _texts(key, value, place)}
    if key == "shapes":
        return {"shapes": _shapes(value, place)}
    if key == "sum":
        if not isinstance(value, bool):
            raise UsageError(f"{place}: invalid sum {value!r}: expected true or false")
        return {"is_sum": value}
    if key == "severity":
        if not isinstance(value, str) or value not in _SEVERITIES:
            raise UsageError(f"{place}: invalid severity {value!r}: expected {' or '.join(map(repr, _SEVERITIES))}")
        return {"warns": _SEVERITIES[value]}
    return {key: _text(key, value, place)}


def _shapes(value: Any, place: str) -> dict[str, tuple[int, ...]]:
    example = "Write all sizes of an input by its name: shapes = {images = [1, 3, 320, 320]}."
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"{place}: invalid shapes: expected a table of inputs, found a {kind(value)}", example)
    for name, sizes in value.items():
        is_list = isinstance(sizes, list | tuple)
        if not is_list or not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise UsageError(f"{place}: invalid shape {sizes!r} of {name!r}: expected a list of numbers above 0", example)
    return {name: tuple(sizes) for name, sizes in value.items()}


def _refuse_in_sum(budget: Budget, place: Callable[[str], str]) -> None:
    """Raise UsageError for keys that apply to a single model only."""
    for key, default in (("target", LOCAL), ("dense", None)):
        if getattr(budget, key) != default:
            raise UsageError(
                f"{place(key)}: {key} applies to a single model, but sum = true adds models up", "Remove one of the two."
            )
    for limit in budget.limits:
        if not (isinstance(limit, Bound) and limit.quantity.figure in _ADDED and limit.quantity.other != "dense"):
            raise UsageError(
                f"{limit.place}: {limit.key} does not apply to a sum of models",
                "With sum = true, limit bytes, bytes after gzip, MACs, parameters, or their growth.",
            )


def _limit(key: str, value: Any, place: str) -> Limit:
    if key in _OPERATORS:
        patterns = _texts(key, value, place)
        return Operators(key, ", ".join(patterns), place, patterns, _OPERATORS[key])
    if key in _OPSETS:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UsageError(f"{place}: invalid {key} {value!r}: expected a whole number")
        return Bound(key, str(value), place, itself(figures.OPSET), value, _OPSETS[key])
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise UsageError(f"{place}: {key} = {value} has no unit", _units_hint(key))
    text = _text(key, value, place)
    try:
        quantity, bound = (_AT_MOST.get(key) or _AT_LEAST[key])(text)
    except UsageError as error:
        raise UsageError(f"{place}: {key}: {error.message}", _units_hint(key)) from error
    return Bound(key, text.strip(), place, quantity, bound, key in _AT_MOST)


def _units_hint(key: str) -> str:
    example = next(example for ending, example in _EXAMPLES if key.endswith(ending))
    return f"Write a number with its unit: {key} = {example}."


_EXAMPLES = (
    ("bytes_growth", '"2%" or "10 KB"'),
    ("latency_growth", '"5%" or "0.2 ms"'),
    ("growth", '"0%" or "200K"'),
    ("_ratio", '"0.5x" or "50%"'),
    ("top5_accuracy_drop", '"0.5 points"'),
    ("top5_accuracy_loss", '"0.5 points"'),
    ("_drop", '"0.5 points", or "0.1 dB" for a metric in dB'),
    ("_loss", '"0.5 points", or "0.1 dB" for a metric in dB'),
    ("_bytes", '"500 KB"'),
    ("_macs", '"20M"'),
    ("_params", '"270K"'),
    ("_p50", '"5 ms"'),
    ("_p90", '"5 ms"'),
    ("top5_accuracy", '"91.5%"'),
    ("_accuracy", '"91.5%", or "31 dB" for a metric in dB'),
)


def _texts(key: str, value: Any, place: str) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    if not items or not all(isinstance(item, str) and item.strip() for item in items):
        raise UsageError(f"{place}: invalid {key} {value!r}: expected a string or a list of strings")
    return tuple(items)


def _text(key: str, value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        actual = "an empty one" if isinstance(value, str) else f"a {kind(value)}"
        raise UsageError(f"{place}: invalid {key}: expected a string, found {actual}")
    return value


def _canonical(key: str) -> str:
    return key.replace("-", "_")


def _nearest(key: str) -> str:
    close = nearest(key, KEYS)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(KEYS))}."
