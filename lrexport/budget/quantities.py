"""What a limit applies to: a figure itself, or the figure relative to the dense network's or the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lrexport.budget.facts import Facts, Unreadable, machine_text
from lrexport.budget.figures import P50, P90, Figure, Measured, Missing, Reading, format_ratio, label_of
from lrexport.units import format_points

# More decimals than any figure has; without rounding, 0.93 − 0.92 would exceed a limit of 0.01.
_DIGITS = 12


@dataclass(frozen=True)
class Comparison:
    """A model and what it is compared with. ``any_machine``: latencies of different machines are compared.

    ``gaps`` says why a measured figure does not apply to this model, by the figure's name and the target.
    """

    now: Facts
    dense: Facts | None = None
    baseline: Facts | Unreadable | None = None
    any_machine: bool = False
    gaps: Mapping[tuple[str, str], str] = field(default_factory=dict)

    def read(self, figure: Figure, target: str) -> Reading:
        """A figure of the model itself."""
        reading = figure.read(self.now, target)
        gap = self.gaps.get((figure.name, target))
        return Missing(gap) if gap is not None and isinstance(reading, Missing) else reading


@dataclass(frozen=True)
class Quantity:
    """A figure, or its comparison with another model's by ``compare``.

    ``label``, ``unit`` and the formatting functions are as in :class:`Figure`, but of the compared value.
    """

    figure: Figure
    label: str
    unit: str
    show: Callable[[float], str]
    show_difference: Callable[[float], str]
    other: Literal["", "dense", "baseline"] = ""
    compare: Callable[[Measured, Measured], Reading] | None = None

    def label_for(self, facts: Facts) -> str:
        """The label for one model: a score is called by the name of its metric."""
        return self.label.replace(self.figure.label, label_of(self.figure, facts))

    def measure(self, subject: Comparison, target: str) -> Reading:
        """The value for one model, latencies on ``target``; or why there is none."""
        reading = subject.read(self.figure, target)
        if self.compare is None or isinstance(reading, Missing):
            return reading
        facts = subject.dense if self.other == "dense" else subject.baseline
        if facts is None:
            return Missing(_NOT_THERE[self.other])
        if isinstance(facts, Unreadable):
            return Missing(facts.why, is_damaged=True)
        if self.other == "baseline" and self.figure in (P50, P90):
            refusal = _refusal(subject, target)
            if refusal is not None:
                return refusal
        reference = self.figure.read(facts, target)
        if isinstance(reference, Missing):
            return Missing(f"not known of the {_OWNER[self.other]}: {reference.why}")
        if self.other == "baseline" and _is_unchanged(reading, reference, subject.now, facts):
            return Measured(0.0, 0.0, 0.0)
        if reference.is_lower_bound:
            return Missing(_of_lower_bound(self.other, reference))
        return self.compare(reading, reference)


_NOT_THERE = {
    "dense": "no dense network to compare with: check a RUN, or name the file with dense = in the budget",
    "baseline": "the baseline does not have this model: lrexport check --update-baseline adds it",
}
_OWNER = {"dense": "dense network", "baseline": "baseline"}


def _is_unchanged(now: Measured, before: Measured, facts: Facts, baseline: Facts) -> bool:
    """Whether a figure is unchanged although it is 0 or only partly counted."""
    if now.exact and before.exact:
        return now.value == before.value == 0
    counted = now.is_lower_bound and before.is_lower_bound and facts.uncounted == baseline.uncounted
    return counted and now.value == before.value and facts.graph is not None and facts.graph == baseline.graph


def _of_lower_bound(other: str, reference: Measured) -> str:
    owner = _OWNER[other]
    then = "" if other == "dense" else "; lrexport check --update-baseline accepts the model as it is"
    return f"the {owner}'s figure is a lower bound and cannot be compared with: {reference.doubt}{then}"


def ratio(now: Measured, other: Measured) -> Reading:
    """now ÷ other."""
    if other.low <= 0:
        return Missing("the dense network's figure is 0, so no ratio exists")
    return _divided(now, other, lambda mine, theirs: mine / theirs)


def growth(now: Measured, other: Measured) -> Reading:
    """(now − other) ÷ other."""
    if other.low <= 0:
        return Missing(
            "the baseline's figure is 0, so no percentage exists; limit the growth by a number with its unit instead, "
            "or accept it with lrexport check --update-baseline"
        )
    return _divided(now, other, lambda mine, theirs: (mine - theirs) / theirs)


def increase(now: Measured, other: Measured) -> Reading:
    """Now − other."""
    return _measured(now.value - other.value, now.low - other.high, now.high - other.low, now, other)


def drop(now: Measured, other: Measured) -> Reading:
    """Other − now."""
    return increase(other, now)


def itself(figure: Figure) -> Quantity:
    """The figure itself."""
    return Quantity(figure, figure.label, figure.unit, figure.show, figure.show_difference)


def to_dense(figure: Figure) -> Quantity:
    """The figure ÷ the dense network's."""
    return Quantity(figure, f"{figure.label} ÷ dense", "ratio", format_ratio, format_ratio, "dense", ratio)


def drop_from(other: Literal["dense", "baseline"], figure: Figure) -> Quantity:
    """How far a score is below the other's, or above it where a smaller one is better."""
    label = f"{figure.label} below {'dense' if other == 'dense' else 'the baseline'}"
    return Quantity(figure, label, figure.unit, figure.show_difference, figure.show_difference, other, drop)


def grown(figure: Figure, relative: bool) -> Quantity:
    """How far the figure is above the baseline's, as a share of it or in its own unit."""
    label = f"growth of {figure.label}"
    if relative:
        return Quantity(figure, label, "fraction", _signed_percent, format_points, "baseline", growth)
    return Quantity(figure, label, figure.unit, _signed(figure.show), figure.show_difference, "baseline", increase)


def _divided(now: Measured, other: Measured, divide: Callable[[float, float], float]) -> Reading:
    values = (divide(now.value, other.value), divide(now.low, other.high), divide(now.high, other.low))
    return _measured(*values, now, other)


def _measured(value: float, low: float, high: float, *of: Measured) -> Measured:
    doubt = "; ".join(part.doubt for part in of if part.doubt)
    return Measured(round(value, _DIGITS), round(low, _DIGITS), round(high, _DIGITS), doubt)


def _refusal(subject: Comparison, target: str) -> Missing | None:
    """Why the two latencies are not comparable; None if they are, or if the baseline has none."""
    now = subject.now.latency_ms.get(target)
    then = subject.baseline.latency_ms.get(target) if isinstance(subject.baseline, Facts) else None
    if now is None or then is None:
        return None
    if (now.threads, now.batch) != (then.threads, then.batch):
        return Missing(
            f"the baseline was measured with {then.threads} threads and batch {then.batch}, this model with {now.threads} "
            f"and {now.batch}"
        )
    known = bool(now.machine)
    if subject.any_machine or (known and dict(now.machine) == dict(then.machine)):
        return None
    there, here = machine_text(then.machine), machine_text(now.machine)
    return Missing(
        f"the baseline was measured on another machine ({there}) than this model ({here}), so latencies are not compared: "
        "max_latency_ratio depends less on the machine, and --allow-other-machine compares them anyway"
    )


def _signed_percent(value: float) -> str:
    return f"{100 * value:+.2f} %"


def _signed(show: Callable[[float], str]) -> Callable[[float], str]:
    return lambda value: f"{'−' if value < 0 else '+'}{show(abs(value))}"
