"""The family of lrexport's errors: a message, a hint and an exit code. A user's mistake never ends in a traceback."""

from __future__ import annotations

import errno
import signal

_MOST_NAME = 200  # longest part of a name that is shown, in characters


class LrexportError(Exception):
    """Base of all errors that lrexport raises on purpose.

    ``message`` says what was found and what was expected, ``hint`` what to do next.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(LrexportError):
    """The command line, the configuration or an API argument is wrong (exit code 2)."""

    exit_code = 2


class InputError(LrexportError):
    """A file, a dataset or a network is invalid (exit code 3)."""

    exit_code = 3


class Stopped(LrexportError):
    """A signal stopped the command, and its work so far is saved (exit code 128 + the signal's number)."""

    def __init__(self, number: int, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.number, self.exit_code = number, 128 + number


class FailedElsewhere(LrexportError):
    """This process ended because another one failed; it has that one's exit code."""

    def __init__(self, process: int, exit_code: int, message: str) -> None:
        super().__init__(f"process {process} failed: {message}")
        self.exit_code = exit_code


class DeviceError(LrexportError):
    """The environment failed: disk space, permissions, a device, a library (exit code 4)."""

    exit_code = 4


def with_hint(error: UsageError | InputError, hint: str) -> UsageError | InputError:
    """The same error with ``hint`` appended to its own."""
    return type(error)(error.message, f"{error.hint} {hint}" if error.hint else hint)


def of_system(error: OSError) -> UsageError | DeviceError:
    """An OSError that nothing more specific handled: UsageError for an impossible file name, else DeviceError."""
    name = error.filename.decode(errors="surrogateescape") if isinstance(error.filename, bytes) else error.filename
    text = "" if name is None else str(name)
    shown = text if len(text) <= _MOST_NAME else f"{text[:_MOST_NAME]}…"
    reason = error.strerror or str(error) or type(error).__name__
    message = f"cannot use {shown}: {reason}" if shown else f"the system refused: {reason}"
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
        return UsageError(message, "Give another name.")
    return DeviceError(message, "For a traceback, run lrexport --debug …")


def signal_of(error: BaseException | None) -> signal.Signals | None:
    """The signal behind ``error``: Ctrl-C raises KeyboardInterrupt, SIGTERM SystemExit in lrexport's commands; else None."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM if terminated else None
