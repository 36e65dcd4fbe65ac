"""Ends a measurement that takes too much time or memory. Self-contained: it is sent to devices with the runner."""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence

from lrexport.confinement import confine, memory_here

# Memory for the runtime beyond four times the file: an eighth of the machine's, and at least this.
_LEAST_MEMORY = 2 << 30
_SHARE_OF_MEMORY = 8
_COPIES = 4
# Loading takes longer for files of gigabytes: reading the disk, and arranging weights for the kernels.
_LOADED_BYTES_A_SECOND = 50_000_000
_SECONDS_BETWEEN_LOOKS = 0.25


class Watch:
    """A thread that ends the process if a stage takes too long, even inside the runtime's code.

    ``seconds`` is the limit for loading, for the first run and for every other run; None: no limit. ``say`` gets the model's
    name and the reason first.
    """

    def __init__(self, seconds: float | None, say: Callable[[str, str], None]) -> None:
        self.seconds, self._say = seconds, say
        self._deadline, self._model, self._stage, self._allowed = math.inf, "", "", math.inf
        if seconds is not None:
            threading.Thread(target=self._look, daemon=True).start()

    def begin(self, model: str, stage: str, times: float = 1, more: float = 0) -> None:
        """End the previous stage and begin one that may take ``times`` the limit plus ``more`` seconds."""
        if self.seconds is not None:
            self._model, self._stage, self._allowed = model, stage, self.seconds * times + more
            self._deadline = time.monotonic() + self._allowed

    def begin_loading(self, model: str, file: str) -> None:
        """:meth:`begin` for loading ``file``."""
        self.begin(model, "loading", more=_size(file) / _LOADED_BYTES_A_SECOND)

    def end(self) -> None:
        """End the stage; nothing is limited now."""
        self._deadline = math.inf

    def _look(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            if time.monotonic() > self._deadline:
                self._say(self._model, f"{self._stage} takes more than {self._allowed:g} s")
                os._exit(1)


def confine_to(memory: int | None, files: Sequence[str]) -> int | None:
    """Limit this process's memory to ``memory`` bytes; None: a default from the machine's memory and ``files``.

    Returns the bytes; None if the machine's memory is unknown.
    """
    if memory is None:
        share = memory_here()
        if share is None:
            return None
        memory = max(_LEAST_MEMORY, share // _SHARE_OF_MEMORY) + _COPIES * sum(map(_size, files))
    confine(memory=memory)
    return memory


def is_about_memory(error: BaseException) -> bool:
    """Whether an allocation failed, by the messages of Python, C++ and ONNX Runtime."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in ("bad_alloc", "bad allocation", "allocate"))


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # opening it reports the error
        return 0
