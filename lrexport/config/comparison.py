"""Options by what is known of them, and what differs between two configurations as JSON has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.options import PHASES, TRAINED, Facts, Phase, facts_of
from lrexport.text import option_name

_SHA256 = "_sha256"  # how the name of a digest of what was read ends

OPTIONS: Mapping[str, Facts] = {
    each.name: facts
    for made in (TrainConfig, CompressConfig)
    for each in fields(made)
    if (facts := facts_of(each)) is not None
}
_LAST_SETTLED = PHASES.index("svd")
_NO_FACTS = Facts(PHASES)  # of a digest, or an option of another version


def _names(has: Callable[[Facts], bool]) -> tuple[str, ...]:
    return tuple(name for name, facts in OPTIONS.items() if has(facts))


def _is_settled(facts: Facts) -> bool:
    return facts.flag and facts.changes == "result" and facts.last <= _LAST_SETTLED


# Options that do nothing without data to train on.
NEED_DATA = _names(lambda facts: facts.needs_data)
# Options of phases that a run has behind it; going on from it keeps what those were made with.
SETTLED = tuple(
    each.name for each in fields(TrainConfig) if _is_settled(facts := OPTIONS[each.name]) and not facts.replaceable
)
# What a run that goes on from another has from there unless it is given another.
TAKEN_OVER = (*SETTLED, *_names(lambda facts: facts.replaceable))
# What belongs to the SVD form, chosen again where the run has no SVD training; and all that SVD training alone uses.
SVD_FORM = tuple(name for name in SETTLED if OPTIONS[name].phases == ("svd form",))
SVD_TRAINING = tuple(name for name in SETTLED if OPTIONS[name].first >= PHASES.index("svd form"))
# How many epochs each stage of training has: any of them other than 0 is training; None is as many as the network needs.
EPOCHS = tuple(f"{stage.replace('-', '_')}_epochs" for stage in TRAINED)
# What decides which images are read and held out.
IMAGES = tuple(name for name in SETTLED if set(OPTIONS[name].phases) <= {"images", "split"})


def settled(svd_trained: bool) -> tuple[str, ...]:
    """Options that a run has behind it, with its SVD training or as its dense network."""
    return SETTLED if svd_trained else tuple(name for name in SETTLED if name not in SVD_FORM)


def decide_again(svd_trained: bool, with_data: bool) -> tuple[str, ...]:
    """Options that count once more where a run goes on from another, and that it does not take over from there."""

    def counts(facts: Facts) -> bool:
        decides = facts.flag and facts.changes == "result" and not facts.replaceable and not _is_settled(facts)
        return decides and (with_data or not facts.needs_data)

    return (*_names(counts), *(() if svd_trained else SVD_FORM))


def only_in(*phases: Phase) -> tuple[str, ...]:
    """Options that change the result and are used in these phases alone."""
    return _names(lambda facts: facts.changes == "result" and set(facts.phases) <= set(phases))


def used_up_to(phase: Phase) -> tuple[str, ...]:
    """Options whose use begins in ``phase`` or before it."""
    return _names(lambda facts: facts.first <= PHASES.index(phase))


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides its result, so that equal ones share it on any machine."""
    return {
        name: value
        for name, value in config.items()
        if (facts := OPTIONS.get(name, _NO_FACTS)).changes == "result" and (value or not facts.later)
    }


@dataclass(frozen=True)
class Difference:
    """In one option, or in the digest of what was read."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        change = f"{option_name(self.name)} was {in_words(self.before)}, now {in_words(self.now)}"
        if self.name.endswith(_SHA256) and self.before and self.now:
            return f"the {self.name.removesuffix(_SHA256)} changed since ({change})"
        return change


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Difference]:
    """In what two configurations differ that changes anything, by name.

    What the older one does not know is no difference where it is off now, nor is a digest that it did not note.
    """

    def differs(name: str) -> bool:
        if before.get(name) == now.get(name) or OPTIONS.get(name, _NO_FACTS).changes == "nothing":
            return False
        return name in before or not (name.endswith(_SHA256) or not now[name])

    return {name: Difference(name, before.get(name), now.get(name)) for name in {**before, **now} if differs(name)}


def undecided(config: Mapping[str, Any]) -> set[str]:
    """Options that ``config`` leaves to the run."""
    return {name for name, value in config.items() if value is None and not OPTIONS.get(name, _NO_FACTS).none_decides}


def in_words(value: Any) -> str:
    """A value of an option as a message shows it; a goal as the command gives it."""
    if value is None or value in ([], {}):
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"--{option_name(name)} {each}" for name, each in value.items() if each is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)
