"""Options of whatever prunes: the goal, and how it is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from lrexport.cli.option_types import LatencyType, ShareType, SizeType
from lrexport.cli.options import (
    FILE,
    Command,
    choice_option,
    count_option,
    stacked,
    switch_option,
    target_option,
    train_config,
)
from lrexport.config.compression import CompressConfig, Goal
from lrexport.units import parse_energy

GOALS = tuple(field.name for field in fields(Goal) if field.name != "latency_ms")  # which --latency gives


def goal_options() -> Callable[[Command], Command]:
    """One option for each kind of goal; :func:`given_goal` takes them."""
    return stacked(
        click.option(
            "--energy", type=ShareType(parse_energy), help="Largest share of a layer's energy to drop: 1e-2 or 1%."
        ),
        click.option("--macs", type=ShareType(), help="MACs to reach, as a share of the dense network's: 0.5 or 50%."),
        click.option("--params", type=ShareType(), help="Parameters to reach, as a share of the dense network's."),
        click.option("--size", type=SizeType(), help="Bytes of model.onnx to reach: 500KB, 1.5MB, 64KiB."),
        click.option(
            "--latency",
            type=LatencyType(),
            help="Latency to reach on the target, as a share of the dense network's, 0.6, or a time, 5ms. Any scheme is "
            "considered.",
        ),
        click.option(
            "--accuracy-drop",
            type=click.FloatRange(0, 100),
            metavar="POINTS",
            help="Fewest MACs at which pruning, before fine-tuning, costs at most these points of held-out top-1.",
        ),
        click.option("--plan", type=FILE, help="Ranks from a plan file, edited by hand perhaps, or from another run."),
    )


def pruning_options() -> Callable[[Command], Command]:
    """How ranks are chosen and what is repaired afterwards: fields of CompressConfig."""
    made = CompressConfig
    return stacked(
        target_option(
            "Where speed is measured: for --latency [default: local]; with any other goal ranks are then those that are "
            "faster there than every higher one.",
            default=None,
        ),
        count_option(made, "threads", "Threads of inference on the target.", least=1),
        choice_option(made, "rule", ("global", "threshold"), "All layers weighed together, or the paper's one threshold."),
        switch_option(made, "weighting", "Weight the energy by the second moment of each layer's input."),
        switch_option(made, "reconstruct", "Refit the pairs to the dense layers' outputs by least squares."),
        count_option(made, "calibration_images", "Training images for weighting and refitting; labels are not used."),
        count_option(made, "fine_tune_epochs", "Epochs after folding."),
        count_option(made, "batchnorm_images", "Training images for BatchNorm's statistics after pruning."),
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
    return Goal(**here)


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
    goal = given_goal(options) or Goal()  # which says that there has to be one
    return CompressConfig(train=train_config(options), goal=goal, **options)
