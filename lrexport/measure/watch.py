"""Ends a measurement that takes too long or too much memory. Self-contained like the runner, which brings it to devices."""

# Devices may have an older Python than the rest of lrexport asks for.
from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence

from lrexport.confinement import confine, memory_here

# What the runtime may need beyond four times the file: an eighth of the machine, and at least so much.
_LEAST_MEMORY = 2 << 30
_SHARE_OF_MEMORY = 8
_COPIES = 4
# A file of some gigabytes takes its time from a disk, and for its weights to be laid out for the kernels.
_LOADED_BYTES_A_SECOND = 50_000_000
_SECONDS_BETWEEN_LOOKS = 0.25


class Watch:
    """A thread that ends the process where a stage takes more than its time, while code of the runtime's is running.

    ``seconds`` are for loading, for the first run and for every other; None is without end. ``say`` is given the model's
    name and the reason, just before.
    """

    def __init__(self, seconds: float | None, say: Callable[[str, str], None]) -> None:
        self.seconds, self._say = seconds, say
        self._deadline, self._model, self._stage, self._allowed = math.inf, "", "", math.inf
        if seconds is not None:
            threading.Thread(target=self._look, daemon=True).start()

    def begin(self, model: str, stage: str, times: float = 1, more: float = 0) -> None:
        """A stage begins, which may take ``times`` as long as a run and ``more`` seconds; the one before is over."""
        if self.seconds is not None:
            self._model, self._stage, self._allowed = model, stage, self.seconds * times + more
            self._deadline = time.monotonic() + self._allowed

    def begin_loading(self, model: str, file: str) -> None:
        """:meth:`begin` for loading ``file``."""
        self.begin(model, "loading", more=_size(file) / _LOADED_BYTES_A_SECOND)

    def end(self) -> None:
        """Nothing that is limited goes on now."""
        self._deadline = math.inf

    def _look(self) -> None:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            if time.monotonic() > self._deadline:
                self._say(self._model, f"{self._stage} takes more than {self._allowed:g} s")
                os._exit(1)


def confine_to(memory: int | None, files: Sequence[str]) -> int | None:
    """Let this process allocate ``memory`` bytes from now on, None by default: what the machine's share and ``files`` make.

    Returns the bytes, None where the machine does not say how many it has.
    """
    if memory is None:
        share = memory_here()
        if share is None:
            return None
        memory = max(_LEAST_MEMORY, share // _SHARE_OF_MEMORY) + _COPIES * sum(map(_size, files))
    confine(memory=memory)
    return memory


def is_about_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python's words, in C++'s or in those of ONNX Runtime."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in ("bad_alloc", "bad allocation", "allocate"))


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # whoever opens it says so
        return 0
