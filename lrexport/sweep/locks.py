"""Processes that work in a sweep's folder: locks that the system releases when their process ends, however it ends."""

from __future__ import annotations

import platform
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import LOCKS
from lrexport.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from lrexport.sweep.storage import DatabaseLock

_ID = re.compile(r"[0-9a-f]{12}")
_PATIENCE_SECONDS = 120.0  # to wait for the lock for claims, which is held for milliseconds


class Process:
    """This process among those of a sweep; it holds ``claim`` while it takes a trial or writes sweep.json.

    With ``database`` it also holds that lock, so that processes with other folders wait. Every process locks its own file,
    so that others on the same machine see at once when it has died.
    """

    def __init__(self, folder: Path, database: DatabaseLock | None = None) -> None:
        from filelock import FileLock

        self._folder = run_folder.make_folder(folder, LOCKS)
        self.id, self.host = uuid.uuid4().hex[:12], platform.node()
        self.place = f"{self.host}:{folder.resolve()}"  # only processes with the same place can see whether it is alive
        self._own = FileLock(self._path(self.id))
        self._database = database
        self.claim: BaseFileLock = FileLock(_lock_in(self._folder, "claim"), timeout=_PATIENCE_SECONDS)

    def __enter__(self) -> Process:
        try:
            self._own.acquire(timeout=0)
        except OSError as error:
            raise DeviceError(f"cannot lock a file in {self._folder}: {error}", "Choose another folder with -o.") from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._database is not None:
            self._database.release()
        if self.claim.is_locked:
            self.claim.release(force=True)
        self._own.release(force=True)
        self._path(self.id).unlink(missing_ok=True)

    def take_claim(self) -> None:
        """Wait for ``claim``. Raises DeviceError if its holder hangs."""
        from filelock import Timeout

        try:
            self.claim.acquire()
        except Timeout as error:
            raise DeviceError(
                f"another process has held {self.claim.lock_file} for {_PATIENCE_SECONDS:.0f} s",
                "End the process of this sweep that hangs.",
            ) from error
        if self._database is not None:
            try:
                self._database.acquire()
            except BaseException:
                self.claim.release()
                raise

    def release_claim(self) -> None:
        """Let other processes take trials."""
        if self._database is not None:
            self._database.release()
        if self.claim.is_locked:
            self.claim.release()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the claim in a with statement."""
        self.take_claim()
        try:
            yield
        finally:
            self.release_claim()

    def is_dead(self, process: str, place: str) -> bool:
        """Whether a process is known to be dead or idle; False for other machines and folders, of which nothing is known."""
        from filelock import FileLock, Timeout

        if place != self.place:
            return False
        if not _ID.fullmatch(process):  # not an id of lrexport: it could be a path
            return True
        path = self._path(process)
        # This process is between trials; a process without a file has ended. Locking a link would empty its destination.
        if process == self.id or path.is_symlink() or not path.exists():
            return True
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        return True

    def _path(self, process: str) -> Path:
        return self._folder / f"process-{process}.lock"


@contextmanager
def exclusively(folder: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time do the work ``name``; ``on_wait`` is called if another one is doing it."""
    from filelock import FileLock, Timeout

    lock = FileLock(_lock_in(run_folder.make_folder(folder, LOCKS), name))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock_in(folder: Path, name: str) -> Path:
    """The file of a lock. Raises UsageError if it is not empty: locking would empty it."""
    path = folder / f"{name}.lock"
    if path.is_symlink() or (path.exists() and (not path.is_file() or path.stat().st_size)):
        raise UsageError(f"{path} is not a lock file of lrexport: it is not empty", "It was not changed. Move it away.")
    return path
