"""What is known of an option, kept on its field; :mod:`lrexport.config.comparison` derives every list of options from it."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

# The phases of a run in their order. Going from one run on to another, the first ones are not done again.
Phase = Literal["network", "images", "split", "dense", "svd form", "svd", "pruning", "fine-tune", "baseline"]
PHASES: tuple[Phase, ...] = get_args(Phase)
TRAINED: tuple[Phase, ...] = ("dense", "svd", "fine-tune", "baseline")
# "rounding": other numbers only as another device rounds them; "nothing": the same numbers.
Changes = Literal["result", "rounding", "nothing"]
T = TypeVar("T")
_FACTS = "facts"


@dataclass(frozen=True)
class Words:
    """One of these."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """A whole number of at least ``least``."""

    least: int = 0


@dataclass(frozen=True)
class Number:
    """From ``least`` to ``most``; with ``above`` more than ``least``."""

    least: float = 0
    most: float | None = None
    above: bool = False


@dataclass(frozen=True)
class Facts:
    """One option. ``phases`` are those that use it.

    ``needs_data``: it does nothing without data to train on. ``flag``: it is one option of the command line by its name;
    else an argument, or a group of options. ``replaceable``: settled, yet a later run may be given another.
    ``none_decides``: None is an answer, where for other options it leaves the choice to the run. ``later``: it came after
    sweeps began to name shared stages by a digest of options, which leaves it out while it is off. ``varies``: sweeps can
    vary it.
    ``commas``: a list is written as one value, else each entry is an option. ``only_user``: what it decides, where no file
    may choose it.
    """

    phases: tuple[Phase, ...]
    needs_data: bool = False
    changes: Changes = "result"
    values: Words | Count | Number | None = None
    flag: bool = True
    replaceable: bool = False
    none_decides: bool = False
    later: bool = False
    varies: bool = False
    commas: bool = False
    only_user: str | None = None

    @property
    def first(self) -> int:
        """Where in PHASES its use begins."""
        return min(map(PHASES.index, self.phases))

    @property
    def last(self) -> int:
        """Where in PHASES its use ends."""
        return max(map(PHASES.index, self.phases))


def about(*phases: Phase, **facts: Any) -> MappingProxyType[str, Facts]:
    """Metadata of a field without a default; ``facts`` are those of :class:`Facts`."""
    return MappingProxyType({_FACTS: Facts(phases, **facts)})


def option(default: T, *phases: Phase, **facts: Any) -> T:
    """A field with a default; the rest as for :func:`about`."""
    return field(default=default, metadata=about(*phases, **facts))


def facts_of(each: Field[Any]) -> Facts | None:
    """What is known of a field; None for one that is no option."""
    facts: Facts | None = each.metadata.get(_FACTS)
    return facts
