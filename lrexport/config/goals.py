"""Goals: what ranks are chosen for. Each is a frozen value with its unit, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.errors import UsageError


@dataclass(frozen=True)
class Macs:
    """MACs to reach: ``share`` of the dense network's, in (0, 1]."""

    share: float

    def __post_init__(self) -> None:
        _check_share("macs", self.share)


@dataclass(frozen=True)
class Params:
    """Parameters to reach: ``share`` of the dense network's, in (0, 1]."""

    share: float

    def __post_init__(self) -> None:
        _check_share("params", self.share)


@dataclass(frozen=True)
class Size:
    """Size of the exported ONNX file to reach, in ``bytes``."""

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise UsageError(f"invalid size {self.bytes!r}: expected bytes, a whole number from 1", "As in Size(500_000).")


@dataclass(frozen=True)
class Latency:
    """Latency of one inference to reach on the target: ``share`` of the dense network's, in (0, 1], or ``milliseconds``."""

    share: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.milliseconds is None):
            example = "As in Latency(0.6) or Latency(milliseconds=5)."
            raise UsageError("invalid latency: expected a share or milliseconds", example)
        if self.share is not None:
            _check_share("latency", self.share)
        else:
            _check_number("latency", self.milliseconds, "milliseconds above 0", 0, math.inf, above=True)

    def budget_ms(self, dense_ms: float) -> float:
        """Milliseconds to reach, where the dense network takes ``dense_ms``."""
        return self.milliseconds if self.milliseconds is not None else (self.share or 0.0) * dense_ms


@dataclass(frozen=True)
class AccuracyDrop:
    """Fewest MACs at which pruning costs at most ``points`` of held-out top-1, in [0, 100], before fine-tuning."""

    points: float

    def __post_init__(self) -> None:
        _check_number("accuracy drop", self.points, "percentage points from 0 to 100", 0, 100)


@dataclass(frozen=True)
class Energy:
    """Equation 4's e: the largest ``dropped`` share of Σ s² in any layer, in [0, 1]."""

    dropped: float

    def __post_init__(self) -> None:
        _check_number("energy", self.dropped, "a share from 0 to 1", 0, 1)


@dataclass(frozen=True)
class FromPlan:
    """The layers' schemes and ranks as a plan says: a plan file, a run's folder, or the plan itself, layer → entry."""

    plan: str | Path | Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.plan, str | Path | Mapping):
            raise UsageError(f"invalid plan of type {type(self.plan).__name__}: expected a file, a run or a plan")

    @property
    def source(self) -> str:
        """What messages call it."""
        return "the plan" if isinstance(self.plan, Mapping) else str(self.plan)


Goal = Macs | Params | Size | Latency | AccuracyDrop | Energy | FromPlan
# Those that a share of the dense network can stand for on the way there: ranks fall, and λ_s is steered, to them.
Budget = Macs | Params | Latency

# By the name of its option and its key in a record: how it is made of its value there, and the value's type.
_BY_NAME: Mapping[str, tuple[Callable[[Any], Goal], type]] = {
    "energy": (Energy, float),
    "macs": (Macs, float),
    "params": (Params, float),
    "size": (Size, int),
    "latency": (Latency, float),
    "latency_ms": (lambda value: Latency(milliseconds=value), float),
    "accuracy_drop": (AccuracyDrop, float),
    "plan": (FromPlan, Path),
}
TYPES: Mapping[str, type] = {name: kind for name, (_, kind) in _BY_NAME.items()}


def goal_of(values: Mapping[str, Any]) -> Goal:
    """The goal in ``{"macs": 0.5}``, by the names of :data:`TYPES`; None is no value. Raises UsageError unless it is one."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) != 1:
        known = "--macs 0.5, --params 0.5, --size 500KB, --latency 0.6, --energy 1e-2, --accuracy-drop 1 and --plan FILE"
        raise UsageError("expected exactly one goal", f"Give one of {known}.")
    ((name, value),) = given.items()
    return _BY_NAME[name][0](value)


def values_of(goal: Goal) -> dict[str, Any]:
    """``{"macs": 0.5}``: the reverse of :func:`goal_of`, as JSON has it."""
    if isinstance(goal, Latency):
        return {"latency": goal.share} if goal.share is not None else {"latency_ms": goal.milliseconds}
    if isinstance(goal, FromPlan):
        return {"plan": goal.plan if isinstance(goal.plan, Mapping) else str(goal.plan)}
    ((name, _),) = ((name, made) for name, (made, _) in _BY_NAME.items() if made is type(goal))
    ((value),) = vars(goal).values()
    return {name: value}


def _check_share(name: str, value: object) -> None:
    _check_number(name, value, "a share of the dense network in (0, 1]", 0, 1, above=True)


def _check_number(name: str, value: object, expected: str, low: float, high: float, above: bool = False) -> None:
    """Raise UsageError for anything but a number in [low, high], or in (low, high] where it has to be ``above``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"invalid {name} {value!r}: expected a number, {expected}")
    if not low <= value <= high or not math.isfinite(value) or (above and value == low):
        raise UsageError(f"invalid {name} {value!r}: expected {expected}")
