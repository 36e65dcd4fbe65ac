"""Facts about an option, kept on its field; :mod:`lrexport.config.comparison` derives all lists of options from them."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

# The phases of a run in order. A run that continues from another does not repeat the first ones.
Phase = Literal["network", "images", "split", "dense", "svd form", "svd", "pruning", "fine-tune", "baseline"]
PHASES: tuple[Phase, ...] = get_args(Phase)
TRAINED: tuple[Phase, ...] = ("dense", "svd", "fine-tune", "baseline")
# "rounding": the result changes only as rounding differs between devices; "nothing": it does not change.
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
    """A number from ``least`` to ``most``; with ``above`` greater than ``least``."""

    least: float = 0
    most: float | None = None
    above: bool = False


@dataclass(frozen=True)
class Facts:
    """Facts about an option.

    ``phases``: those that use it. ``needs_data``: no effect without data to train on. ``flag``: one command-line option with
    its name, not an argument or a group of options. ``replaceable``: a run that continues from another may change it.
    ``none_decides``: None is a value; for other options it leaves the choice to the run. ``later``: added after sweeps
    began to name shared stages by a digest of options, so the digest omits it while it is off. ``varies``: sweeps can vary
    it. ``commas``: a list is one value with commas; otherwise the option is repeated. ``only_user``: for an option that no
    file may set, what it decides.
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
        """Index in PHASES of its first use."""
        return min(map(PHASES.index, self.phases))

    @property
    def last(self) -> int:
        """Index in PHASES of its last use."""
        return max(map(PHASES.index, self.phases))


def about(*phases: Phase, **facts: Any) -> MappingProxyType[str, Facts]:
    """Metadata of a field without a default; ``facts`` are those of :class:`Facts`."""
    return MappingProxyType({_FACTS: Facts(phases, **facts)})


def option(default: T, *phases: Phase, **facts: Any) -> T:
    """A field with a default; other arguments as for :func:`about`."""
    return field(default=default, metadata=about(*phases, **facts))


def facts_of(each: Field[Any]) -> Facts | None:
    """The facts about a field; None if it is not an option."""
    facts: Facts | None = each.metadata.get(_FACTS)
    return facts
