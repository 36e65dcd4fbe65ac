"""All output of lrexport: safe on a terminal and in a CI log, in any encoding.

Nothing else writes to stdout or stderr (pyproject.toml bans it). When the reader of a pipe closes it, further output is
dropped and the work continues: ``lrexport check | head`` still ends with its own exit code.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any, TextIO

import click

from lrexport.errors import DeviceError
from lrexport.text import json_text, plain_line, plain_lines

# ASCII for the other characters in lrexport's own texts, for streams that cannot encode them.
_IN_ASCII = {"×": "x", "÷": "/", "−": "-", "–": "-", "—": "-", "→": "->", "…": "...", "λ": "lambda", "·": "*", "°": " deg"}
_ERRORS = "lrexport"  # name of the error handler for characters that the stream cannot encode


def say(text: str) -> None:
    """Print one line of a result on stdout. Raises DeviceError if it cannot be written."""
    _write(sys.stdout, f"{plain_line(text)}\n")


def note(text: str) -> None:
    """Print one line for people on stderr."""
    _write(sys.stderr, f"{plain_line(text)}\n")


def drawn(text: str) -> None:
    """Print a drawing with its control sequences on stdout; every text in it is already safe."""
    _write(sys.stdout, text)


def document(text: str) -> None:
    """Print a text of several lines on stdout, such as Markdown or XML, in which names are already escaped."""
    page(plain_lines(text))


def page(text: str) -> None:
    """Print HTML on stdout; its scripts may contain any character, and names are already escaped."""
    _write(sys.stdout, text if text.endswith("\n") else f"{text}\n", "xmlcharrefreplace")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, without characters that a terminal or a CI would interpret."""
    text = json_text(value, indent=2, ascii_only=not _takes(sys.stdout, "λ"))
    _write(sys.stdout, f"{text}\n")


def ci_commands(lines: Iterable[str]) -> None:
    """Print lrexport's own CI commands on stderr, which the CI reads as well: stdout may carry another output."""
    _write(sys.stderr, "".join(f"{line}\n" for line in lines))


def problem(message: str, hint: str | None = None, who: str = "") -> None:
    """Print an error on stderr: its first line, then the other lines and the hint, indented."""
    first, *others = f"{who}{message}".split("\n")
    note(f"lrexport: {first}")
    for line in (*others, *(hint.split("\n") if hint else ())):
        note(f"  {line}")


def is_interactive() -> bool:
    """Whether a user can be asked: stdin and stderr are terminals."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def takes_styles() -> bool:
    """Whether stdout is a terminal whose user wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def confirm(question: str) -> bool:
    """Ask on stderr; the default is no. Raises click.Abort for Ctrl-C and at the end of stdin."""
    return click.confirm(plain_line(question), default=False, err=True)


def print_traceback() -> None:
    """Print the traceback of the current exception on stderr."""
    import traceback

    _write(sys.stderr, plain_lines(traceback.format_exc()))


def usage_problem(error: click.ClickException) -> None:
    """Print click's message about a mistake on the command line, with the usage of the command."""
    context = getattr(error, "ctx", None)
    if context is not None:
        _write(sys.stderr, f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n\n")
    first, *others = error.format_message().split("\n")
    note(f"Error: {first}")
    for line in others:
        note(f"  {line}")


def prepare() -> None:
    """Prepare a new process: its streams accept any text, and no file gets the descriptor of a closed stream.

    Raises DeviceError if stdout is closed: the result would be lost.
    """
    is_closed = sys.stdout is None
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # the next opened file would get this descriptor, and with it what libraries print
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    codecs.register_error(_ERRORS, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    warnings.showwarning = _show_warning
    if is_closed:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        raise DeviceError("standard output is closed", "Redirect it to a file or to /dev/null.")


def print_logs() -> None:
    """Print what libraries log without a handler; it may contain names from a network."""
    import logging  # help, which logs nothing, is quicker without it

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _write(sys.stderr, f"{plain_lines(self.format(record))}\n")

    logging.lastResort = Printing(logging.WARNING)


def finish() -> None:
    """End a process: what libraries left in the streams is written, or silently dropped."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _mute(stream)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a library's warning; it may contain names from a network."""
    _write(file or sys.stderr, plain_lines(warnings.formatwarning(message, category, filename, lineno, line)))


def _write(stream: TextIO, text: str, errors: str = _ERRORS) -> None:
    """Write and flush. Raises DeviceError if stdout cannot be written; failures of stderr cannot be reported."""
    try:
        stream.write(_fitting(stream, text, errors))
        stream.flush()
    except BrokenPipeError:
        _mute(stream)
    except OSError as error:
        _mute(stream)
        if stream is sys.stdout:
            raise DeviceError(
                f"cannot write to standard output: {error.strerror}", "Redirect it elsewhere, or free some space."
            ) from error


def _mute(stream: TextIO) -> None:
    """Drop the stream's buffer and everything written to it from now on."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a stream of the operating system
        return


def _takes(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _fitting(stream: TextIO, text: str, errors: str) -> str:
    """The text with characters replaced that the stream cannot encode."""
    encoding = stream.encoding or "utf-8"
    if _takes(stream, text):
        return text
    codecs.register_error(_ERRORS, _replaced)
    return text.encode(encoding, errors).decode(encoding)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: a readable replacement of the character, or its code."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    coded = (_IN_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode() for char in text)
    return "".join(coded), error.end
