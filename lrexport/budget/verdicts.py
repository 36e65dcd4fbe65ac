"""A verdict for every limit, by the interval rule, and the layers that explain it.

A limit fails only if the whole interval of the figure exceeds it. If a part of it does, or the measurement is in doubt, the
limit is inconclusive. Exact figures are points. A figure that was not measured never passes, nor does a lower bound, which
proves nothing within the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import singledispatch
from typing import Literal

from lrexport.budget.facts import Facts
from lrexport.budget.figures import Measured, Missing, Share, no_graph
from lrexport.budget.limits import Bound, Budget, Limit, Operators
from lrexport.budget.quantities import Comparison

Status = Literal["passed", "warning", "inconclusive", "not measured", "failed", "bad input"]
_MOST_LAYERS = 5


@dataclass(frozen=True)
class LayerChange:
    """A layer's share of a figure, now and in the baseline; ``before`` is None if the baseline lacks the layer."""

    name: str
    before: int | None
    now: int


@dataclass(frozen=True)
class Explanation:
    """The layers that grew most since the baseline; with ``grew`` False the largest layers."""

    share: Share
    layers: tuple[LayerChange, ...]
    grew: bool


@dataclass(frozen=True)
class Verdict:
    """The verdict on one limit.

    ``label``, ``expected``, ``found`` and ``over`` (the overshoot) are texts for people; ``value`` and ``limit_value`` are
    in ``unit``, or None. A lower bound is in ``at_least``, and ``value`` is None. ``is_judged``: the figure was compared
    with the limit.
    """

    budget: str
    limit: Limit
    status: Status
    label: str
    expected: str
    found: str
    over: str = ""
    note: str = ""
    value: float | None = None
    limit_value: float | None = None
    unit: str = ""
    explanation: Explanation | None = None
    at_least: float | None = None
    is_judged: bool = True


def judge(budget: Budget, subject: Comparison, strict: bool = False) -> list[Verdict]:
    """One verdict for every limit of a budget; with ``strict`` an inconclusive limit fails.

    If the budget only warns, limits that fail or were not measured are warnings.
    """
    verdicts = [_judge(limit, budget, subject) for limit in budget.limits]
    verdicts = [_failed(verdict) if strict and verdict.status == "inconclusive" else verdict for verdict in verdicts]
    return [_warned(verdict) for verdict in verdicts] if budget.warns else verdicts


def unjudged(budget: Budget, status: Status, why: str) -> list[Verdict]:
    """The single verdict of a budget on a model that could not be read; ``why`` includes what to do."""
    limit = Limit("path", ", ".join(budget.paths), budget.place)
    verdict = Verdict(budget.name, limit, status, "file", "a readable model", "—", note=why, is_judged=False)
    return [_warned(verdict) if budget.warns else verdict]


def _warned(verdict: Verdict) -> Verdict:
    return replace(verdict, status="warning") if verdict.status in ("failed", "not measured") else verdict


def _failed(verdict: Verdict) -> Verdict:
    return replace(verdict, status="failed", note=f"inconclusive, which fails with --strict: {verdict.note}")


@singledispatch
def _judge(limit: Limit, budget: Budget, subject: Comparison) -> Verdict:
    raise TypeError(type(limit))


@_judge.register
def _judge_bound(limit: Bound, budget: Budget, subject: Comparison) -> Verdict:
    quantity = limit.quantity
    label = quantity.label_for(subject.now) + (f" on {budget.target}" if quantity.figure.name.startswith("latency") else "")
    expected = f"at {'most' if limit.most else 'least'} {limit.text}"
    measured = quantity.measure(subject, budget.target)
    if isinstance(measured, Missing):
        why_not: Status = "bad input" if measured.is_damaged else "not measured"
        return Verdict(budget.name, limit, why_not, label, expected, "—", note=measured.why, is_judged=False)
    status = _status(limit, measured)
    failed = status == "failed"
    return Verdict(
        budget=budget.name,
        limit=limit,
        status=status,
        label=label,
        expected=expected,
        found=_shown(limit, measured),
        over=_overshoot(limit, measured) if failed else "",
        note=_why(measured, status),
        value=None if measured.is_lower_bound else measured.value,
        at_least=measured.value if measured.is_lower_bound else None,
        is_judged=status != "not measured",
        limit_value=limit.value,
        unit=quantity.unit,
        explanation=_explain(quantity.figure.share, subject) if failed else None,
    )


@_judge.register
def _judge_operators(limit: Operators, budget: Budget, subject: Comparison) -> Verdict:
    label = "operators"
    expected = f"{'only' if limit.allowed else 'none of'} {limit.text}"
    if subject.now.operators is None:
        kind = subject.now.kind
        why = no_graph(kind) if kind else "no ONNX file to read operators from: lrexport onnx RUN writes it"
        return Verdict(budget.name, limit, "not measured", label, expected, "—", note=why, is_judged=False)
    matching = {name for name in subject.now.operators if any(fnmatchcase(name, pattern) for pattern in limit.patterns)}
    wrong = [name for name in subject.now.operators if (name in matching) != limit.allowed]
    if not wrong:
        return Verdict(budget.name, limit, "passed", label, expected, f"{len(subject.now.operators)} kinds")
    return Verdict(budget.name, limit, "failed", label, expected, ", ".join(wrong))


def _status(limit: Bound, measured: Measured) -> Status:
    past, within = measured.low > limit.value, measured.high <= limit.value
    if not limit.most:
        past, within = measured.high < limit.value, measured.low >= limit.value
    if past:
        return "failed"
    if measured.is_lower_bound:
        return "not measured"
    return "passed" if within and not measured.doubt else "inconclusive"


def _shown(limit: Bound, measured: Measured) -> str:
    """The value, in full if it would otherwise look equal to the limit, and its interval unless it is exact."""
    show = limit.quantity.show
    text = show(measured.value)
    if text == show(limit.value) and measured.value != limit.value and measured.value == round(measured.value):
        text = f"{measured.value:,.0f} {limit.quantity.unit}"
    if measured.exact:
        return text
    return f"{text} or more" if measured.is_lower_bound else f"{text} ({show(measured.low)} to {show(measured.high)})"


def _overshoot(limit: Bound, measured: Measured) -> str:
    difference = abs(measured.value - limit.value)
    # A size is clearer with a percentage; a ratio is not.
    plain = limit.quantity.unit not in ("ratio", "fraction", "") and limit.value
    return limit.quantity.show_difference(difference) + (f" ({_percent(difference / limit.value)})" if plain else "")


def _why(measured: Measured, status: Status) -> str:
    doubt = measured.doubt.removeprefix("inconclusive: ")
    if status == "inconclusive":
        return doubt or "the limit lies within the interquartile range: measure more rounds on a quieter machine"
    return doubt if status in ("failed", "not measured") else ""


def _explain(share: Share | None, subject: Comparison) -> Explanation | None:
    if share is None:
        return None
    earlier = subject.baseline.layers if isinstance(subject.baseline, Facts) else {}
    now = {name: share.of(layer) for name, layer in subject.now.layers.items()}
    before = {name: share.of(layer) for name, layer in earlier.items()}
    changes = [LayerChange(name, before.get(name), size) for name, size in now.items() if size]
    grew = [change for change in changes if before and change.now > (change.before or 0)]
    if grew:
        grew.sort(key=lambda change: (change.before or 0) - change.now)
        return Explanation(share, tuple(grew[:_MOST_LAYERS]), True)
    changes.sort(key=lambda change: -change.now)
    return Explanation(share, tuple(changes[:_MOST_LAYERS]), False) if changes else None


def _percent(share: float) -> str:
    """Three significant digits, or all before the decimal point: ``0.123 %``, ``12.3 %``, ``9230 %``."""
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 1000 else f"{percent:.3g} %"
