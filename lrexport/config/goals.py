"""Goals that ranks are chosen for: frozen values with units, checked when created."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lrexport.errors import UsageError
from lrexport.text import option_name
from lrexport.units import parse_bytes, parse_energy, parse_ms, parse_share


@dataclass(frozen=True)
class Macs:
    """MACs to reach, as ``share`` of the dense network's, in (0, 1]."""

    share: float

    def __post_init__(self) -> None:
        _check_share("macs", self.share)


@dataclass(frozen=True)
class Params:
    """Parameters to reach, as ``share`` of the dense network's, in (0, 1]."""

    share: float

    def __post_init__(self) -> None:
        _check_share("params", self.share)


@dataclass(frozen=True)
class Size:
    """Size of the exported ONNX file to reach, in ``bytes``."""

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise UsageError(
                f"invalid size {self.bytes!r}: expected a whole number of bytes, at least 1", "For example Size(500_000)."
            )


@dataclass(frozen=True)
class Latency:
    """Latency of one inference to reach on the target: ``share`` of the dense network's, in (0, 1], or ``milliseconds``."""

    share: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.milliseconds is None):
            example = "For example Latency(0.6) or Latency(milliseconds=5)."
            raise UsageError("invalid latency: expected a share or milliseconds", example)
        if self.share is not None:
            _check_share("latency", self.share)
        else:
            _check_number("latency", self.milliseconds, "milliseconds above 0", 0, math.inf, above=True)

    @classmethod
    def parse(cls, text: str) -> Latency:
        """A share from ``"0.6"`` or ``"60%"``, or a time from ``"5ms"`` or ``"800us"``. Raises UsageError."""
        try:
            return cls(share=parse_share(text))
        except UsageError:
            pass
        try:
            return cls(milliseconds=parse_ms(text))
        except UsageError:
            message = f"invalid latency {text!r}: expected a share in (0, 1] or a time above 0 with its unit"
            raise UsageError(message, "For example 0.6 or 60% of the dense network's, or 5ms.") from None

    def budget_ms(self, dense_ms: float) -> float:
        """Milliseconds to reach if the dense network takes ``dense_ms``."""
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
    """Schemes and ranks from a plan: a plan file, a run's folder, or the plan itself, layer → entry."""

    plan: str | Path | Mapping[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.plan, str | Path | Mapping):
            raise UsageError(f"invalid plan of type {type(self.plan).__name__}: expected a file, a run or a plan")

    @property
    def source(self) -> str:
        """Its name in messages."""
        return "the plan" if isinstance(self.plan, Mapping) else str(self.plan)


Goal = Macs | Params | Size | Latency | AccuracyDrop | Energy | FromPlan
# Goals that SVD training can approach, by falling ranks or by adapting λ_s.
SteerableGoal = Macs | Params | Latency


@dataclass(frozen=True)
class GoalKey:
    """One key of a goal in a record, with all facts for options, sweeps and repeated commands.

    ``make`` creates the goal from the record's value, of type ``type``. ``option`` is its name on the command line, with
    ``example`` and ``help``; ``parse`` reads its text, and ``unit`` follows the number. Without ``parse`` sweeps cannot vary
    it.
    """

    goal: type[Goal]
    make: Callable[[Any], Goal]
    type: type
    option: str
    example: str
    help: str
    parse: Callable[[str], float | int] | None = None
    unit: str = ""


_ON_TARGET = "Latency on --target, as a share or a time: 5ms."
_FEWEST = "Fewest MACs with at most this drop of held-out top-1 before fine-tuning."
KEYS: Mapping[str, GoalKey] = {
    "macs": GoalKey(Macs, Macs, float, "macs", "0.5", "Share of the dense network's MACs: 0.5 or 50%.", parse_share),
    "params": GoalKey(Params, Params, float, "params", "0.5", "Share of the dense network's parameters.", parse_share),
    "size": GoalKey(Size, Size, int, "size", "500KB", "Size of model.onnx: 500KB, 1.5MB, 64KiB.", parse_bytes, "B"),
    "latency": GoalKey(Latency, Latency, float, "latency", "0.6", _ON_TARGET, parse_share),
    "latency_ms": GoalKey(
        Latency, lambda value: Latency(milliseconds=value), float, "latency", "5ms", _ON_TARGET, parse_ms, "ms"
    ),
    "accuracy_drop": GoalKey(
        AccuracyDrop, AccuracyDrop, float, "accuracy_drop", "1", _FEWEST, lambda text: AccuracyDrop(float(text)).points
    ),
    "energy": GoalKey(Energy, Energy, float, "energy", "1e-2", "Energy that each layer may lose: 1e-2 or 1%.", parse_energy),
    "plan": GoalKey(FromPlan, FromPlan, Path, "plan", "FILE", "Ranks from a plan file or another run."),
}
# The options that give a goal, in the order of --help.
GOAL_OPTIONS = tuple(dict.fromkeys(key.option for key in KEYS.values()))


def options_of(goals: Any) -> str:
    """The options that give one of ``goals``, a union of them, for messages: ``--macs, --params or --latency``."""
    names = dict.fromkeys(option_name(key.option) for key in KEYS.values() if key.goal in get_args(goals))
    *others, last = (f"--{name}" for name in names)
    return f"{', '.join(others)} or {last}"


def goal_of(values: Mapping[str, Any]) -> Goal:
    """The goal in ``{"macs": 0.5}``, by the names of :data:`KEYS`. Raises UsageError unless one value alone is not None."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(given) != 1:
        examples = dict[str, str]()
        for key in KEYS.values():
            examples.setdefault(key.option, f"--{option_name(key.option)} {key.example}")
        *others, last = examples.values()
        raise UsageError("expected exactly one goal", f"Give one of {', '.join(others)} and {last}.")
    ((name, value),) = given.items()
    return KEYS[name].make(value)


def values_of(goal: Goal) -> dict[str, Any]:
    """``{"macs": 0.5}``, for JSON: the inverse of :func:`goal_of`."""
    if isinstance(goal, Latency):
        return {"latency": goal.share} if goal.share is not None else {"latency_ms": goal.milliseconds}
    if isinstance(goal, FromPlan):
        return {"plan": goal.plan if isinstance(goal.plan, Mapping) else str(goal.plan)}
    ((name, _),) = ((name, key) for name, key in KEYS.items() if key.goal is type(goal))
    ((value),) = vars(goal).values()
    return {name: value}


def _check_share(name: str, value: object) -> None:
    _check_number(name, value, "a share of the dense network in (0, 1]", 0, 1, above=True)


def _check_number(name: str, value: object, expected: str, low: float, high: float, above: bool = False) -> None:
    """Raise UsageError unless ``value`` is a number in [low, high], or with ``above`` in (low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"invalid {name} {value!r}: expected a number, {expected}")
    if not low <= value <= high or not math.isfinite(value) or (above and value == low):
        raise UsageError(f"invalid {name} {value!r}: expected {expected}")
