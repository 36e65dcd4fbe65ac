"""Read ``[tool.lrexport]`` of pyproject.toml, or lrexport.toml, with line numbers for errors."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lrexport.artifacts.plain_files import check_input
from lrexport.errors import UsageError

LREXPORT, PYPROJECT = "lrexport.toml", "pyproject.toml"
# The only table that does not belong to a command: the budgets of ``lrexport check``, read in lrexport/budget/limits.py.
BUDGET = "budget"
_MOST_PARTS = 100  # parts of a dotted key
_PART = re.compile(r"[\w\"'-]")
_TOKEN = re.compile(r"[\w-]+|\"[^\"\n]*\"|'[^'\n]*'|.", re.DOTALL)


@dataclass(frozen=True)
class Settings:
    """lrexport's table, and its file or None."""

    path: Path | None
    table: dict[str, Any]

    def place(self, *keys: str) -> str:
        """``file:line`` of a key, or of the innermost table of ``keys`` that exists."""
        if self.path is None:
            return "the configuration"
        full = (*(("tool", "lrexport") if self.path.name == PYPROJECT else ()), *filter(None, keys))
        for depth in range(len(full), 0, -1):
            if (line := self._lines.get(full[:depth])) is not None:
                return f"{self.path}:{line}"
        return str(self.path)

    @cached_property
    def _lines(self) -> dict[tuple[str, ...], int]:
        """The first line of every key and of its tables, which tomllib does not report."""
        lines: dict[tuple[str, ...], int] = {}
        table: list[str] = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines() if self.path else (), 1):
            header = re.match(r"\s*\[+([^\[\]]+)\]", line)
            assignment = re.match(r"\s*((?:[\w.-]|\"[^\"]*\"|'[^']*')+)\s*=", line)
            if header:
                table = keys = _names(header[1])
            elif assignment:
                keys = [*table, *_names(assignment[1])]
            else:
                continue
            for depth in range(1, len(keys) + 1):
                lines.setdefault(tuple(keys[:depth]), number)
        return lines


def read_settings(config_file: str | None) -> Settings:
    """``config_file``, or lrexport.toml, or pyproject.toml of the current folder. Raises UsageError."""
    if config_file is not None:
        path = Path(config_file)
        check_input(path)
        if not path.is_file():
            raise UsageError(f"the configuration file {path} does not exist", "Create it, or correct --config.")
        return _read(path)
    for name in (LREXPORT, PYPROJECT):
        check_input(Path(name))
        if Path(name).is_file():
            return _read(Path(name))
    return Settings(None, {})


def kind(value: Any) -> str:
    """TOML's word for the type of a value, for messages."""
    names = {dict: "table", list: "list", bool: "boolean", str: "text", int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)


def parse(text: str) -> dict[str, Any]:
    """The values in TOML. Raises ValueError if it is malformed."""
    if sys.version_info >= (3, 11):  # imported here: most commands read no file
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)


def _read(path: Path) -> Settings:
    try:
        text = path.read_text(encoding="utf-8")
        _check_keys(text)
        content = parse(text)
    except RecursionError as error:
        raise UsageError(f"invalid TOML in {path}: nested too deeply") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # also for numbers with more digits than Python reads
        raise UsageError(f"invalid TOML in {path}: {error}") from error
    if path.name != PYPROJECT:
        return Settings(path, content)
    tools = content.get("tool", {})
    section = tools.get("lrexport", {}) if isinstance(tools, dict) else {}
    if not isinstance(section, dict):
        place = Settings(path, {}).place()
        raise UsageError(f"{place}: invalid 'lrexport': expected a table of options, not a {kind(section)}")
    return Settings(path, section)


def _check_keys(text: str) -> None:
    """Raise ValueError for a key with very many parts, because the parser's time grows with the cube of their number."""
    if text.count(".") <= _MOST_PARTS:
        return
    parts, before = 0, ""
    for token in _TOKEN.findall(text):
        if token == ".":
            parts = 0 if before == "." else parts + 1
        elif token not in " \t" and not _PART.match(token):
            parts = 0
        before = token
        if parts > _MOST_PARTS:
            raise ValueError(f"a key of more than {_MOST_PARTS} parts")


def _names(dotted: str) -> list[str]:
    """The parts of a dotted key; a quoted part may contain dots."""
    return [name.strip("\"'") for name in re.findall(r"\"[^\"]*\"|'[^']*'|[^.\s]+", dotted)]
