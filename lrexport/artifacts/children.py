"""Child processes that threads wait for, with a time limit; killed at once if the command is stopped."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from lrexport.errors import LrexportError

_lock = threading.Lock()
_running: set[subprocess.Popen[str]] = set()
_pools_ending = 0


class _Ending(LrexportError):
    """The command is being stopped, so no further child is started."""


def run_child(command: Sequence[str], seconds: float, folder: Path) -> tuple[int, str]:
    """Run a process in ``folder``: its exit status and stdout. Raises TimeoutExpired after ``seconds``."""
    with _lock:
        if _pools_ending:
            raise _Ending("stopped")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=folder, text=True)
        _running.add(process)
    try:
        out, _ = process.communicate(timeout=seconds)
        return process.returncode, out
    finally:
        process.kill()
        process.wait()
        with _lock:
            _running.discard(process)


@contextmanager
def threads_with_children(most: int | None) -> Iterator[ThreadPoolExecutor]:
    """Threads that call :func:`run_child`. If a signal ends the block, all running children are killed.

    After an error running children may finish, within their time limit, because they can belong to another block.
    """
    global _pools_ending
    pool = ThreadPoolExecutor(most)
    try:
        yield pool
    except Exception:
        pool.shutdown(cancel_futures=True)
        raise
    except BaseException:
        with _lock:
            _pools_ending += 1
            for process in _running:
                process.kill()
        pool.shutdown(cancel_futures=True)
        with _lock:
            _pools_ending -= 1
        raise
    pool.shutdown()
