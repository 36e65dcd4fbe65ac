"""Every option carries its facts, and the command line has the options of the configuration, with the same defaults."""

from __future__ import annotations

from dataclasses import MISSING, Field, asdict, fields
from typing import Any

import click
import pytest

from lrexport.cli import compress, onnx, train
from lrexport.cli.configuration import OF_ONE_CALL
from lrexport.config.compression import DEFAULT_DENSE_EPOCHS, CompressConfig, TrainConfig
from lrexport.config.export_options import ExportOptions
from lrexport.config.goals import GOAL_OPTIONS
from lrexport.config.options import Count, Facts, Number, Words, facts_of

_TRAIN = {each.name: each for each in fields(TrainConfig)}
_BOTH = {**_TRAIN, **{each.name: each for each in fields(CompressConfig) if each.name != "train"}}


def _facts(each: Field[Any]) -> Facts:
    facts = facts_of(each)
    assert facts is not None, f"{each.name} has no facts: give it option(default, phases, …)"
    return facts


def test_every_field_has_its_facts() -> None:
    for each in _BOTH.values():
        assert _facts(each).phases


@pytest.mark.parametrize(("command", "held"), [(compress.command, _BOTH), (train.command, _TRAIN)])
def test_the_command_has_the_options_of_the_configuration(command: click.Command, held: dict[str, Field[Any]]) -> None:
    options = {option.name for option in command.params if isinstance(option, click.Option)}
    assert options - OF_ONE_CALL - {*GOAL_OPTIONS} == {name for name, each in held.items() if _facts(each).flag}


@pytest.mark.parametrize(("command", "held"), [(compress.command, _BOTH), (train.command, _TRAIN)])
def test_options_that_are_not_given_are_the_defaults_of_the_configuration(
    command: click.Command, held: dict[str, Field[Any]]
) -> None:
    given = command.make_context(command.name, ["resnet20"]).params
    defaults = {name: each.default for name, each in held.items() if each.default is not MISSING}
    assert {name: given[name] for name in defaults} == defaults


def test_exporting_has_the_same_defaults_on_the_command_line_and_in_its_options() -> None:
    given = onnx.command.make_context("onnx", ["run"]).params
    for name in ("passes", "rescore"):
        given[name] = not given.pop(f"no_{name}")
    defaults = asdict(ExportOptions())
    assert {name: given[name] for name in defaults} == defaults


def test_help_shows_the_defaults_of_the_configuration() -> None:
    shares = ",".join(map(str, _TRAIN["milestones"].default))
    shown = {option.name: option.default for option in train.command.params}
    assert shown["milestones"] == shares
    texts = {option.name: option.help for option in train.command.params if isinstance(option, click.Option)}
    assert f"else {DEFAULT_DENSE_EPOCHS}]" in str(texts["dense_epochs"])


def test_the_command_takes_the_values_that_the_facts_name() -> None:
    for option in compress.command.params:
        values = _facts(_BOTH[option.name]).values if option.name in _BOTH else None
        if isinstance(values, Words):
            assert isinstance(option.type, click.Choice)
            assert tuple(option.type.choices) == values.words, option.name
        if isinstance(values, Count):
            assert isinstance(option.type, click.IntRange)
            assert option.type.min == values.least, option.name
        if isinstance(values, Number) and isinstance(option.type, click.FloatRange):
            limits = (option.type.min, option.type.max, option.type.min_open)
            assert limits == (values.least, values.most, values.above), option.name
