"""Options that several commands share, and options made from fields of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from lrexport.artifacts.plain_files import destination
from lrexport.artifacts.run_files import RECORD
from lrexport.artifacts.run_folder import plain
from lrexport.cli.help import OUTPUT, section
from lrexport.cli.option_types import InputPath, PathType, TargetType
from lrexport.config.options import Count, Number, Words, facts_of
from lrexport.errors import UsageError
from lrexport.text import option_name
from lrexport.trust import consent

Command = TypeVar("Command", bound=Callable[..., Any])
Values = TypeVar("Values", Words, Count, Number)


RUN = PathType(path_type=Path, file_okay=False)
FILE = InputPath(path_type=Path, dir_okay=True)


def json_option() -> Callable[[Command], Command]:
    """``--json FILE|-``, passed as ``json_to``."""
    return output_option("json", "Write the result as JSON; - for stdout.")


def output_option(name: str, text: str) -> Callable[[Command], Command]:
    """``--NAME FILE|-``, passed as ``NAME_to`` and checked before any work."""
    return click.option(f"--{name}", f"{name}_to", metavar="FILE|-", callback=check_output, help=text)


def check_output(_context: click.Context, option: click.Parameter, given: str | None) -> str | None:
    """Callback of an option that names a file to write, or - for stdout: checks it before any work.

    Raises UsageError if its folder does not exist, InputError if it is a device, a FIFO, a socket or a folder.
    """
    if given is None or given == "-":
        return given
    folder = Path(given).parent
    if not folder.is_dir():
        raise UsageError(
            f"{option.opts[-1]} {given}: the folder {folder} does not exist", "Create it, or choose another FILE."
        )
    destination(Path(given))
    return given


def target_option(
    text: str = "Where latency is measured: local or ssh://HOST.", default: str | None = "local"
) -> Callable[[Command], Command]:
    """``--target``, passed as text for :func:`lrexport.measure.targets.parse_target`."""
    place = TargetType()
    return click.option("--target", type=place, metavar="TARGET", default=default, show_default=True, help=text)


def threads_option() -> Callable[[Command], Command]:
    """``--threads``, of the runtime on the target, for inference."""
    text = "Threads of the runtime."
    return click.option("--threads", type=click.IntRange(1), metavar="N", default=1, show_default=True, help=text)


def choice_option(config: type, name: str, text: str) -> Callable[[Command], Command]:
    """A choice among the field's words, which the help lists before ``text``."""
    words = _values(config, name, Words).words
    return field_option(config, name, click.Choice(words), name.upper(), f"{', '.join(words[:-1])} or {words[-1]}{text}")


def count_option(config: type, name: str, text: str) -> Callable[[Command], Command]:
    """A whole number within the field's limits."""
    return field_option(config, name, click.IntRange(_values(config, name, Count).least), "N", text)


def switch_option(config: type, name: str, text: str) -> Callable[[Command], Command]:
    """``--name/--no-name``."""
    default = next(field.default for field in fields(config) if field.name == name)
    flag = option_name(name)
    return click.option(f"--{flag}/--no-{flag}", default=default, show_default=True, help=text)


def number_option(config: type, name: str, text: str) -> Callable[[Command], Command]:
    """A number within the field's limits."""
    limits = _values(config, name, Number)
    return field_option(config, name, click.FloatRange(limits.least, limits.most, limits.above), "X", text)


def _values(config: type, name: str, kind: type[Values]) -> Values:
    facts = next(facts_of(field) for field in fields(config) if field.name == name)
    assert facts is not None
    assert isinstance(facts.values, kind), f"{name} needs values of {kind.__name__} among its facts"
    return facts.values


def field_option(config: type, name: str, kind: Any, metavar: str | None, text: str) -> Callable[[Command], Command]:
    """An option of any type, with the name and default of the configuration's field; a list is shown as it is written."""
    default = next(field.default for field in fields(config) if field.name == name)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    flag = f"--{option_name(name)}"
    return click.option(flag, type=kind, metavar=metavar, default=default, show_default=default is not None, help=text)


def resume_options() -> Callable[[Command], Command]:
    """``--resume`` and ``--allow-changes``, for commands that make one run."""
    changes = click.option("--allow-changes", is_flag=True, help="Resume even if options, data or devices changed.")
    resume = click.option("--resume", is_flag=True, help="Resume an interrupted run, or start a new one.")
    return section(OUTPUT, resume, changes)


def trust_option() -> Callable[[Command], Command]:
    """``--trust-code``, for every command that may run code named in a run's record; not passed to the command."""

    def trust(context: click.Context, _option: click.Parameter, given: bool) -> None:
        context.with_resource(consent.trusting(given))

    text = "Run code that a run's record names without asking; code that you name is always run."
    return click.option("--trust-code", is_flag=True, expose_value=False, callback=trust, help=text)


def is_run(model: str) -> bool:
    """Whether MODEL is a run's folder. Raises InputError if its record is a link or not a regular file."""
    try:
        return plain(Path(model), RECORD).is_file()
    except ValueError:  # a NUL, which is not allowed in a path
        return False
