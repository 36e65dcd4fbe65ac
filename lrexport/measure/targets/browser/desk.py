"""Between the server's threads and the process that measures: which page works, on what, and what it has posted."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError

JsonObject = dict[str, Any]
# Outputs by name: type, shape and bytes.
Outputs = Mapping[str, tuple[str, list[int], bytes]]
_POLL_SECONDS = 15.0  # a page asks again after that
_AWAY_SECONDS = 30.0  # a page that was silent that long may be replaced by another
_MOMENT = 0.2
_MOST_WAITING = 8  # posts
_PATIENCE_SECONDS = 30.0


class Busy(Exception):
    """Another page works here, or the posts come faster than they are read."""


@dataclass(frozen=True)
class Subject:
    """A network for the page: its ONNX file, its inputs one after the other, and the most bytes that its outputs may have.

    ``check`` raises DeviceError for outputs that are not ONNX Runtime's.
    """

    path: Path
    inputs: bytes
    most_bytes: int
    check: Callable[[Outputs], None]


@dataclass(frozen=True)
class Job:
    """What the page is asked to do, and its networks by number."""

    options: JsonObject
    subjects: list[Subject]


class Desk:
    """One page at a time, and one job at a time for it. All methods may be called by any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._posts: queue.Queue[JsonObject | DeviceError] = queue.Queue(_MOST_WAITING)
        self._page: str | None = None
        self._about: JsonObject | None = None
        self._heard = 0.0
        self._job: Job | None = None
        self._taken = False

    def has_page(self) -> bool:
        """Whether a page works here, and was heard not long ago."""
        return self._page is not None and time.monotonic() - self._heard <= _AWAY_SECONDS

    def page(self, seconds: float, look: Callable[[], None]) -> JsonObject:
        """What the page that works here says about its browser, once there is one. ``look`` is called often, and may raise.

        Raises TimeoutError if none comes within ``seconds``.
        """
        until = time.monotonic() + seconds
        with self._changed:
            while self._about is None or not self.has_page():
                look()
                if time.monotonic() > until:
                    raise TimeoutError
                self._changed.wait(_MOMENT)
            return self._about

    def posts(self, job: Job, seconds: float, look: Callable[[], None]) -> Iterator[JsonObject]:
        """Give the page a job; what it posts until it has finished. ``look`` as in :meth:`page`.

        Raises TimeoutError if it is silent for ``seconds``, DeviceError for what was found wrong meanwhile.
        """
        with self._changed:
            self._job, self._taken, self._heard = job, False, time.monotonic()
            self._changed.notify_all()
        try:
            while True:
                look()
                try:
                    post = self._posts.get(timeout=_MOMENT)
                except queue.Empty:
                    if time.monotonic() - self._heard > seconds:
                        raise TimeoutError from None
                    continue
                if isinstance(post, DeviceError):
                    raise post
                if "finished" in post:
                    return
                yield post
        finally:
            with self._changed:
                self._job = None
            with contextlib.suppress(queue.Empty):
                while True:
                    self._posts.get_nowait()

    def ask(self, page: str, about: JsonObject) -> JsonObject | None:
        """The job for a page that has none, or None after a while without one. Raises Busy."""
        with self._changed:
            if self._page != page and self.has_page():
                raise Busy("another page is measuring here")
            if self._job is not None and self._taken:
                self._job = None
                self._put(DeviceError("the page was reloaded, or gave up, during the measurement"))
            self._page, self._about, self._heard = page, about, time.monotonic()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._job is not None and not self._taken, _POLL_SECONDS)
            self._heard = time.monotonic()
            if self._job is None or self._taken or self._page != page:
                return None
            self._taken = True
            return self._job.options

    def hear(self, page: str) -> None:
        """A sign of life. Raises Busy if another page works here."""
        with self._changed:
            if page != self._page:
                raise Busy("another page is measuring here")
            self._heard = time.monotonic()

    def subject(self, number: int) -> Subject | None:
        """The network of that number in the job; None if there is none."""
        job = self._job
        return job.subjects[number] if job is not None and number < len(job.subjects) else None

    def post(self, value: JsonObject | DeviceError) -> None:
        """Hand on what the page posts, or what is wrong with it. Raises Busy if nobody reads it."""
        if self._job is not None:
            self._put(value)

    def _put(self, value: JsonObject | DeviceError) -> None:
        try:
            self._posts.put(value, timeout=_PATIENCE_SECONDS)
        except queue.Full:
            raise Busy("nobody reads what is posted") from None
