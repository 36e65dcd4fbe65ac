"""Child processes for foreign files, with a time limit; killed at once if the command is stopped."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from lrexport.artifacts import fork_server
from lrexport.errors import LrexportError

# Children start in the folder of this package, so they find the package, and modules in the user's current folder do not
# shadow Python's.
_HOME = Path(__file__).parents[2]
CAN_FORK = hasattr(os, "fork") and hasattr(socket, "recv_fds")  # not on Windows
_BLOCK = 1 << 16

_lock = threading.Lock()
_running: set[_Child] = set()
_pools_ending = 0


class _Ending(LrexportError):
    """The command is being stopped, so no further child is started."""


class _Child(Protocol):
    """A child that answers, and can be killed by another thread."""

    def answer(self, seconds: float) -> tuple[int | None, str]:
        """Its exit status, None if it never ran, and what it printed. Raises TimeoutError."""

    def kill(self) -> None: ...


class _Forked:
    """A child of the fork server."""

    def __init__(self, server: _Server, command: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):  # a server that has just ended: the answer is empty
            server.give(theirs)
            self._socket.sendall(json.dumps(list(command)).encode() + b"\n")

    def answer(self, seconds: float) -> tuple[int | None, str]:
        end = time.monotonic() + seconds
        received = bytearray()
        with self._socket, contextlib.suppress(ConnectionResetError):  # killed before it read its request
            while True:
                self._socket.settimeout(max(end - time.monotonic(), 1e-3))
                block = self._socket.recv(_BLOCK)
                if not block:
                    break
                received += block
        printed, _, status = bytes(received).decode("utf-8", "replace").rstrip("\n").rpartition("\n")
        return (int(status), printed) if status else (None, "")

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)


class _Started:
    """A child that Python starts, where it cannot be forked."""

    def __init__(self, command: Sequence[str]) -> None:
        whole = [sys.executable, "-m", *command]
        self._process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=_HOME, text=True)

    def answer(self, seconds: float) -> tuple[int | None, str]:
        try:
            out, _ = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        finally:
            self._process.kill()
            self._process.wait()
        return self._process.returncode, out

    def kill(self) -> None:
        self._process.kill()


class _Server:
    """The fork server of this process, started when it is first needed."""

    def __init__(self, module: str) -> None:
        self._owner = os.getpid()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", fork_server.__name__, "onnx", module]
        quiet = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # threads do not survive a fork
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=_HOME, env=quiet
            )

    @property
    def is_usable(self) -> bool:
        """Whether it still runs, and belongs to this process, not to one that this was forked from."""
        return self._owner == os.getpid() and self._process.poll() is None

    def give(self, child: socket.socket) -> None:
        socket.send_fds(self._socket, [b"\n"], [child.fileno()])

    def end(self) -> None:
        self._socket.close()
        if self._owner == os.getpid():
            self._process.wait()


_server: _Server | None = None


def run_child(module: str, arguments: Sequence[str], seconds: float) -> tuple[int, str]:
    """Call ``main`` of ``module`` in a child: its exit status, negative for a signal, and stdout.

    It ends with this process. Raises TimeoutError after ``seconds``.
    """
    command = [module, *arguments]
    if not CAN_FORK:
        status, out = _answer(partial(_Started, command), seconds)
        return status or 0, out
    for _ in range(2):  # a server that had just ended, having had nothing to do, or was killed is started again
        server = _usable_server(module)
        status, out = _answer(partial(_Forked, server, command), seconds)
        if status is not None:
            return status, out
        _retire(server)
    return 1, ""


def _answer(start: Callable[[], _Child], seconds: float) -> tuple[int | None, str]:
    with _lock:
        if _pools_ending:
            raise _Ending("stopped")
        child = start()
        _running.add(child)
    try:
        return child.answer(seconds)
    finally:
        with _lock:
            _running.discard(child)


def _usable_server(module: str) -> _Server:
    global _server
    with _lock:
        if _server is None or not _server.is_usable:
            _server = _Server(module)
        return _server


def _retire(server: _Server) -> None:
    """Start another server for the next child, unless another thread has done so."""
    global _server
    with _lock:
        if _server is server:
            server.end()
            _server = None


@atexit.register
def _retire_last() -> None:
    if _server is not None:
        _retire(_server)


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
            for child in _running:
                child.kill()
        pool.shutdown(cancel_futures=True)
        with _lock:
            _pools_ending -= 1
        raise
    pool.shutdown()
