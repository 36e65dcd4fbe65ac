"""Defaults from ``[tool.lrexport]`` in pyproject.toml, from lrexport.toml or from a recipe, checked key by key.

A top-level key applies to every command with that option, a table named after a command to that command only. Recipes have
no tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import click

from lrexport.artifacts.toml_files import BUDGET, Settings, kind, read_settings
from lrexport.errors import UsageError
from lrexport.text import nearest

# Options of a single call, which --print-config omits.
OF_ONE_CALL = {"output", "json_to", "dry_run", "resume", "allow_changes", "trust_code", "recipe", "print_config"}
_WRITES, _CALL = "where files are written", "what one call does"

_PREFIX = "LREXPORT"
# Variables of lrexport that are read elsewhere, and those of options before the command.
_NO_OPTIONS = {f"{_PREFIX}_{name}" for name in ("CACHE", "STATE", "SSH_CONFIG", "CONFIG_FILE", "DEBUG")}


@dataclass
class Defaults:
    """A file's settings for one command: by parameter the value, as click takes it, and its place in the file."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, value: Any, place: str) -> None:
        """Both; ``later`` wins."""
        self.values[name], self.places[name] = value, place


def defaults(config_file: str | None, load_commands: Callable[[], Mapping[str, click.Command]]) -> dict[str, Defaults]:
    """Defaults by command. Raises UsageError with file, line and the nearest known key.

    Commands are loaded only if the file has an option to check.
    """
    settings = read_settings(config_file)
    if not settings.table.keys() - {BUDGET}:
        return {}
    commands = load_commands()
    options = {name: _options(command) for name, command in commands.items()}
    everywhere = {key for known in options.values() for key in known}
    result = {name: Defaults() for name in commands}
    for key, value in settings.table.items():
        if key == BUDGET:
            continue
        if key in commands:
            if not isinstance(value, dict):
                raise _wrong(settings, key, f"invalid {key!r}: expected a table of options, not a {kind(value)}")
            for inner, chosen in value.items():
                if inner not in options[key]:
                    raise _unknown(settings, inner, set(options[key]), key)
                checked = _checked(settings, inner, chosen, options[key][inner], key)
                result[key].note(options[key][inner].name or inner, checked, settings.place(key, inner))
        elif key in everywhere:
            for name, known in options.items():
                if key in known:
                    checked = _checked(settings, key, value, known[key])
                    result[name].note(known[key].name or key, checked, settings.place(key))
        else:
            raise _unknown(settings, key, everywhere | {*commands, BUDGET})
    return result


def recipe_defaults(settings: Settings, command: click.Command, others: Iterable[click.Command]) -> Defaults:
    """A recipe's settings for ``command``; keys that only ``others`` have are checked and skipped. Raises UsageError."""
    known, elsewhere = ({k: o for c in some for k, o in _options(c).items()} for some in ([command], others))
    every = {key: option for key, option in {**elsewhere, **known}.items() if option.name != "recipe"}
    result = Defaults()
    for key, value in settings.table.items():
        if key not in every:
            raise _unknown(settings, key, set(every), where="the recipe")
        checked = _checked(settings, key, value, every[key])
        if key in known:
            result.note(every[key].name or key, checked, settings.place(key))
    return result


def unknown_variables(name: str, command: click.Command, others: Iterable[str]) -> dict[str, str]:
    """Environment variables named like options that do not exist, each with the nearest existing one, or "".

    Variables of ``others`` are skipped: the options of other commands are not loaded here.
    """
    own = f"{_PREFIX}_{name.upper()}_"
    known = {f"{own}{(option.name or '').upper()}" for option in command.params if isinstance(option, click.Option)}
    elsewhere = tuple(f"{_PREFIX}_{other.upper()}_" for other in others if other != name)
    given = {variable for variable in os.environ if variable.startswith(f"{_PREFIX}_")} - known - _NO_OPTIONS
    unknown = sorted(variable for variable in given if not variable.startswith(elsewhere))
    return {variable: next(iter(nearest(variable, known, cutoff=0.8)), "") for variable in unknown}


def _options(command: click.Command) -> dict[str, click.Option]:
    """Option names as written in TOML: ``svd-epochs``, or ``svd_epochs``."""
    options: dict[str, click.Option] = {}
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        for option in parameter.opts:
            if option.startswith("--") and option not in ("--help", "--print-config"):
                options[option[2:]] = parameter
                options[option[2:].replace("-", "_")] = parameter
    return options


@cache
def not_in_files() -> dict[str, str]:
    """Options that no file may set, by what they decide: a file may come from a repository that nobody reviewed.

    The command line and the environment belong to the user. Every option that takes text is listed here, has ``only_user``
    in the configuration, or is listed as harmless in tests/cli/test_configuration.py.
    """
    from lrexport.config.comparison import OPTIONS  # imported late: --help and check need not wait for it

    return {
        **{name: facts.only_user for name, facts in OPTIONS.items() if facts.only_user is not None},
        **dict.fromkeys(("output", "json_to", "markdown_to", "junit_to", "history_to", "update_baseline"), _WRITES),
        "storage": "which machines are reached",
        "formats": "which programs run",
        **dict.fromkeys(("dry_run", "resume", "allow_changes", "print_config"), _CALL),
        "trust_code": "which code runs",
        **dict.fromkeys(("timeout", "memory"), "what a measurement may take"),
    }


def names_code(name: str, value: str) -> bool:
    """Whether the value of an option is an import path."""
    if name == "data":
        from lrexport.data.sources import is_import_path

        return is_import_path(value)
    if name == "task":
        from lrexport.networks.names import is_import_path

        return is_import_path(value)
    if name == "teacher":
        from lrexport.networks.names import is_import_path, parse_model

        return is_import_path(parse_model(value)[0])
    return False


def _refuse(settings: Settings, key: str, value: Any, parameter: click.Option, command: str) -> None:
    """Raise UsageError for an option that only the user may set."""
    name = parameter.name or ""
    flag = next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
    decided = not_in_files().get(name) or ("which code runs" if names_code(name, str(value)) else None)
    if decided is not None:
        raise UsageError(
            f"{settings.place(command, key)}: {key!r} decides {decided}; files must not set it",
            f"Give {flag} on the command line.",
        )


def _checked(settings: Settings, key: str, value: Any, parameter: click.Option, command: str = "") -> Any:
    _refuse(settings, key, value, parameter, command)
    if parameter.multiple:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise _wrong(settings, key, f"invalid {key} {value!r}: expected a string or a list of strings", command)
        for item in items:
            _converted(settings, key, item, parameter, command)
        return items
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise _wrong(settings, key, f"invalid {key}: expected true or false, not a {kind(value)}", command)
        return value
    if isinstance(value, bool | dict):
        raise _wrong(
            settings, key, f"invalid {key}: expected one value ({parameter.type.name}), not a {kind(value)}", command
        )
    return _converted(settings, key, value, parameter, command)


def _converted(settings: Settings, key: str, value: Any, parameter: click.Option, command: str) -> str:
    """The value as the command line would give it, checked by the option. Raises UsageError."""
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        parameter.type.convert(text, parameter, None)
    except (click.BadParameter, UsageError) as error:
        raise _wrong(settings, key, f"{key} = {value!r}: {error}", command) from error
    return text


def _unknown(
    settings: Settings, key: str, known: set[str], command: str = "", where: str = "the configuration"
) -> UsageError:
    close = nearest(key, sorted(known))
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(k for k in known if '_' not in k))}."
    within = f"[{command}]" if command else where
    return UsageError(f"{settings.place(command, key)}: unknown key {key!r} in {within}", hint)


def _wrong(settings: Settings, key: str, message: str, command: str = "") -> UsageError:
    return UsageError(f"{settings.place(command, key)}: {message}")
