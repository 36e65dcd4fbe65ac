"""SIGTERM and Ctrl-C: in training the step is finished and saved, a second one ends it at once, as one does elsewhere."""

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
    """``number`` is the signal that asked for the end, 0 while none did."""

    number: int = 0


@contextmanager
def heeding_signals() -> Iterator[StopRequest]:
    """Take SIGTERM and Ctrl-C as requests inside the block; outside of the main thread they are left to their handlers.

    One that came too late for the block to heed it is sent again at its end.
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
        for each, handler in before.items():  # asked twice: what these did before, at once
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
def saying_how_to_go_on(can_go_on: Callable[[], bool]) -> Iterator[None]:
    """An interrupt that ends the block becomes Stopped, with what ``can_go_on`` says then of its work."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as interrupt:
        number = signal_of(interrupt)
        if number is None:
            raise
        hint = "The same command with --resume goes on from what was saved last." if can_go_on() else None
        raise Stopped(number, "stopped", hint) from interrupt
