"""Defaults from ``[tool.lrexport]`` in pyproject.toml or from lrexport.toml, checked key by key.

A key at the top is for every command that has such an option; a table named like a command is for that command alone.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lrexport.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Defaults = dict[str, dict[str, Any]]


def defaults(config_file: str | None, commands: Mapping[str, click.Command]) -> Defaults:
    """click's default_map: command → parameter → value. Raises UsageError with file, line and the nearest known key."""
    path, table = _find(config_file)
    if path is None or not table:
        return {}
    options = {name: _options(command) for name, command in commands.items()}
    everywhere = {key for known in options.values() for key in known}
    result: Defaults = {name: {} for name in commands}
    for key, value in table.items():
        if key in commands:
            if not isinstance(value, dict):
                raise _wrong(path, key, f"{key!r} is a {_kind(value)}, a table of options was wanted")
            for inner, chosen in value.items():
                if inner not in options[key]:
                    raise _unknown(path, inner, set(options[key]), key)
                result[key][options[key][inner].name or inner] = _checked(path, inner, chosen, options[key][inner], key)
        elif key in everywhere:
            for name, known in options.items():
                if key in known:
                    result[name][known[key].name or key] = _checked(path, key, value, known[key])
        else:
            raise _unknown(path, key, everywhere | set(commands))
    return result


def _find(config_file: str | None) -> tuple[Path | None, dict[str, Any]]:
    if config_file is not None:
        path = Path(config_file)
        if not path.is_file():
            raise UsageError(f"there is no configuration file {path}")
        content = _parse(path)
        return path, _section(path, content) if path.name == "pyproject.toml" else content
    if Path("lrexport.toml").is_file():
        return Path("lrexport.toml"), _parse(Path("lrexport.toml"))
    if Path("pyproject.toml").is_file():
        return Path("pyproject.toml"), _section(Path("pyproject.toml"), _parse(Path("pyproject.toml")))
    return None, {}


def _section(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """``[tool.lrexport]`` of a pyproject.toml."""
    tools = content.get("tool", {})
    section = tools.get("lrexport", {}) if isinstance(tools, dict) else {}
    if not isinstance(section, dict):
        raise UsageError(f"{_place(path)}: 'lrexport' is a {_kind(section)}, a table of options was wanted")
    return section


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path} is no valid TOML: {error}") from error


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


def _checked(path: Path, key: str, value: Any, parameter: click.Option, command: str = "") -> Any:
    given = [str(item) for item in value] if isinstance(value, list) else value
    wanted = parameter.type
    if parameter.multiple:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise _wrong(path, key, f"{key} is {value!r}, text or a list of texts was wanted", command)
        return items
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise _wrong(path, key, f"{key} is a {_kind(value)}, true or false was wanted", command)
        return value
    if isinstance(value, bool | dict):
        raise _wrong(path, key, f"{key} is a {_kind(value)}, one value ({wanted.name}) was wanted", command)
    try:
        wanted.convert(str(given) if not isinstance(given, list) else ",".join(given), parameter, None)
    except (click.BadParameter, UsageError) as error:
        raise _wrong(path, key, f"{key} = {value!r}: {error}", command) from error
    return str(given) if not isinstance(given, list) else ",".join(given)


def _kind(value: Any) -> str:
    names = {dict: "table", list: "list", bool: "boolean", str: "text", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def _unknown(path: Path, key: str, known: set[str], command: str = "") -> UsageError:
    close = difflib.get_close_matches(key, sorted(known), 1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(k for k in known if '_' not in k))}."
    where = f"[{command}]" if command else "the configuration"
    return UsageError(f"{_place(path, command, key)}: unknown key {key!r} in {where}", hint)


def _wrong(path: Path, key: str, message: str, command: str = "") -> UsageError:
    return UsageError(f"{_place(path, command, key)}: {message}")


def _place(path: Path, *keys: str) -> str:
    """``file:line`` of the key inside of its tables, or of the innermost of those; tomllib keeps no positions."""
    wanted = [*(("tool", "lrexport") if path.name == "pyproject.toml" else ()), *filter(None, keys)]
    table: list[str] = []
    best, place = 0, str(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        header = re.match(r"\s*\[+([^\[\]]+)\]", line)
        assignment = re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if header:
            table = found = _names(header[1])
        elif assignment:
            found = [*table, *_names(assignment[1])]
        else:
            continue
        depth = min(len(found), len(wanted))
        if depth > best and found[:depth] == wanted[:depth]:
            best, place = depth, f"{path}:{number}"
    return place


def _names(dotted: str) -> list[str]:
    return [name.strip().strip("\"'") for name in dotted.split(".")]
