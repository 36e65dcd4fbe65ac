"""Options of commands that prune: the goal, and how it is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from lrexport.cli.help import GOAL, HARDWARE, LAYERS, OUTPUT, TRAINING, section, stacked
from lrexport.cli.option_types import LatencyType, ShareType, SizeType
from lrexport.cli.options import (
    FILE,
    Command,
    choice_option,
    count_option,
    number_option,
    switch_option,
    target_option,
)
from lrexport.cli.training_options import train_config
from lrexport.config.compression import UNLABELLED_MINUTES, CompressConfig
from lrexport.config.goals import GOAL_OPTIONS, KEYS, Goal, Latency, goal_of, values_of
from lrexport.text import option_name
from lrexport.units import parse_energy

# Type of each option.
_TYPES: Mapping[str, click.ParamType[Any]] = {
    "macs": ShareType(),
    "params": ShareType(),
    "size": SizeType(),
    "latency": LatencyType(),
    "accuracy_drop": click.FloatRange(0, 100),
    "energy": ShareType(parse_energy),
    "plan": FILE,
}
_METAVARS = {"accuracy_drop": "POINTS", "plan": "FILE|RUN"}


def goal_options() -> Callable[[Command], Command]:
    """One option for each kind of goal; :func:`given_goal` takes them."""
    helps = {key.option: key.help for key in KEYS.values()}
    return section(
        GOAL,
        *(
            click.option(f"--{option_name(name)}", type=_TYPES[name], metavar=_METAVARS.get(name), help=text)
            for name, text in helps.items()
        ),
    )


def pruning_options() -> Callable[[Command], Command]:
    """How ranks are chosen and what is repaired afterwards: fields of CompressConfig."""
    made = CompressConfig
    target = "Where latency is measured: local or ssh://HOST. With other goals than --latency, only ranks that reduce "
    default = "[default: local with --latency]"
    healing = f"[default: {UNLABELLED_MINUTES:g} if the data has no labels, else 0]"
    return stacked(
        section(HARDWARE, target_option(f"{target}latency on this device are considered. {default}", default=None)),
        section(
            LAYERS,
            rare=(
                choice_option(made, "rule", ": all layers optimised together, or the paper's one threshold."),
                count_option(made, "rank_multiple", "Ranks are multiples of N, lower ones of N/2 and so on, for speed."),
                switch_option(made, "weighting", "Weight the energy by each layer's inputs, for noise if there is no data."),
                switch_option(made, "reconstruct", "Refit pairs to the dense layers' outputs by least squares."),
                count_option(made, "calibration_images", "Training images for weighting and refitting, without labels."),
                count_option(made, "batchnorm_images", "Training images for BatchNorm statistics after pruning."),
            ),
        ),
        section(
            TRAINING,
            count_option(made, "fine_tune_epochs", "Epochs of fine-tuning after folding."),
            rare=(number_option(made, "heal_minutes", f"Most minutes of healing without labels. {healing}"),),
        ),
        section(HARDWARE, rare=(count_option(made, "threads", "Threads of the runtime on --target."),)),
        section(OUTPUT, count_option(made, "examples", "Held-out pictures to save in the run for its report, 0 for none.")),
    )


def given_goal(options: dict[str, Any]) -> Goal | None:
    """The goal by precedence: command line, then environment, then file; None if none was given.

    Removes the options of goals from ``options``. Raises UsageError for two goals in the same place.
    """
    here = nearest_goals({name: options.pop(name) for name in GOAL_OPTIONS if name in options})
    if not here:
        return None
    latency = here.get("latency")
    if isinstance(latency, Latency):  # the option gives either of two keys
        del here["latency"]
        here |= values_of(latency)
    return goal_of(here)


def nearest_goals(given: dict[str, Any]) -> dict[str, Any]:
    """The goals given in the place of highest precedence."""
    context = click.get_current_context()
    for place in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        here = {name: value for name, value in given.items() if context.get_parameter_source(name) is place}
        if here:
            return here
    return {}


def compress_config(options: dict[str, Any]) -> CompressConfig:
    """CompressConfig from all options of a compression. Raises UsageError unless exactly one goal is given."""
    goal = given_goal(options) or goal_of({})  # goal_of({}) raises the UsageError
    return CompressConfig(train=train_config(options), goal=goal, **options)
