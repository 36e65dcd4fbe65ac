"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

from lrexport.artifacts import mark, run_folder
from lrexport.artifacts.plain_files import open_input
from lrexport.artifacts.run_files import HOLDER
from lrexport.errors import InputError, UsageError

_MOST_NOTE = 500  # bytes of the holder's note


class RunLock:
    """Locks ``folder``, which must exist, until the end of a block or of the process.

    The lock is on the folder itself (flock), so a killed process leaves none. A file in the folder names the holder. Raises
    UsageError with the holder if another process has the lock. On systems without flock nothing is locked.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: tuple[os.stat_result | None, frozenset[str]] = (None, frozenset())
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        folder = self._folder
        try:
            import fcntl
        except ImportError:  # Windows
            return self
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UsageError(
                    f"{folder} is in use by {self._holder()}", "Wait for it, or choose another folder."
                ) from error
            return self
        self._descriptor = descriptor
        os.register_at_fork(after_in_child=self._forget)  # a child that outlives this process would keep the lock
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            mark.tidy(folder)
            self._before = mark.before(folder)
            note = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
            run_folder.write_bytes(folder, HOLDER, note.encode())
        except BaseException:
            self._forget()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            try:
                run_folder.remove(self._folder, HOLDER)
                mark.settle(self._folder, *self._before)
            finally:
                self._forget()

    def _holder(self) -> str:
        try:
            with open_input(run_folder.plain(self._folder, HOLDER)) as stream:
                note = stream.read(_MOST_NOTE).decode(errors="backslashreplace").strip()
        except (OSError, InputError):
            return "another process"
        return note.partition("\n")[0] or "another process"

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def remove_run(folder: Path) -> None:
    """Remove the run in ``folder``, which must not be in use: only what lrexport made there."""
    if folder.is_dir():
        with RunLock(folder):
            run_folder.clear(folder)
        with suppress(OSError):  # it contains foreign files
            folder.rmdir()
