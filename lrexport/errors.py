"""The one error family: a message, a hint and an exit code, never a traceback for a user's mistake."""

from __future__ import annotations

import errno
import signal

_MOST_NAME = 200  # characters of a name that is shown


class LrexportError(Exception):
    """Base of everything lrexport raises on purpose.

    ``message`` says what was found and what was wanted, ``hint`` what to do next.
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
    """A file, a dataset or a network is not what it has to be (exit code 3)."""

    exit_code = 3


class Stopped(LrexportError):
    """A signal asked for the end, and what was done is saved (exit code 128 + the signal's number)."""

    def __init__(self, number: int, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.number, self.exit_code = number, 128 + number


class FailedElsewhere(LrexportError):
    """Another of several processes failed, which is what ended this one, too (that one's exit code)."""

    def __init__(self, process: int, exit_code: int, message: str) -> None:
        super().__init__(f"process {process} failed: {message}")
        self.exit_code = exit_code


class DeviceError(LrexportError):
    """The environment failed: no space, no permission, no device, no library (exit code 4)."""

    exit_code = 4


def with_hint(error: UsageError | InputError, hint: str) -> UsageError | InputError:
    """The same error with one more hint behind its own."""
    return type(error)(error.message, f"{error.hint} {hint}" if error.hint else hint)


def of_system(error: OSError) -> UsageError | DeviceError:
    """What the system refused, wherever no place says more of it: a name that cannot be, or the environment."""
    name = error.filename.decode(errors="surrogateescape") if isinstance(error.filename, bytes) else error.filename
    text = "" if name is None else str(name)
    shown = text if len(text) <= _MOST_NAME else f"{text[:_MOST_NAME]}…"
    reason = error.strerror or str(error) or type(error).__name__
    message = f"cannot use {shown}: {reason}" if shown else f"the system refused: {reason}"
    if error.errno in (errno.ENAMETOOLONG, errno.EILSEQ):
        return UsageError(message, "Give another name.")
    return DeviceError(message, "For a traceback, run lrexport --debug …")


def signal_of(error: BaseException | None) -> signal.Signals | None:
    """Which signal raised it, as Python does for Ctrl-C and lrexport's commands do for SIGTERM; None for anything else."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    terminated = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return signal.SIGTERM if terminated else None
