"""The commands that repeat a run, from its record: all options, whether from command line, files or environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from lrexport.config.comparison import NEED_DATA, OPTIONS, TAKEN_OVER
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import KEYS
from lrexport.runs.record import Record
from lrexport.text import as_argument, option_name, shell_word

_AGAIN = "-again"


def commands(record: Record, run: str) -> list[list[str]]:
    """Command lines, as lists of arguments, that repeat ``run``, after those of the runs that it continued from.

    They write folders beside the runs, named like these with ``-again``, so that they work where the runs still are.
    Options of ``compress`` and ``train`` at their defaults are omitted.
    """
    last, before = run, dict[str, Any]()
    lines = []
    for place, (folder, config) in enumerate([*((one.run, one.config) for one in record.earlier), (run, record.config)]):
        made = _again(folder if folder is not None else _next_folder(record, place, run))
        what = record.model.text if place == 0 else as_argument(last)
        name = "compress" if config.get("goal") else "train"
        # Options taken over from the run before are omitted; most of them are not accepted there.
        taken_over = {key for key in TAKEN_OVER if place and config.get(key) == before.get(key)}
        options = _options(config, taken_over, record.data is None)
        lines.append(["lrexport", name, what, *options, "-o", as_argument(made)])
        last, before = made, config
    if record.export:
        lines.append(["lrexport", "onnx", as_argument(_again(run)), *_export_options(record.export)])
    return lines


def shell_lines(command: Sequence[str], width: int = 76) -> str:
    """The command quoted for a shell; a long one takes several lines, each option on the line of its value."""
    lines: list[str] = []
    for number, argument in enumerate(command):
        quoted = shell_word(argument)
        follows = number > 0 and (command[number - 1].startswith("--") or number < 3) and not argument.startswith("--")
        if lines and (follows or command[number - 1] == "-o" or len(lines[-1]) + len(quoted) < width):
            lines[-1] += f" {quoted}"
        else:
            lines.append(quoted)
    return " \\\n    ".join(lines)


def _again(folder: str) -> str:
    """The folder of the repeated run."""
    path = Path(os.path.normpath(folder))
    if path.name in ("", ".."):  # the current folder, or one above it
        return str(path / ".." / f"{path.resolve().name}{_AGAIN}")
    return str(path.with_name(f"{path.name}{_AGAIN}"))


def _next_folder(record: Record, place: int, run: str) -> str:
    """The folder of an earlier compression that the next one continued in place."""
    return next((one.run for one in record.earlier[place:] if one.run is not None), run)


def _options(config: Mapping[str, Any], taken_over: set[str], without_data: bool) -> Iterator[str]:
    defaults = {field.name: field.default for made in (TrainConfig, CompressConfig) for field in fields(made)}
    said = {name for name, facts in OPTIONS.items() if facts.flag} - taken_over - ({*NEED_DATA} if without_data else set())
    for name, value in config.items():
        if name not in said:
            continue
        if _as_json(value) != _as_json(defaults[name]):
            yield from _option(name, value)
    yield from _goal(config.get("goal") or {})


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _goal(goal: Mapping[str, Any]) -> Iterator[str]:
    for name, value in goal.items():
        key = KEYS[name]
        yield from _option(key.option, f"{_text(value)}{key.unit}" if key.unit else value)


def _export_options(export: Mapping[str, Any]) -> Iterator[str]:
    for name, value in export.items():
        if name in ("passes", "rescore"):
            yield from () if value else (f"--no-{name}",)
        elif name == "batch" and value is None:
            yield from () if export.get("dynamic") else ("--batch", "dynamic")
        elif name == "dynamic":
            yield from ("--dynamic", ",".join(value)) if value else ()
        elif value is not None and value is not False and (name != "calibration_images" or export.get("int8")):
            yield from _option(name, value)


def _option(name: str, value: Any) -> Iterator[str]:
    flag = f"--{option_name(name)}"
    if isinstance(value, bool):
        yield flag if value else f"--no-{flag[2:]}"
    elif isinstance(value, list | tuple) and name in OPTIONS and OPTIONS[name].commas:
        yield from (flag, ",".join(map(_text, value)))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _option(name, each)
    elif value is not None:
        text = _text(value)
        yield from [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _text(value: Any) -> str:
    """A number without an exponent, which --latency does not accept."""
    return format(Decimal(repr(value)), "f") if isinstance(value, float) else str(value)
