"""The storage of a sweep's study: SQLite in its folder, or any other of Optuna's; and the lock of a shared database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.artifacts.plain_files import destination
from lrexport.artifacts.run_files import DATABASE
from lrexport.errors import DeviceError, InputError, UsageError
from lrexport.text import first_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from sqlalchemy import Connection, Engine

JOURNAL = "journal:"
_BUSY_SECONDS = 60  # to wait for another process that writes to the same SQLite file
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 150
_LOCK_SECONDS = 120  # to wait for the lock of a database, which is held for milliseconds
_LOCK_KEY = int.from_bytes(b"lrexport", "big", signed=True)  # a PostgreSQL advisory lock is a 64-bit number
_HINT = "Write sqlite:///FILE, journal:FILE, or a URL for SQLAlchemy, such as postgresql://user@host/database."
# Package of a module that SQLAlchemy imports, if their names differ.
_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at ``url``, by default SQLite in ``folder``; heartbeats reveal machines that disappeared.

    Raises UsageError for a malformed URL, DeviceError if the database does not answer or refuses, InputError for a file that
    is not a database.
    """
    if url is not None and url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    from optuna.storages import RDBStorage

    url = url or f"sqlite:///{(folder / DATABASE).resolve()}"
    # A server may restart during a trial: connections are tested before they are reused.
    options = {"connect_args": {"timeout": _BUSY_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with _explaining(url):
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS)


class DatabaseLock:
    """A lock shared by all processes on one PostgreSQL database, whatever their folders and machines.

    It belongs to a connection: the server releases it when the holder ends, however that happens.
    """

    def __init__(self, url: str) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        self._url = url
        with _explaining(url):
            self._engine: Engine = create_engine(url, poolclass=NullPool)
        self._connection: Connection | None = None

    def acquire(self) -> None:
        """Wait for the lock, not yet held here. Raises DeviceError if its holder hangs or no server answers."""
        from sqlalchemy import text

        assert self._connection is None, "this process holds it already"
        with _explaining(self._url):
            connection = self._engine.connect()
            try:
                connection.execute(text(f"SET lock_timeout = '{_LOCK_SECONDS}s'"))
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK_KEY})
            except BaseException:
                connection.invalidate()
                raise
            self._connection = connection

    def release(self) -> None:
        """Release the lock; harmless if it is not held."""
        if self._connection is not None:
            self._connection.invalidate()  # closes it without contacting the server, which may be gone
            self._connection = None


def database_lock(url: str | None) -> DatabaseLock | None:
    """The lock of the database at ``url``; None for files, for which the folder's lock suffices."""
    return DatabaseLock(url) if url is not None and url.startswith(("postgresql:", "postgresql+")) else None


@contextmanager
def _explaining(url: str) -> Iterator[None]:
    """Raise SQLAlchemy's errors as lrexport's, without the password in ``url``."""
    from sqlalchemy import exc

    shown = _without_password(url)
    try:
        yield
    except exc.ArgumentError as error:
        raise UsageError(f"--storage {shown}: {first_line(error)}", _HINT) from error
    except ImportError as error:
        missing = error if error.name else error.__cause__  # Optuna wraps the error
        module = getattr(missing, "name", None) or "a database driver"
        package = _PACKAGES.get(module, module)
        hint = f"Install it with: pip install '{package}'" if package != "a database driver" else "Install it with pip."
        raise DeviceError(f"--storage {shown} needs {module}, which is not installed", hint) from error
    except (exc.OperationalError, exc.InterfaceError) as error:
        reason = first_line(error.orig or error)
        raise DeviceError(
            f"cannot open {shown}: {reason}", "Finished trials are kept; run the same command again to resume."
        ) from error
    except exc.DatabaseError as error:
        reason = first_line(error.orig or error)
        if url.startswith("sqlite"):
            hint = "The file is damaged or something else; the runs in the sweep's folder are not affected."
            raise InputError(f"{shown} is not a database: {reason}", hint) from error
        raise DeviceError(f"{shown} refused: {reason}", "The user in the URL must be able to create tables.") from error
    except RuntimeError as error:  # made by another version of Optuna
        raise DeviceError(f"cannot use {shown}: {first_line(error)}", "Use the version of optuna that made it.") from error


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return JournalStorage(JournalFileBackend(str(destination(path))))
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a journal of Optuna: {first_line(error)}") from error


def _without_password(url: str) -> str:
    from sqlalchemy import exc, make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return repr(url) if "@" not in url else "URL"
