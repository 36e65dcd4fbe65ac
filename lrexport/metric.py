"""What a task measures: the name, unit and direction of a metric, and how its values are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lrexport.errors import UsageError
from lrexport.units import format_percent

SHARE = "%"
DECIBEL = "dB"


@dataclass(frozen=True)
class Metric:
    """One figure of a network's quality, for example ``Metric("mIoU", "%")``.

    Values with the unit ``"%"`` are shares in [0, 1], shown as percent, and their differences as points. Other units, such
    as ``"dB"`` or none, are shown as they are. Raises UsageError without a name.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise UsageError(f"invalid metric {self.name!r}: expected a name", 'For example lrexport.Metric("mIoU", "%").')

    @property
    def title(self) -> str:
        """The name at the beginning of a line."""
        return self.name.capitalize() if self.name.islower() else self.name

    @property
    def change_unit(self) -> str:
        """The unit of a difference: points for shares."""
        return "points" if self.unit == SHARE else self.unit

    @property
    def axis(self) -> str:
        """The title of an axis: the name and its unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def worst(self) -> float:
        """Worse than any value."""
        return -math.inf if self.higher_is_better else math.inf

    def plotted(self, value: float) -> float:
        """The value on an axis, which is in percent for shares."""
        return 100 * value if self.unit == SHARE else value

    def format(self, value: float) -> str:
        """``"91.78 %"``, ``"31.20 dB"`` or ``"0.9731"``."""
        if self.unit == SHARE:
            return format_percent(value)
        if self.unit:
            return f"{value:.2f} {self.unit}"
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"

    def change(self, old: float, new: float) -> str:
        """``"-0.50 points"``, ``"+0.12 dB"`` or ``"-0.0031"``: the signed difference."""
        if self.unit == SHARE:
            return f"{100 * (new - old):+.2f} points"
        return f"{new - old:+.2f} {self.unit}" if self.unit else f"{new - old:+.4f}"

    def merit(self, value: float) -> float:
        """The value, negated if smaller is better: a larger merit is always better."""
        return value if self.higher_is_better else -value

    def is_better(self, new: float, old: float) -> bool:
        """Whether ``new`` is better than ``old``. NaN never is."""
        return self.merit(new) > self.merit(old)

    def best(self, values: Iterable[float]) -> float:
        """The best of the values."""
        return max(values, key=self.merit)

    def loss(self, old: float, new: float) -> float:
        """By how much ``new`` is worse than ``old``, in the unit of differences: points for shares."""
        lost = self.merit(old) - self.merit(new)
        return 100 * lost if self.unit == SHARE else lost


TOP1 = Metric("top-1", SHARE)
TOP5 = Metric("top-5", SHARE)


def heldout_key(metric: Metric) -> str:
    """The key of a held-out score in log.jsonl and in sweeps: ``heldout_top1`` for classification."""
    return "heldout_top1" if metric == TOP1 else "heldout_score"
