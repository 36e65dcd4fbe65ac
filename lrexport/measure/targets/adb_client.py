"""A phone behind the system's adb client: commands with limits of time and output, files, and errors with what to do.

Nothing of the user's reaches the phone's shell unquoted: files have generated names there, and arguments are quoted.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lrexport.errors import DeviceError
from lrexport.measure.targets.base import Tail, last_line, start, stop

# The client starts its server first if there is none, which looks for devices.
_SECONDS = 60.0
_PUSH_SECONDS, _PUSHED_BYTES_A_SECOND = 60.0, 500_000
_MOST_BYTES = 1 << 20
_FAREWELL_SECONDS = 2.0
_INSTALL = (
    "Install it: apt-get install adb (Debian, Ubuntu), brew install android-platform-tools (macOS), or Google's "
    "platform-tools; it must be on PATH."
)
_READY = "device"
# By a state of ``adb devices``: its meaning, and what to do.
_STATES = {
    "unauthorized": (
        "has not authorised this computer",
        "Unlock it and accept the question about USB debugging on its screen; then measure again.",
    ),
    "authorizing": ("is still authorising this computer", "Unlock it, and measure again."),
    "offline": ("is offline", "Reconnect it (adb reconnect), or switch USB debugging off and on."),
    "no permissions": (
        "cannot be opened by this user",
        "Install the udev rules for Android devices (Debian: android-sdk-platform-tools-common), and plug it in again.",
    ),
    "bootloader": ("is in its bootloader", "Start Android on it: fastboot reboot."),
}


class TooSlow(DeviceError):
    """A command took longer than its limit."""


@dataclass(frozen=True)
class Done:
    """How a command of the client ended: its exit status, its stdout, and the end of its stderr."""

    status: int
    out: str
    messages: str


def adb(arguments: Sequence[str], seconds: float = _SECONDS) -> Done:
    """Run the adb client. Raises TooSlow after ``seconds``, DeviceError if there is no client, or for endless output."""
    process = begin(arguments, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    head, messages = _Head(process.stdout, process), Tail(process.stderr)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise TooSlow(f"adb {arguments[0]} takes more than {seconds:g} s") from error
    finally:
        stop(process)
    out = head.text()
    if head.is_full:
        raise DeviceError(f"the device floods its output with more than {_MOST_BYTES:,} bytes", "Check the device by hand.")
    return Done(status, out, messages.text())


def begin(arguments: Sequence[str], stdin: int) -> subprocess.Popen[bytes]:
    """Start the adb client. Raises DeviceError if there is none."""
    client = shutil.which("adb")
    if client is None:
        raise DeviceError("adb is not installed on this machine", _INSTALL)
    try:
        return start([client, *arguments], stdin=stdin, stderr=subprocess.PIPE)
    except OSError as error:
        raise DeviceError(f"cannot run {client}: {error.strerror}", _INSTALL) from error


class _Head:
    """The first part of a process's stdout, read continuously; the process is ended if there is more."""

    def __init__(self, stream: IO[bytes], process: subprocess.Popen[bytes]) -> None:
        self.is_full, self._kept, self._process = False, b"", process
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        self._thread.join(_FAREWELL_SECONDS)
        return self._kept.decode(errors="replace")

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
                self._kept += chunk
                if len(self._kept) > _MOST_BYTES:
                    self.is_full, self._kept = True, b""
                    self._process.kill()
                    return


def devices() -> dict[str, str]:
    """The state of every device that adb knows, by serial. Raises DeviceError."""
    done = adb(["devices"])
    if done.status:
        raise DeviceError(f"adb fails: {last_line(done.messages) or 'no message'}", "Try by hand: adb devices")
    lines = [line.partition("\t") for line in done.out.splitlines()]
    return {serial: state.strip() for serial, tab, state in lines if tab and serial}


def connect(serial: str | None) -> Phone:
    """The phone with that serial, or with that of ``ANDROID_SERIAL``, as for adb itself; else the only one.

    Raises DeviceError if it is not there and ready.
    """
    known, serial = devices(), serial or os.environ.get("ANDROID_SERIAL")
    named = ", ".join(f"{name} ({state})" for name, state in known.items())
    if serial is None and len(known) > 1:
        raise DeviceError(f"several devices are connected: {named}", "Name one of them: adb://SERIAL?…")
    if not known:
        raise DeviceError(
            "no device is connected",
            "Connect one with USB debugging on (Settings, Developer options), or adb connect HOST:PORT. Check: adb devices",
        )
    chosen = next(iter(known)) if serial is None else serial
    if chosen not in known:
        raise DeviceError(f"device {chosen} is not connected; adb knows {named}", "Check: adb devices")
    check_state(chosen, known[chosen])
    return Phone(chosen)


def check_state(serial: str, state: str) -> None:
    """Raise DeviceError unless the device is ready, with what to do."""
    for known, (meaning, hint) in _STATES.items():
        if state.startswith(known):
            raise DeviceError(f"device {serial} {meaning}", hint)
    if state != _READY:
        raise DeviceError(f"device {serial} is in the state {state!r}: expected {_READY!r}", "Check: adb devices")


@dataclass(frozen=True)
class Phone:
    """A device that is connected. ``serial`` may be any text; it is only an argument of the client."""

    serial: str

    def shell(self, script: str, seconds: float = _SECONDS) -> Done:
        """Run a script in the device's shell. Raises TooSlow, or DeviceError if the device is lost."""
        done = adb(["-s", self.serial, "shell", script], seconds)
        if done.status and is_about_device(done.messages):
            raise self.lost(done.messages)
        return done

    def push(self, source: Path, to: str) -> None:
        """Copy a file to the path ``to``. Raises DeviceError."""
        size = source.stat().st_size
        limit = _PUSH_SECONDS + size / _PUSHED_BYTES_A_SECOND
        done = adb(["-s", self.serial, "push", str(source.resolve()), to], limit)
        if done.status == 0:
            return
        words = last_line(done.messages) or last_line(done.out)
        if "No space left" in done.messages + done.out:
            raise self.full(size)
        if is_about_device(done.messages):
            raise self.lost(done.messages)
        raise DeviceError(f"cannot send a file to device {self.serial}: {words or f'exit status {done.status}'}")

    def full(self, size: int, free: int | None = None) -> DeviceError:
        there = "" if free is None else f", {free:,} are free"
        message = f"device {self.serial} has no space left for {size:,} bytes in /data/local/tmp{there}"
        return DeviceError(message, "Make room on the device.")

    def lost(self, messages: str) -> DeviceError:
        """Why the device does not answer any more."""
        try:
            state = devices().get(self.serial)
            if state is not None:
                check_state(self.serial, state)
        except DeviceError as error:
            return DeviceError(f"the device was lost: {error.message}", error.hint)
        words = last_line(messages)
        gone = "it is not connected any more" if state is None else "the connection was lost"
        message = f"device {self.serial} was lost: {gone}{f' ({words})' if words else ''}"
        return DeviceError(message, "Connect it again, and measure again.")


def is_about_device(messages: str) -> bool:
    """Whether the client's own message says that it has no connection to the device."""
    lines = [line for line in messages.splitlines() if re.match(r"(adb: )?error: ", line)]
    known = r"not found|closed|offline|unauthorized|protocol fault|no devices|[Cc]onnection reset|more than one|still"
    return any(re.search(known, line) for line in lines)
