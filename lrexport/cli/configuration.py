"""Defaults from ``[tool.lrexport]`` in pyproject.toml or from lrexport.toml, checked key by key.

A key at the top is for every command that has such an option; a table named like a command is for that command alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import click

from lrexport.artifacts.toml_files import BUDGET, Settings, kind, read_settings
from lrexport.errors import UsageError

Defaults = dict[str, dict[str, Any]]


def defaults(config_file: str | None, load_commands: Callable[[], Mapping[str, click.Command]]) -> Defaults:
    """click's default_map: command → parameter → value. Raises UsageError with file, line and the nearest known key.

    Commands are loaded only where there is an option to check.
    """
    settings = read_settings(config_file)
    if not settings.table.keys() - {BUDGET}:
        return {}
    commands = load_commands()
    options = {name: _options(command) for name, command in commands.items()}
    everywhere = {key for known in options.values() for key in known}
    result: Defaults = {name: {} for name in commands}
    for key, value in settings.table.items():
        if key == BUDGET:
            continue
        if key in commands:
            if not isinstance(value, dict):
                raise _wrong(settings, key, f"{key!r} is a {kind(value)}, a table of options was wanted")
            for inner, chosen in value.items():
                if inner not in options[key]:
                    raise _unknown(settings, inner, set(options[key]), key)
                result[key][options[key][inner].name or inner] = _checked(settings, inner, chosen, options[key][inner], key)
        elif key in everywhere:
            for name, known in options.items():
                if key in known:
                    result[name][known[key].name or key] = _checked(settings, key, value, known[key])
        else:
            raise _unknown(settings, key, everywhere | {*commands, BUDGET})
    return result


def _options(command: click.Command) -> dict[str, click.Option]:
    """Option names as written in TOML, ``svd-epochs``, also ``svd_epochs``."""
    found: dict[str, click.Option] = {}
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        for option in parameter.opts:
            if option.startswith("--") and option != "--help":
                found[option[2:]] = parameter
                found[option[2:].replace("-", "_")] = parameter
    return found


def _checked(settings: Settings, key: str, value: Any, parameter: click.Option, command: str = "") -> Any:
    given = [str(item) for item in value] if isinstance(value, list) else value
    wanted = parameter.type
    if parameter.multiple:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise _wrong(settings, key, f"{key} is {value!r}, text or a list of texts was wanted", command)
        return items
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise _wrong(settings, key, f"{key} is a {kind(value)}, true or false was wanted", command)
        return value
    if isinstance(value, bool | dict):
        raise _wrong(settings, key, f"{key} is a {kind(value)}, one value ({wanted.name}) was wanted", command)
    try:
        wanted.convert(str(given) if not isinstance(given, list) else ",".join(given), parameter, None)
    except (click.BadParameter, UsageError) as error:
        raise _wrong(settings, key, f"{key} = {value!r}: {error}", command) from error
    return str(given) if not isinstance(given, list) else ",".join(given)


def _unknown(settings: Settings, key: str, known: set[str], command: str = "") -> UsageError:
    close = difflib.get_close_matches(key, sorted(known), 1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(k for k in known if '_' not in k))}."
    where = f"[{command}]" if command else "the configuration"
    return UsageError(f"{settings.place(command, key)}: unknown key {key!r} in {where}", hint)


def _wrong(settings: Settings, key: str, message: str, command: str = "") -> UsageError:
    return UsageError(f"{settings.place(command, key)}: {message}")
