"""A device for tests: a real sshd on a free loopback port, with keys, configuration and temporary folder of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lrexport.measure.targets.ssh import CONFIG_VARIABLE

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or shutil.which("sshd")


@dataclass(frozen=True)
class Board:
    """``folder`` holds what belongs to it; ``temporary`` is where the device's side puts its files."""

    folder: Path
    temporary: Path
    port: int
    daemon: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}?python={sys.executable}"

    def python(self, name: str, shebang: str) -> str:
        """A program that stands for another Python on the device; its target."""
        path = self.folder / name
        path.write_text(shebang)
        path.chmod(0o755)
        return self.url.replace(sys.executable, str(path))

    def left(self) -> list[str]:
        """Files that the device has not removed, given a moment."""
        until = time.monotonic() + 10
        while (found := [str(path) for path in self.temporary.rglob("*")]) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def cut(self) -> None:
        """Every connection is lost at once."""
        for child in children(self.daemon.pid):
            os.kill(child, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Every process on the device, those of lost connections not among them."""
        return descendants(self.daemon.pid)


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(word) for file in tasks for word in file.read_text().split()]


def descendants(process: int) -> list[int]:
    return [each for child in children(process) for each in (child, *descendants(child))]


def start_board(folder: Path) -> Iterator[Board]:
    """The daemon, and ssh's configuration in ``folder``/ssh_config. Skips where there is no sshd."""
    if SSHD is None or not sys.platform.startswith("linux"):
        pytest.skip("needs sshd (Debian: apt-get install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # without it sshd does not start as root
    for key in ("host_key", "user_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    temporary = folder / "temporary of the device"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    host = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host[0]} {host[1]}\n")
    _write(folder / "sshd_config", f"""
        Port {port}
        ListenAddress 127.0.0.1
        HostKey {folder}/host_key
        AuthorizedKeysFile {folder}/authorized_keys
        PidFile none
        StrictModes no
        UsePAM no
        PermitRootLogin yes
        PasswordAuthentication no
        KbdInteractiveAuthentication no
        SetEnv TMPDIR="{temporary}"
        """)  # fmt: skip
    write_ssh_config(folder / "ssh_config", folder / "known_hosts", folder / "user_key")
    with (folder / "sshd.log").open("wb") as log:
        daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        _wait_for(port, daemon, folder / "sshd.log")
        yield Board(folder, temporary, port, daemon)
    finally:
        for process in (*descendants(daemon.pid), daemon.pid):
            os.kill(process, signal.SIGTERM)
        daemon.wait()


def write_ssh_config(path: Path, known_hosts: Path, key: Path) -> None:
    _write(path, f"""
        Host *
          UserKnownHostsFile {known_hosts}
          GlobalKnownHostsFile none
          IdentityFile {key}
          IdentitiesOnly yes
          IdentityAgent none
        """)  # fmt: skip


def use_ssh_config(patch: pytest.MonkeyPatch, path: Path) -> None:
    patch.setenv(CONFIG_VARIABLE, str(path))


def _write(path: Path, text: str) -> None:
    path.write_text(textwrap.dedent(text))


def _wait_for(port: int, daemon: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if daemon.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text(errors='replace').strip()[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    pytest.fail("sshd does not listen")
