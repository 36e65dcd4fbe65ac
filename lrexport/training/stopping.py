"""SIGTERM and Ctrl-C: training first finishes and saves its step; a second signal stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from lrexport.errors import Stopped, signal_of

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass
class StopRequest:
    """``number`` is the signal that was received, or 0."""

    number: int = 0


@contextmanager
def heeding_signals() -> Iterator[StopRequest]:
    """Inside the block, SIGTERM and Ctrl-C only set a StopRequest; outside of the main thread handlers are not changed.

    At the end of the block a received signal is raised again.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        if not request.number:
            request.number = number
            return
        for each, handler in before.items():  # the second signal acts at once, by the previous handlers
            signal.signal(each, handler)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        else:
            raise SystemExit(128 + number)

    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:  # a shell's background jobs ignore Ctrl-C
            signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if request.number:
        signal.raise_signal(request.number)


@contextmanager
def stopping_with_hint(can_resume: Callable[[], bool]) -> Iterator[None]:
    """An interrupt that ends the block becomes Stopped, with a hint on --resume if ``can_resume``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as interrupt:
        number = signal_of(interrupt)
        if number is None:
            raise
        hint = "The same command with --resume continues from the last checkpoint." if can_resume() else None
        raise Stopped(number, "stopped", hint) from interrupt
