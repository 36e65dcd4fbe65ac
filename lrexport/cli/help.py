"""Help in sections: --help lists a command's common options, --help-all every option.

The formatter is our own: rich-click and cloup take longer to import than all of lrexport (docs/decisions.md).
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

from lrexport.cli import output
from lrexport.text import plain_line, plain_lines

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

MODEL_AND_DATA, GOAL, LAYERS, TRAINING = "Model and data", "Goal (one of these)", "Low-rank layers", "Training"
DISTILLATION, HARDWARE, EXPORT, SWEEP = "Distillation", "Hardware", "Export", "Sweep"
INPUTS, COMPARISON, MEASUREMENT, OUTPUT = "Inputs", "Comparison", "Measurement", "Output"
# In the order of every command's help.
SECTIONS = (
    *(MODEL_AND_DATA, GOAL, SWEEP, LAYERS, TRAINING, DISTILLATION, HARDWARE),
    *(INPUTS, COMPARISON, EXPORT, MEASUREMENT, OUTPUT),
)
_WIDEST, _NARROW, _NARROWEST = 100, 70, 30  # columns; below _NARROW texts go under their options, not beside them
_COLUMN, _GAP, _INDENT = 24, 2, 4
_EXAMPLES = "\b\n"  # starts the paragraph of a docstring with the examples, one per line
_ALL = "lrexport.help_all"  # in a context's meta


@dataclass(frozen=True)
class Place:
    """Section of an option in the help; rare options are listed by --help-all only."""

    section: str
    is_rare: bool


_ELSEWHERE = Place("Options", is_rare=False)
_PLACES: WeakKeyDictionary[click.Parameter, Place] = WeakKeyDictionary()


def stacked(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Several options as one decorator, shown in the help in the order given."""

    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def section(
    title: str,
    *common: Callable[[Decorated], Decorated],
    rare: Sequence[Callable[[Decorated], Decorated]] = (),
) -> Callable[[Decorated], Decorated]:
    """Options of one section of the help: common ones first, ``rare`` ones in --help-all only."""
    assert title in SECTIONS, title

    def decorate(command: Decorated) -> Decorated:
        for options, is_rare in ((rare, True), (common, False)):
            before = len(_parameters(command))
            command = stacked(*options)(command)
            for parameter in _parameters(command)[before:]:
                _PLACES[parameter] = Place(title, is_rare)
        return command

    return decorate


def place_of(parameter: click.Parameter) -> Place | None:
    """The place of an option; None if no :func:`section` lists it."""
    return _PLACES.get(parameter)


def _parameters(command: Callable[..., Any]) -> list[click.Parameter]:
    """The parameters that decorators have added to a command's function so far."""
    parameters: list[click.Parameter] = getattr(command, "__click_params__", [])
    return parameters


class Command(click.Command):
    """A command whose help has sections and is printed by :mod:`lrexport.cli.output`."""

    _all_option: click.Option | None = None

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show
            option.help = "Show this message and exit."
        return option

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's parameters, --help, and --help-all if it shows more."""
        parameters = super().get_params(ctx)
        if not any(place is not None and place.is_rare for place in map(place_of, parameters)):
            return parameters
        if self._all_option is None:  # click compares options by identity
            text = "Show every option and exit."
            self._all_option = click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_show_all, help=text
            )
        return [*parameters, self._all_option]

    def get_help(self, ctx: click.Context) -> str:
        formatter = Formatter()
        self.format_help(ctx, formatter)
        return formatter.getvalue().rstrip("\n")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the command does, then its examples."""
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        for paragraph in paragraphs:
            if paragraph and not paragraph.startswith(_EXAMPLES):
                formatter.write_paragraph()
                formatter.write_text(paragraph)
        for paragraph in paragraphs:
            if paragraph.startswith(_EXAMPLES):
                with formatter.section("Examples"):
                    for line in paragraph.removeprefix(_EXAMPLES).splitlines():
                        formatter.write("".join(f"{part}\n" for part in _shell_lines(line, formatter)))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options by section, those without a section last."""
        shows_all = bool(ctx.meta.get(_ALL))
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option) and not option.hidden]
        placed = [(place_of(option) or _ELSEWHERE, option) for option in options]
        listed = [(place, option) for place, option in placed if shows_all or not place.is_rare]
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*SECTIONS, _ELSEWHERE.section)}
        for place, option in sorted(listed, key=lambda each: each[0].is_rare):
            rows[place.section].append((_term(option, ctx), _text(option, ctx)))
        left_out = len(placed) - len(listed)
        if left_out:  # the last line names --help-all
            del rows[_ELSEWHERE.section]
        shown = {title: some for title, some in rows.items() if some}
        column = _column(row for some in shown.values() for row in some)
        for title, some in shown.items():
            with formatter.section(title):
                formatter.write_dl(some, column)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more options: {ctx.command_path} --help-all")


class Formatter(click.HelpFormatter):
    """Bold headings and coloured options on a terminal; texts beside their options if the terminal is wide enough."""

    def __init__(self) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(width=max(min(columns, _WIDEST) - 2, _NARROWEST))
        self._is_styled = output.takes_styles()

    def write(self, string: str) -> None:
        """Write with unprintable characters made visible: defaults may come from a configuration file."""
        super().write(plain_lines(string))

    def write_heading(self, heading: str) -> None:
        self._write_styled(f"{'':{self.current_indent}}{heading}:", bold=True)
        self.write("\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = _COLUMN, col_spacing: int = _GAP) -> None:
        """Terms and their texts; ``col_max`` is the width of the terms' column."""
        is_narrow = self.width < _NARROW
        start = self.current_indent + (_INDENT if is_narrow else col_max + col_spacing)
        for term, text in rows:
            lines = textwrap.wrap(text, self.width - start, break_long_words=False, break_on_hyphens=False)
            self.write(" " * self.current_indent)
            self._write_styled(term, fg="cyan")
            if lines and not is_narrow and len(term) <= col_max:
                self.write(f"{'':{col_max + col_spacing - len(term)}}{lines.pop(0)}")
            self.write("".join(f"\n{'':{start}}{line}" for line in lines) + "\n")

    def _write_styled(self, text: str, **style: Any) -> None:
        safe = plain_line(text)
        super().write(click.style(safe, **style) if self._is_styled else safe)


def _column(rows: Iterable[tuple[str, str]]) -> int:
    """The width of the column of terms: the longest that fits."""
    return max((len(term) for term, _ in rows if len(term) <= _COLUMN), default=_COLUMN)


def _term(option: click.Option, ctx: click.Context) -> str:
    """``-o, --output RUN``."""
    record = option.get_help_record(ctx)
    return record[0] if record else ""


def _text(option: click.Option, ctx: click.Context) -> str:
    """The help of an option with its default, without its range, which error messages give."""
    extra: Mapping[str, Any] = option.get_help_extra(ctx)
    if "required" in extra:
        return f"{option.help} [required]"
    return f"{option.help} [default: {extra['default'].removesuffix('.0')}]" if "default" in extra else option.help or ""


def _shell_lines(line: str, formatter: click.HelpFormatter) -> Iterator[str]:
    """A command in lines that fit, each but the last ending in a backslash."""
    indent = formatter.current_indent
    shown = f"{'':{indent}}"
    for word in line.split(" "):
        if len(shown) + len(word) + 2 > formatter.width and shown.strip():
            yield f"{shown}\\"
            shown = f"{'':{indent + _INDENT}}"
        shown += f"{word} "
    yield shown.rstrip()


def _show(context: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not context.resilient_parsing:
        output.drawn(f"{context.get_help()}\n")
        context.exit()


def _show_all(context: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    context.meta[_ALL] = is_asked
    _show(context, parameter, is_asked)
