"""Goals stand in one table, from which options, sweeps, messages and repeated commands derive what they know."""

from __future__ import annotations

from typing import get_args

import click
import pytest

from lrexport.cli import compress
from lrexport.config.goals import GOAL_OPTIONS, KEYS, Goal, Latency, SteerableGoal, goal_of, options_of, values_of
from lrexport.errors import UsageError
from lrexport.report.repeat_commands import _goal
from lrexport.sweep import space


def test_every_goal_has_its_keys_and_a_key_makes_its_goal_and_back() -> None:
    assert {key.goal for key in KEYS.values()} == {*get_args(Goal)}
    for name, key in KEYS.items():
        value = key.type(1) if key.parse else "plan.json"
        goal = goal_of({name: value})
        assert isinstance(goal, key.goal)
        assert values_of(goal) == {name: value}


def test_every_goal_is_an_option_with_its_help_and_an_example_that_parses() -> None:
    options = {option.name: option for option in compress.command.params if isinstance(option, click.Option)}
    for name, key in KEYS.items():
        option = options[key.option]
        assert option.help == key.help
        context = click.Context(compress.command)
        if key.parse is not None:
            value = option.type.convert(key.example, option, context)
            assert goal_of(values_of(value) if isinstance(value, Latency) else {name: value}) == goal_of(
                {name: key.parse(key.example)}
            )


def test_a_goal_s_value_is_written_with_its_unit_in_commands_and_sweeps() -> None:
    for name, key in KEYS.items():
        if key.parse is None:
            continue
        flag, text = _goal({name: key.parse(key.example)})
        assert flag == f"--{key.option.replace('_', '-')}"
        assert key.parse(text) == key.parse(key.example)
        other = {"size": "900KB", "latency_ms": "9ms"}.get(name, "0.25")
        (dimension,) = space.parse_space([f"{flag[2:]}={key.example},{other}"])
        assert dimension.name == name
        assert space.parse_space([str(dimension)]) == (dimension,)


def test_messages_name_the_options_of_goals() -> None:
    assert options_of(SteerableGoal) == "--macs, --params or --latency"
    with pytest.raises(UsageError, match="expected exactly one goal") as caught:
        goal_of({})
    assert caught.value.hint is not None
    assert all(f"--{name.replace('_', '-')} " in caught.value.hint for name in GOAL_OPTIONS)
    assert "--macs 0.5, " in caught.value.hint
    assert "--latency 0.6" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("0.6", Latency(0.6)),
        ("60%", Latency(0.6)),
        ("5 ms", Latency(milliseconds=5)),
        ("1s", Latency(milliseconds=1e3)),
    ],
)
def test_a_latency_is_a_share_or_a_time(text: str, goal: Latency) -> None:
    assert Latency.parse(text) == goal


@pytest.mark.parametrize("text", ["", "5", "0", "-1ms", "0ms", "1.5", "5 mm", "nan"])
def test_a_latency_without_a_unit_is_a_share_and_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a share in"):
        Latency.parse(text)
