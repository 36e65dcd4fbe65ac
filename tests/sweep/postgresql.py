"""A PostgreSQL server of the tests' own, on loopback: Debian's package, or any other whose programs are found."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "not-to-be-shown"
_SYSTEM_USER = "postgres"  # which Debian's package makes; the server refuses to run as root


def _programs() -> Path:
    """The folder with initdb and pg_ctl. Skips the test where there is none."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = [Path(found).parent for found in [shutil.which("initdb")] if found]
    for folder in (*on_path, *reversed(debian)):
        if (folder / "initdb").exists() and (folder / "pg_ctl").exists():
            return folder
    pytest.skip("needs a PostgreSQL server: apt-get install postgresql")


@dataclass(frozen=True)
class Server:
    """A server that can be stopped and started again; ``url`` is its database as SQLAlchemy takes it."""

    programs: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://tester:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-o", options, "-l", "log")

    def stop(self) -> None:
        """At once, as a machine that goes down: connections break in the middle."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", "data")

    def restart(self) -> None:
        self.stop()
        self.start()

    def make(self) -> None:
        (self.folder / "password").write_text(PASSWORD, encoding="utf-8")
        self._run("initdb", "-D", "data", "-U", "tester", "-A", "scram-sha-256", "--pwfile=password", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), *arguments]
        with (self.folder / "output").open("ab") as output:  # no pipe: the server would keep it open
            who = {"user": _SYSTEM_USER, "group": _SYSTEM_USER, "extra_groups": []} if os.geteuid() == 0 else {}
            done = subprocess.run(command, cwd=self.folder, stdout=output, stderr=output, timeout=60, check=False, **who)
        assert done.returncode == 0, (self.folder / "output").read_text(encoding="utf-8", errors="replace")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_server() -> Iterator[Server]:
    """A new server with a database of its own, which ends with the block."""
    programs = _programs()
    # Not below pytest's folder, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="lrexport-postgresql-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, _SYSTEM_USER, _SYSTEM_USER)
        server = Server(programs, folder, _free_port())
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop()
