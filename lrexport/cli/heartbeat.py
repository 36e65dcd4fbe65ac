"""Lines about long work where there is no terminal: no ten seconds are silent."""

from __future__ import annotations

import threading
import time

from lrexport.cli.output import note
from lrexport.units import format_duration

SILENT_SECONDS = 8.0


class Heartbeat:
    """Prints what is being done, and for how long, whenever nothing was printed for ``seconds``.

    After :meth:`start` it begins with the first :meth:`doing`: of several processes only the one that shows events does so.
    """

    def __init__(self, seconds: float = SILENT_SECONDS) -> None:
        self._seconds = seconds
        self._stopped = threading.Event()
        self._stopped.set()
        self._thread: threading.Thread | None = None
        self._what, self._detail = "", ""
        self._began = self._spoke = time.monotonic()

    def start(self) -> None:
        """From now on lines may be printed."""
        self._stopped.clear()

    def doing(self, what: str, detail: str = "") -> None:
        """From now on ``what`` is being done; ``detail`` says how far it is."""
        if what != self._what:
            self._began = time.monotonic()
        self._what, self._detail = what, detail
        if self._thread is None and not self._stopped.is_set():
            self._spoke = time.monotonic()
            self._thread = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
            self._thread.start()

    def spoke(self) -> None:
        """Something else was printed."""
        self._spoke = time.monotonic()

    def stop(self) -> None:
        """No more lines."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _beat(self) -> None:
        while not self._stopped.wait(max(0.05, self._spoke + self._seconds - time.monotonic())):
            now = time.monotonic()
            if now - self._spoke < self._seconds:
                continue
            detail = f": {self._detail}" if self._detail else ""
            note(f"{self._what}{detail}, {format_duration(now - self._began)} so far")
            self._spoke = now
