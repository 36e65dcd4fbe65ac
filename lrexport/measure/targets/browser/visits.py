"""A server with its page, and the browser that opens it: Chromium without a window, or one elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

from lrexport.errors import DeviceError
from lrexport.events import Noted, OnEvent
from lrexport.measure.targets.base import Tail, last_line, start, stop
from lrexport.measure.targets.browser import keeper, programs
from lrexport.measure.targets.browser.desk import Desk
from lrexport.measure.targets.browser.programs import Package
from lrexport.measure.targets.browser.server import PageServer

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ANY = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6}
_SOMEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # for documentation: nothing is sent there
_SECONDS_TO_OPEN = 90.0
_SILENT_SECONDS = 30.0
_FAREWELL_SECONDS = 10.0


class Visit:
    """A server, and a browser that opens its page."""

    most_seconds = _SECONDS_TO_OPEN
    most_silent_seconds = _SILENT_SECONDS

    def __init__(self, target: str, package: Package, host: str, port: int) -> None:
        self.target, self.desk = target, Desk()
        self.server = PageServer(host, port, package, self.desk)

    def look(self) -> None:
        """Raise DeviceError if the browser has ended."""

    def silent(self) -> DeviceError:
        raise NotImplementedError

    def close(self) -> None:
        self.server.close()


class Headless(Visit):
    """Chromium without a window, held by :mod:`lrexport.measure.targets.browser.keeper`."""

    def __init__(self, target: str, package: Package, program: str, provider: str) -> None:
        super().__init__(target, package, "127.0.0.1", 0)
        command = programs.command(program, provider, self.server.url("127.0.0.1"))
        try:
            self._process = start(
                [sys.executable, "-I", str(Path(keeper.__file__)), *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except BaseException:
            self.server.close()
            raise
        assert self._process.stderr is not None
        self._messages = Tail(self._process.stderr)

    def look(self) -> None:
        status = self._process.poll()
        if status is not None:
            ended = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise DeviceError(
                f"{self.target}: the browser ended with {ended}{self._said()}",
                "Start it by hand to see why, or name another: browser?path=PROGRAM.",
            )

    def silent(self) -> DeviceError:
        reason = "gives no sign of life: it crashed, or the machine ran out of memory"
        return DeviceError(f"{self.target}: the page in the browser {reason}{self._said()}")

    def _said(self) -> str:
        lines = self._messages.so_far().splitlines()
        fatal = [line for line in lines if ":FATAL:" in line]
        words = last_line("\n".join(fatal or [line for line in lines if "crashpad" not in line]))
        return f": {words}" if words else ""

    def close(self) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()  # the keeper ends the browser, and removes its folder
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_FAREWELL_SECONDS)
        finally:
            if self._process.poll() is None:
                stop(self._process)
            super().close()


class _Served(Visit):
    """A page for a browser elsewhere. It stays open until this process ends, for the measurements that follow."""

    def __init__(self, target: str, package: Package, host: str, port: int, seconds: float) -> None:
        super().__init__(target, package, host, port)
        self.most_seconds = self.most_silent_seconds = seconds
        self._url = self.server.url(_reachable(host))
        self._who = "this machine" if host in _LOOPBACK else "anyone who can reach this machine"

    def announce(self, on_event: OnEvent) -> None:
        """Say what to open, unless a page is there."""
        if self.desk.has_page():
            return
        text = (
            f"open {self._url} in the browser to measure, within {self.most_seconds:g} s. Keep the address secret: with it, "
            f"{self._who} can read the networks and post figures until this command ends. The connection is not encrypted"
        )
        on_event(Noted(text))

    def silent(self) -> DeviceError:
        return DeviceError(
            f"{self.target}: no page of {self._url} was heard for {self.most_seconds:g} s",
            "Open it, keep it in front, and check that the device reaches this machine; timeout=SECONDS waits longer.",
        )

    def close(self) -> None:
        """Nothing: the next measurement uses it again."""

    def end(self) -> None:
        super().close()


_open: dict[tuple[str, int], _Served] = {}


def served(target: str, package: Package, host: str, port: int, seconds: float, on_event: OnEvent) -> Visit:
    """The page at that address, opened once for all measurements of this process."""
    if (host, port) not in _open:
        visit = _open[host, port] = _Served(target, package, host, port, seconds)
        atexit.register(visit.end)
    _open[host, port].announce(on_event)
    return _open[host, port]


def _reachable(host: str) -> str:
    """The address under which others reach ``host``: that of the interface to the network, for all interfaces."""
    if host not in _ANY:
        return host
    try:
        with socket.socket(_ANY[host], socket.SOCK_DGRAM) as probe:
            probe.connect((_SOMEWHERE[_ANY[host]], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
