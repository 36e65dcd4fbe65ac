"""The folder of one measurement on a phone, and what runs in it. Nothing of it stays behind.

A second session of the phone's shell waits for the end of its input: if this process dies or the cable is pulled, the phone
itself ends the program and removes the folder.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from lrexport.errors import DeviceError, LrexportError, Stopped, UsageError, signal_of
from lrexport.measure.targets.adb_client import Phone, TooSlow, begin
from lrexport.measure.targets.base import last_line, stop

_PARENT = "/data/local/tmp"
_ROOM = 1.05  # of free space, for what the program writes
_SECONDS = 30.0
_OUTPUT_BYTES, _MOST_BLOCKS = 200_000, 16_384  # of 512 bytes, for a file that the program writes
_MARK = "lrexport-status"
_NOT_RUN = (126, 127)
_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True)
class Invocation:
    """The program with ``arguments`` behind the words of ``pinning``.

    ``results`` is a file that it writes, and ``log_tag`` the tag of its messages in Android's log; both follow its output.
    """

    pinning: Sequence[str]
    arguments: Sequence[str]
    results: str | None = None
    log_tag: str | None = None


@dataclass(frozen=True)
class Ended:
    """What a program printed, and why it failed: on this file, or that it cannot be run at all, with what to do."""

    output: str
    failure: str | None = None
    refusal: str | None = None
    hint: str | None = None


class DeviceFolder:
    """A new folder on the phone, a context manager."""

    def __init__(self, phone: Phone) -> None:
        self._phone, self._has_libraries = phone, False
        self.path = f"{_PARENT}/lrexport-{secrets.token_hex(8)}"
        # Every process that works in the folder, whichever started it.
        ours = f"s|.*/proc/\\([0-9]*\\)/cwd -> {self.path}\\( (deleted)\\)*$|\\1|p"
        self._end = f"kill -9 $(ls -l /proc/[0-9]*/cwd 2>/dev/null | sed -n '{ours}') 2>/dev/null"
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DeviceFolder:
        done = self._phone.shell(f"mkdir -m 700 {self.path}", _SECONDS)
        if done.status:
            words = last_line(done.messages) or last_line(done.out)
            raise DeviceError(f"cannot write to {_PARENT} on device {self._phone.serial}: {words}", "Check: adb shell df")
        try:
            watch = f"while read -r line; do :; done; {self._end}; rm -rf {self.path}"
            self._guard = begin(["-s", self._phone.serial, "shell", watch], stdin=subprocess.PIPE)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._remove()
        except DeviceError as left:
            removal = f"adb -s {shlex.quote(self._phone.serial)} shell rm -rf {self.path}"
            hint = f"When it is back, check that nothing is left: {removal}"
            number = signal_of(error)
            if number is not None:
                raise Stopped(number, f"stopped; {left.message}", hint) from error
            if isinstance(error, LrexportError):
                error.hint = f"{error.hint} {hint}" if error.hint else hint
            elif error is None:
                raise DeviceError(left.message, hint) from left
        finally:
            self._release()

    def check_room(self, size: int, free: int | None) -> None:
        """Raise DeviceError if ``size`` bytes do not fit."""
        if free is not None and size * _ROOM > free:
            raise self._phone.full(size, free)

    def send_program(self, path: Path, libraries: Path | None) -> None:
        """Send the program, and the shared libraries in a folder. Raises DeviceError, UsageError."""
        self._phone.push(path, f"{self.path}/program")
        if libraries is not None:
            found = sorted(libraries.glob("*.so*"))
            if not found:
                raise UsageError(f"{libraries} has no shared libraries: expected files such as libomp.so")
            self._shell("mkdir libraries")
            for number, library in enumerate(found):
                # Names that the dynamic linker looks for; a strange one goes under a number and through a quoted rename.
                self._phone.push(library, f"{self.path}/libraries/{number}")
                self._shell(f"mv libraries/{number} libraries/{shlex.quote(library.name)}")
            self._has_libraries = True
        self._shell("chmod 700 program")

    def send(self, path: Path, place: str) -> None:
        """Send a file to the generated path ``place`` in the folder."""
        self._shell(f"mkdir -p {shlex.quote(place.rpartition('/')[0] or '.')}")
        self._phone.push(path, f"{self.path}/{place}")

    def remove(self, places: Iterable[str]) -> None:
        self._shell(f"rm -rf {' '.join(shlex.quote(place) for place in places)}")

    def invoke(self, invocation: Invocation, seconds: float) -> Ended | None:
        """Run the program once; None if it takes longer. Raises DeviceError if the phone is lost."""
        try:
            done = self._phone.shell(self._script(invocation), seconds)
        except TooSlow:
            self._phone.shell(self._end, _SECONDS)
            return None
        body, mark, status = done.out.rpartition(_MARK)
        if not mark or not status.strip().isdigit():
            raise self._phone.lost(done.messages)
        return _ended(int(status), body)

    def _script(self, invocation: Invocation) -> str:
        command = shlex.join([*invocation.pinning, "./program", *invocation.arguments])
        libraries = f"export LD_LIBRARY_PATH={self.path}/libraries; " if self._has_libraries else ""
        after = [f"head -c {_OUTPUT_BYTES} output"]
        files = "output"
        if invocation.results is not None:
            after.append(f"head -c {_OUTPUT_BYTES} {invocation.results} 2>/dev/null")
            files += f" {invocation.results}"
        if invocation.log_tag is not None:
            log = f"logcat -d -v raw --pid=$(cat pid) -s {invocation.log_tag} 2>/dev/null"
            after.append(f"{log} | head -c {_OUTPUT_BYTES}")
        # The shell that writes its number becomes the program. Its output is bounded by what a file may have.
        inner = f"echo $$ >pid; {libraries}ulimit -f {_MOST_BLOCKS}; exec {command}"
        end = f"printf '\\n{_MARK} %s\\n' $status"
        run = f"rm -f {files}; (sh -c {shlex.quote(inner)}) >output 2>&1; status=$?"
        return f"cd {self.path} && {{ {run}; {'; echo; '.join(after)}; {end}; }}"

    def _shell(self, script: str) -> None:
        """Run a script in the folder. Raises DeviceError."""
        done = self._phone.shell(f"cd {self.path} && {{ {script}; }}", _SECONDS)
        if done.status:
            words = last_line(done.messages) or last_line(done.out) or f"exit status {done.status}"
            raise DeviceError(f"device {self._phone.serial} fails in {self.path}: {words}", "Check the device by hand.")

    def _remove(self) -> None:
        """End what runs in the folder and remove it. Raises DeviceError if something may be left."""
        script = f"{self._end}; rm -rf {self.path}; [ ! -e {self.path} ]"
        try:
            done = self._phone.shell(script, _SECONDS)
        except DeviceError as error:
            raise DeviceError(f"{self.path} may be left on device {self._phone.serial}") from error
        if done.status:
            raise DeviceError(f"{self.path} is left on device {self._phone.serial}: {last_line(done.messages)}")

    def _release(self) -> None:
        """End the session that waits: its folder is gone, or it removes it now."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        with contextlib.suppress(OSError):
            self._guard.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(_FAREWELL_SECONDS)
        stop(self._guard)
        for stream in (self._guard.stdout, self._guard.stderr):
            if stream is not None:
                stream.close()


def _ended(status: int, output: str) -> Ended:
    words = last_line(output)
    shown = f": {words}" if words else ""
    if status == 0:
        return Ended(output)
    if status in _NOT_RUN or "CANNOT LINK EXECUTABLE" in output:
        return Ended(
            output,
            refusal=words or f"exit status {status}",
            hint="It must be a program for Android and this phone's processor (NDK), with its libraries: libraries=FOLDER.",
        )
    if status > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(status - 128).name
            if name == "SIGXFSZ":
                return Ended(output, failure="floods its output")
            return Ended(output, failure=f"crashes on it ({name}){shown}")
    return Ended(output, failure=f"fails on it with exit status {status}{shown}")
