"""The one way out: whatever lrexport prints passes here, harmless on a terminal and in the log of a CI, in any encoding.

Nothing else writes to stdout or stderr (pyproject.toml bans it). Where the reader of a pipe has gone, the work goes on and
what would be printed is dropped, so that ``lrexport check | head`` still ends with its own exit code.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

import click

from lrexport.errors import DeviceError
from lrexport.text import json_text, plain_line, plain_lines

# What our own texts have beyond ASCII, for streams that do not take it.
_IN_ASCII = {"×": "x", "÷": "/", "−": "-", "–": "-", "—": "-", "→": "->", "…": "...", "λ": "lambda", "·": "*", "°": " deg"}
_ERRORS = "lrexport"  # what text does that an encoding cannot hold


def say(text: str) -> None:
    """One line of a result, on stdout. Raises DeviceError where it cannot be written."""
    _write(sys.stdout, f"{plain_line(text)}\n")


def note(text: str) -> None:
    """One line for people, on stderr."""
    _write(sys.stderr, f"{plain_line(text)}\n")


def drawn(text: str) -> None:
    """What was drawn for a terminal, its control sequences included; every text in it was made safe before."""
    _write(sys.stdout, text)


def document(text: str) -> None:
    """A text of several lines on stdout, Markdown or XML say, in which names are escaped in its own way already."""
    page(plain_lines(text))


def page(text: str) -> None:
    """HTML on stdout; scripts in it may hold any character, and names in it are escaped already."""
    _write(sys.stdout, text if text.endswith("\n") else f"{text}\n", "xmlcharrefreplace")


def print_json(value: Any) -> None:
    """A value as JSON on stdout: valid, of the same strings, with nothing in it that a terminal or a CI takes for more."""
    text = json_text(value, indent=2, ascii_only=not _takes(sys.stdout, "λ"))
    _write(sys.stdout, f"{text}\n")


def ci_commands(lines: Iterable[str]) -> None:
    """Commands of our own to the log of a CI, on stderr, which is read for them too: stdout may be another output's."""
    _write(sys.stderr, "".join(f"{line}\n" for line in lines))


def problem(message: str, hint: str | None = None, who: str = "") -> None:
    """An error: what was found and, indented, the rest of it and what to do."""
    first, *others = f"{who}{message}".split("\n")
    note(f"lrexport: {first}")
    for line in (*others, *(hint.split("\n") if hint else ())):
        note(f"  {line}")


def is_interactive() -> bool:
    """Whether somebody can be asked, and answer: stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def takes_styles() -> bool:
    """Whether stdout is a terminal whose user wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confirm(question: str) -> bool:
    """Ask on stderr; no is the default. Raises click.Abort for Ctrl-C and at the end of stdin."""
    return click.confirm(plain_line(question), default=False, err=True)


def print_traceback() -> None:
    """The traceback of the error that is being handled, on stderr."""
    _write(sys.stderr, plain_lines(traceback.format_exc()))


def usage_problem(error: click.ClickException) -> None:
    """A mistake on the command line as click puts it, with the usage of the command."""
    context = getattr(error, "ctx", None)
    if context is not None:
        _write(sys.stderr, f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n\n")
    first, *others = error.format_message().split("\n")
    note(f"Error: {first}")
    for line in others:
        note(f"  {line}")


def prepare() -> None:
    """Before anything else of a process: its streams take every text, and files get no descriptor of a stream.

    Raises DeviceError where stdout is closed: a result would be lost, after all the work for it.
    """
    is_closed = sys.stdout is None
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # the next file that is opened would get it, and what libraries print would be written there
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    warnings.showwarning = _show_warning
    logging.lastResort = _Logged(logging.WARNING)  # what libraries log where nobody else listens
    if is_closed:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        raise DeviceError("standard output is closed", "Redirect it to a file, or to /dev/null where nobody is to read it.")


def finish() -> None:
    """At the end of a process: what others left in the streams is written, or dropped without a word."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _mute(stream)


class _Logged(logging.Handler):
    """Prints what a library logs, in which names of a network may be."""

    def emit(self, record: logging.LogRecord) -> None:
        _write(sys.stderr, f"{plain_lines(self.format(record))}\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of a library: names of a network may be in it."""
    _write(file or sys.stderr, plain_lines(warnings.formatwarning(message, category, filename, lineno, line)))


def _write(stream: TextIO, text: str, errors: str = _ERRORS) -> None:
    """Write and flush. Raises DeviceError where stdout cannot be written; for stderr there is nobody to report it to."""
    try:
        stream.write(_fitting(stream, text, errors))
        stream.flush()
    except BrokenPipeError:
        _mute(stream)
    except OSError as error:
        _mute(stream)
        if stream is sys.stdout:
            raise DeviceError(
                f"cannot write to standard output: {error.strerror}", "Send it to another place, or make room there."
            ) from error


def _mute(stream: TextIO) -> None:
    """From now on what is written to the stream goes nowhere, also what is in its buffer now."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # no stream of the system's
        return


def _takes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _fitting(stream: TextIO, text: str, errors: str) -> str:
    """The text in characters that the stream's encoding has."""
    encoding = stream.encoding or "utf-8"
    if _takes(stream, text):
        return text
    codecs.register_error(_ERRORS, _replaced)
    return text.encode(encoding, errors).decode(encoding)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: what reads like the character, or its code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    coded = (_IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text)
    return "".join(coded), error.end
