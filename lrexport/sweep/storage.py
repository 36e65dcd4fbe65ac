"""Where a sweep's study is: SQLite in its folder, or any other storage of Optuna's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lrexport.errors import DeviceError, InputError, UsageError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

DATABASE = "sweep.db"
JOURNAL = "journal:"
_BUSY_SECONDS = 60  # to wait for another process that writes to the same SQLite file
HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 150
_HINT = "Write sqlite:///FILE, journal:FILE, or what SQLAlchemy takes, as in postgresql://user@host/database."


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at ``url``, by default SQLite in ``folder``; heartbeats tell others of machines that went away.

    Raises UsageError for a malformed URL, DeviceError where nothing answers, InputError for a file that is no database.
    """
    if url is not None and url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    from optuna.storages import RDBStorage
    from sqlalchemy import exc

    url = url or f"sqlite:///{(folder / DATABASE).resolve()}"
    shown = _without_password(url)
    options = {"connect_args": {"timeout": _BUSY_SECONDS}} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS)
    except exc.ArgumentError as error:
        raise UsageError(f"--storage {shown}: {_first_line(error)}", _HINT) from error
    except ImportError as error:
        raise DeviceError(
            f"--storage {shown} needs a database driver that is not installed", "Install it with pip."
        ) from error
    except exc.OperationalError as error:
        raise DeviceError(f"cannot open {shown}: {_first_line(error.orig or error)}") from error
    except exc.DatabaseError as error:
        hint = "It was damaged, or is something else; the runs in the sweep's folder are not affected."
        raise InputError(f"{shown} is no database: {_first_line(error.orig or error)}", hint) from error
    except RuntimeError as error:  # made by another version of Optuna
        raise DeviceError(f"cannot use {shown}: {_first_line(error)}", "Use the version of optuna that made it.") from error


def _open_journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no journal of Optuna's: {_first_line(error)}") from error


def _without_password(url: str) -> str:
    from sqlalchemy import exc, make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError:
        return repr(url) if "@" not in url else "URL"


def _first_line(error: object) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
