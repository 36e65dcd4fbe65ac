"""Lists of options by their facts, and the differences between two configurations as stored in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.options import PHASES, TRAINED, Facts, Phase, facts_of
from lrexport.text import option_name

_SHA256 = "_sha256"  # suffix of the name of a file's digest

OPTIONS: Mapping[str, Facts] = {
    each.name: facts
    for made in (TrainConfig, CompressConfig)
    for each in fields(made)
    if (facts := facts_of(each)) is not None
}
_DEFAULTS = {each.name: each.default for made in (TrainConfig, CompressConfig) for each in fields(made)}
_LAST_SETTLED = PHASES.index("svd")
_NO_FACTS = Facts(PHASES)  # for a digest, or an option of another version


def _names(has: Callable[[Facts], bool]) -> tuple[str, ...]:
    return tuple(name for name, facts in OPTIONS.items() if has(facts))


def _is_settled(facts: Facts) -> bool:
    return facts.flag and facts.changes == "result" and facts.last <= _LAST_SETTLED


# Options without effect unless there is data to train on.
NEED_DATA = _names(lambda facts: facts.needs_data)
# Options of phases up to SVD training; a run that continues from another keeps their values.
SETTLED = tuple(
    each.name for each in fields(TrainConfig) if _is_settled(facts := OPTIONS[each.name]) and not facts.replaceable
)
# Options whose values a run takes over from the one it continues, unless they are given.
TAKEN_OVER = (*SETTLED, *_names(lambda facts: facts.replaceable))
# Options of the SVD form, chosen again if the run has no SVD training; and all that only SVD training uses.
SVD_FORM = tuple(name for name in SETTLED if OPTIONS[name].phases == ("svd form",))
SVD_TRAINING = tuple(name for name in SETTLED if OPTIONS[name].first >= PHASES.index("svd form"))
# Epochs of each stage of training: any other than 0 means training; None means as many as the network needs.
EPOCHS = tuple(f"{stage.replace('-', '_')}_epochs" for stage in TRAINED)
# Options that decide which images are read and held out.
IMAGES = tuple(name for name in SETTLED if set(OPTIONS[name].phases) <= {"images", "split"})


def settled(svd_trained: bool) -> tuple[str, ...]:
    """Options that are fixed in a run, with or without SVD training."""
    return SETTLED if svd_trained else tuple(name for name in SETTLED if name not in SVD_FORM)


def decide_again(svd_trained: bool, with_data: bool) -> tuple[str, ...]:
    """Options that affect the result of a run that continues from another, and are not taken over from it."""

    def counts(facts: Facts) -> bool:
        decides = facts.flag and facts.changes == "result" and not facts.replaceable and not _is_settled(facts)
        return decides and (with_data or not facts.needs_data)

    return (*_names(counts), *(() if svd_trained else SVD_FORM))


def only_in(*phases: Phase) -> tuple[str, ...]:
    """Options that change the result and are used in these phases only."""
    return _names(lambda facts: facts.changes == "result" and set(facts.phases) <= set(phases))


def used_up_to(phase: Phase) -> tuple[str, ...]:
    """Options first used in ``phase`` or before it."""
    return _names(lambda facts: facts.first <= PHASES.index(phase))


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides its result on any machine."""
    return {
        name: value
        for name, value in config.items()
        if (facts := OPTIONS.get(name, _NO_FACTS)).changes == "result" and not (facts.later and _is_off(name, value))
    }


def _is_off(name: str, value: Any) -> bool:
    """Whether an option does nothing, or what lrexport did before the option existed."""
    return not value or (OPTIONS.get(name, _NO_FACTS).later and value == _DEFAULTS.get(name))


@dataclass(frozen=True)
class Difference:
    """The two values of an option, or of a file's digest."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        change = f"{option_name(self.name)} was {in_words(self.before)}, now {in_words(self.now)}"
        if self.name.endswith(_SHA256) and self.before and self.now:
            return f"the {self.name.removesuffix(_SHA256)} has changed ({change})"
        return change


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Difference]:
    """Differences between two configurations that may change the result, by name.

    An option that ``before`` lacks differs only if it is on now; a digest that it lacks does not differ.
    """

    def differs(name: str) -> bool:
        if before.get(name) == now.get(name) or OPTIONS.get(name, _NO_FACTS).changes == "nothing":
            return False
        return name in before or not (name.endswith(_SHA256) or _is_off(name, now[name]))

    return {name: Difference(name, before.get(name), now.get(name)) for name in {**before, **now} if differs(name)}


def undecided(config: Mapping[str, Any]) -> set[str]:
    """Options that ``config`` leaves to the run."""
    return {name for name, value in config.items() if value is None and not OPTIONS.get(name, _NO_FACTS).none_decides}


def in_words(value: Any) -> str:
    """An option's value as shown in messages; a goal as on the command line."""
    if value is None or value in ([], {}):
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return " ".join(f"--{option_name(name)} {each}" for name, each in value.items() if each is not None)
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)
