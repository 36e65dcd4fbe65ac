"""Options of whatever prunes: the goal, and how it is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from lrexport.cli.help import GOAL, HARDWARE, LAYERS, TRAINING, section, stacked
from lrexport.cli.option_types import LatencyType, ShareType, SizeType
from lrexport.cli.options import (
    FILE,
    Command,
    choice_option,
    count_option,
    switch_option,
    target_option,
)
from lrexport.cli.training_options import train_config
from lrexport.config.compression import CompressConfig
from lrexport.config.goals import TYPES, Goal, goal_of
from lrexport.units import parse_energy

GOALS = tuple(name for name in TYPES if name != "latency_ms")  # which --latency gives


def goal_options() -> Callable[[Command], Command]:
    """One option for each kind of goal; :func:`given_goal` takes them."""
    return section(
        GOAL,
        click.option("--macs", type=ShareType(), help="Share of the dense network's MACs: 0.5 or 50%."),
        click.option("--params", type=ShareType(), help="Share of the dense network's parameters."),
        click.option("--size", type=SizeType(), help="Size of model.onnx: 500KB, 1.5MB, 64KiB."),
        click.option("--latency", type=LatencyType(), help="Latency on --target, as a share or a time: 5ms."),
        click.option(
            "--accuracy-drop",
            type=click.FloatRange(0, 100),
            metavar="POINTS",
            help="Fewest MACs with at most this drop of held-out top-1 before fine-tuning.",
        ),
        click.option("--energy", type=ShareType(parse_energy), help="Energy that each layer may lose: 1e-2 or 1%."),
        click.option("--plan", type=FILE, metavar="FILE|RUN", help="Ranks from a plan file or another run."),
    )


def pruning_options() -> Callable[[Command], Command]:
    """How ranks are chosen and what is repaired afterwards: fields of CompressConfig."""
    made = CompressConfig
    target = "Where latency is measured: local or ssh://HOST. With other goals than --latency, only ranks that reduce "
    default = "[default: local with --latency]"
    return stacked(
        section(HARDWARE, target_option(f"{target}latency on this device are considered. {default}", default=None)),
        section(
            LAYERS,
            rare=(
                choice_option(made, "rule", "Weigh all layers together, or use the paper's one threshold."),
                switch_option(made, "weighting", "Weight the energy by the second moment of each layer's input."),
                switch_option(made, "reconstruct", "Refit pairs to the dense layers' outputs by least squares."),
                count_option(made, "calibration_images", "Training images for weighting and refitting, without labels."),
                count_option(made, "batchnorm_images", "Training images for BatchNorm statistics after pruning."),
            ),
        ),
        section(TRAINING, count_option(made, "fine_tune_epochs", "Epochs of fine-tuning after folding.")),
        section(HARDWARE, rare=(count_option(made, "threads", "Threads of the runtime on --target."),)),
    )


def given_goal(options: dict[str, Any]) -> Goal | None:
    """The goal that was given nearest to the user, on the command line before the environment before a file; or none.

    The options of goals are taken out of ``options``. Raises UsageError for two goals in the same place.
    """
    here = nearest_goals({name: options.pop(name) for name in GOALS if name in options})
    if not here:
        return None
    value, is_ms = here.get("latency", (None, False))
    if is_ms:
        here["latency_ms"] = here.pop("latency")[0]
    elif value is not None:
        here["latency"] = value
    return goal_of(here)


def nearest_goals(given: dict[str, Any]) -> dict[str, Any]:
    """Of options of goals those that stand nearest to the user: more than one is a mistake."""
    context = click.get_current_context()
    for place in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP):
        here = {name: value for name, value in given.items() if context.get_parameter_source(name) is place}
        if here:
            return here
    return {}


def compress_config(options: dict[str, Any]) -> CompressConfig:
    """CompressConfig from all options of a compression. Raises UsageError where there is no goal, or more than one."""
    goal = given_goal(options) or goal_of({})  # which says that there has to be one
    return CompressConfig(train=train_config(options), goal=goal, **options)
