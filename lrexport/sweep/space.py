"""Options that a sweep varies: ``--vary NAME=VALUES`` as ranges and choices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lrexport.config.comparison import OPTIONS
from lrexport.config.goals import KEYS, Latency, values_of
from lrexport.config.options import Count, Number, Words
from lrexport.errors import UsageError
from lrexport.text import nearest, option_name
from lrexport.units import parse_energy

Value: TypeAlias = float | int | str
Point: TypeAlias = dict[str, Value]
SYNTAX = "Write NAME=LOW..HIGH, NAME=LOW..HIGH:log, NAME=LOW..HIGH:step=S or NAME=A,B,C, for example macs=0.2..0.7."
DIGITS = 12  # of a number in a list: 0.3, not 0.30000000000000004
_STEPS_SLACK = 1e-9  # relative: 0.2..0.8 with step 0.1 has seven values despite rounding


@dataclass(frozen=True)
class Numbers:
    """Numbers from ``low`` to ``high``, with ``step`` only those that far apart; ``log`` spaces them by ratio.

    ``whole`` numbers have a step of at least 1.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def count(self) -> int | None:
        """The number of values; None for a continuum."""
        if self.step is None:
            return None
        return math.floor((self.high - self.low) / self.step * (1 + _STEPS_SLACK)) + 1

    def at(self, share: float) -> Value:
        """The value at ``share`` in [0, 1) of the way from the least to the greatest."""
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
            return round(value) if self.whole else min(max(value, self.low), self.high)
        if self.step is None or self.count is None:
            return min(max(round(self.low + share * (self.high - self.low), DIGITS), self.low), self.high)
        return self._nth(int(share * self.count))

    def values(self) -> tuple[Value, ...] | None:
        """All values; None for a continuum."""
        return None if self.count is None else tuple(self._nth(index) for index in range(self.count))

    def _nth(self, index: int) -> Value:
        value = self.low + index * (self.step or 1.0)
        return round(value) if self.whole else round(min(value, self.high), DIGITS)


@dataclass(frozen=True)
class Choices:
    """Values without an order."""

    options: tuple[Value, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.options)

    def at(self, share: float) -> Value:
        """The value at ``share`` in [0, 1) of the list."""
        return self.options[int(share * len(self.options))]

    def values(self) -> tuple[Value, ...]:
        """All values."""
        return self.options


@dataclass(frozen=True)
class Dimension:
    """An option of a compression, by its name in the record's ``config``, and its values."""

    name: str
    domain: Numbers | Choices

    def __str__(self) -> str:
        """The text after ``--vary``; equal for equal dimensions."""
        name, domain = _flag(self.name), self.domain
        unit = KEYS[self.name].unit if self.name in KEYS else ""
        if isinstance(domain, Choices):
            return f"{name}={','.join(f'{value}{unit}' for value in domain.options)}"
        ends = (round(number) if domain.whole else number for number in (domain.low, domain.high))
        text = f"{name}={'..'.join(f'{end}{unit}' for end in ends)}" + (":log" if domain.log else "")
        plain = domain.step is None or domain.log or (domain.whole and domain.step == 1)
        step = round(domain.step or 1) if domain.whole else domain.step
        return text if plain else f"{text}:step={step}{unit}"


def _number(low: float, high: float | None, above: bool = False) -> Callable[[str], Value]:
    most = math.inf if high is None else high

    def parse(text: str) -> Value:
        value = float(text)
        if not low <= value <= most or not math.isfinite(value) or (above and value == low):
            raise ValueError
        return value

    return parse


def _count(text: str) -> Value:
    if not text.strip().isdecimal():
        raise ValueError
    return int(text)


def _word(*words: str) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        if text.strip() not in words:
            raise ValueError
        return text.strip()

    return parse


def _energy(text: str) -> Value:
    value = parse_energy(text)
    if not value:  # drops nothing and has no logarithm
        raise ValueError
    return value


# How values of each option are parsed, and whether ranges make sense.
_PARSERS = {name: key.parse for name, key in KEYS.items() if key.parse is not None}
GOALS: Mapping[str, Callable[[str], Value]] = {**_PARSERS, "energy": _energy}
_VALUES = {name: facts.values for name, facts in OPTIONS.items() if facts.varies}
_WORDS = {name: _word(*values.words) for name, values in _VALUES.items() if isinstance(values, Words)}
_COUNTS = {name: _count for name, values in _VALUES.items() if isinstance(values, Count)}
_NUMBERS = {
    name: _number(values.least, values.most, values.above) for name, values in _VALUES.items() if isinstance(values, Number)
}
_KINDS: Mapping[str, Callable[[str], Value]] = {**GOALS, **_WORDS, **_NUMBERS, **_COUNTS}
_WHOLE = (*(name for name in GOALS if KEYS[name].type is int), *_COUNTS)
NAMES = tuple(dict.fromkeys(option_name(KEYS[name].option if name in KEYS else name) for name in _KINDS))


def parse_space(texts: Iterable[str]) -> tuple[Dimension, ...]:
    """Dimensions of ``--vary``. Raises UsageError for an invalid text, and for mutually exclusive dimensions."""
    space: list[Dimension] = []
    for text in texts:
        dimension = _parse(text)
        if any(dimension.name == other.name for other in space):
            raise UsageError(f"--vary {_flag(dimension.name)} is given twice")
        rival = next((other for other in space if dimension.name in GOALS and other.name in GOALS), None)
        if rival is not None:
            message = f"--vary {_flag(rival.name)} and --vary {_flag(dimension.name)} are both goals"
            raise UsageError(message, "A compression has one goal; make a sweep for each.")
        space.append(dimension)
    return tuple(space)


def size_of(space: Sequence[Dimension]) -> int | None:
    """The number of points; None for a continuum."""
    counts = [dimension.domain.count for dimension in space]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def points_of(space: Sequence[Dimension]) -> list[Point] | None:
    """Every point; None for a continuum."""
    values = [dimension.domain.values() for dimension in space]
    listed = [each for each in values if each is not None]
    if len(listed) < len(values):
        return None
    return [dict(zip((d.name for d in space), point, strict=True)) for point in itertools.product(*listed)]


def _parse(text: str) -> Dimension:
    flag, equals, values = (part.strip() for part in text.partition("="))
    name = flag.removeprefix("--").replace("-", "_")
    if name not in _KINDS or not equals:
        close = nearest(flag, NAMES)
        hint = f"Did you mean {close[0]}? " if close and name not in _KINDS else ""
        problem = f"{flag!r} cannot be varied" if equals else f"--vary {text!r} has no values"
        raise UsageError(problem, f"{hint}{SYNTAX} Names: {', '.join(NAMES)}.")
    if name in ("latency", "latency_ms"):
        name = _kind_of_latency(text, values)
    return Dimension(name, _range(name, text, values) if ".." in values else _choices(name, text, values))


def _kind_of_latency(text: str, values: str) -> str:
    """``latency``, shares, or ``latency_ms``. Raises UsageError for a mixture."""
    ends = values.partition(":")[0].replace("..", ",").split(",")
    kinds = set[str]()
    for end in ends:
        try:
            kinds |= {*values_of(Latency.parse(end))}
        except UsageError as error:
            raise UsageError(f"--vary {text}: {error.message}", error.hint) from error
    if len(kinds) > 1:
        raise UsageError(f"--vary {text} mixes shares and times", "Give shares of the dense network's latency, or times.")
    return kinds.pop()


def _choices(name: str, text: str, values: str) -> Choices:
    options = tuple(_value(name, text, part) for part in values.split(","))
    if len(set(options)) < len(options):
        raise UsageError(f"--vary {text} has the same value twice")
    if len(options) < 2:
        raise UsageError(
            f"--vary {text} has only one value", f"Give more values, or --{_flag(name)} {values} for all trials."
        )
    return Choices(options)


def _range(name: str, text: str, values: str) -> Numbers:
    if name in _WORDS:
        raise UsageError(f"--vary {text}: {_flag(name)} takes a list, not a range", f"Write {_flag(name)}=A,B.")
    ends, _, how = values.partition(":")
    first, _, last = ends.partition("..")
    low, high = (float(_value(name, text, end)) for end in (first, last))
    if low >= high:
        raise UsageError(f"--vary {text}: expected the first number below the second")
    whole = name in _WHOLE
    if how == "log":
        if low <= 0:
            raise UsageError(f"--vary {text}: a logarithmic range must start above 0")
        return Numbers(low, high, log=True, step=1.0 if whole else None, whole=whole)
    step = 1.0 if whole else None
    if how.startswith("step="):
        step = float(_value(name, text, how.removeprefix("step=")))
        if not 0 < step <= (high - low) * (1 + _STEPS_SLACK):
            raise UsageError(f"--vary {text}: expected a step above 0 and no larger than the range")
        high = float(Numbers(low, high, step=step).values()[-1])  # type: ignore[index]  # a step has values
    elif how:
        raise UsageError(f"--vary {text}: invalid {how!r}: expected log or step=S", SYNTAX)
    return Numbers(low, high, step=step, whole=whole)


def _value(name: str, text: str, part: str) -> Value:
    try:
        return _KINDS[name](part)
    except (ValueError, UsageError) as error:
        hint = error.hint if isinstance(error, UsageError) and error.hint else SYNTAX
        raise UsageError(f"--vary {text}: invalid {_flag(name)} {part!r}", hint) from error


def _flag(name: str) -> str:
    return option_name(KEYS[name].option if name in KEYS else name)
