"""Which options files may choose."""

from __future__ import annotations

import click
import pytest

from lrexport.cli.configuration import names_code, not_in_files
from lrexport.cli.main import COMMANDS, cli

# Options that are text, and that a file may choose all the same: they name what is read, or decide nothing beyond a result.
HARMLESS = {
    "input",  # names, sizes and ranges
    *("weights", "teacher_weights", "plan", "latencies", "baseline"),  # read, under limits; check looks at the last itself
    *("weights_key", "teacher_weights_key", "shapes", "shape", "inputs", "input_file", "comment_id"),
    *("data", "teacher", "task"),  # where they are no import path
    *("recipe", "keep", "vary", "study"),
    *("input_shape", "milestones", "sparsity_strength", "baseline_epochs", "batch", "rounds"),  # numbers and words
    *("dynamic", "mean", "std", "value_range", "resize", "crop", "channel_order"),  # numbers and words, too
    *("energy", "macs", "params", "size", "latency"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_settled_for_every_option_whether_a_file_may_choose_it(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for option in command.params:
        free = not isinstance(option.type, click.IntRange | click.FloatRange | click.Choice | click.types.BoolParamType)
        if isinstance(option, click.Option) and free and option.type is not click.INT:
            assert (option.name in not_in_files()) != (option.name in HARMLESS), (
                f"say of {option.name} whether a file may choose it"
            )


@pytest.mark.parametrize(
    ("name", "value", "is_code"),
    [
        ("data", "users:images", True),
        ("data", "folder:users", False),
        ("data", "digits", False),
        ("teacher", "users:net?a=b", True),
        ("teacher", "resnet56", False),
        ("teacher", "torchvision:resnet18?weights=a:b", False),
        ("weights", "a:b", False),
    ],
)
def test_code_is_told_from_other_values(name: str, value: str, is_code: bool) -> None:
    assert names_code(name, value) == is_code
