"""One process at a time in a run's folder."""

from __future__ import annotations

import errno
import os
import socket
from datetime import datetime, timezone
from pathlib import Path

from lrexport.artifacts import files
from lrexport.artifacts.run_files import HOLDER
from lrexport.errors import UsageError

_MOST_NOTE = 500  # bytes of what the holder says of itself


class RunLock:
    """Holds ``folder``, which must be there, inside a block, or until the process ends, however it ends.

    The lock is on the folder itself (flock), so that nothing is left by a process that was killed; who holds it stands in
    a file beside it. Raises UsageError with the holder where another process has it. Where the system or the file system
    knows no such locks there is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._note = folder, folder / HOLDER
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
        os.register_at_fork(after_in_child=self._forget)  # a child that outlives this process would hold it on
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        try:
            files.write_bytes(self._note, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        except BaseException:
            self._forget()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            try:
                self._note.unlink(missing_ok=True)
            finally:
                self._forget()

    def _holder(self) -> str:
        if not self._note.is_file():  # removed a moment ago, or nothing that may be read
            return "another process"
        try:
            with open(self._note, "rb") as stream:
                note = stream.read(_MOST_NOTE).decode(errors="backslashreplace").strip()
        except OSError:
            return "another process"
        return note.partition("\n")[0] or "another process"

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
