"""A device for tests: a real sshd on a free loopback port, with keys, configuration and temporary folder of its own.

Also small ONNX files to measure there, made in milliseconds.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or shutil.which("sshd")


@dataclass(frozen=True)
class Board:
    """``folder`` holds what belongs to it; ``temporary`` is where the device's side puts its files."""

    folder: Path
    temporary: Path
    port: int
    daemon: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What its sshd has said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    @property
    def user(self) -> str:
        return getpass.getuser()

    @property
    def url(self) -> str:
        """The board as a target, with the Python that runs the tests."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}?python={sys.executable}"

    def with_python(self, script: str) -> str:
        """The board as a target whose Python is a shell script; ``$PYTHON`` in it is the real one."""
        path = self.folder / f"python{len(list(self.folder.glob('python*')))}"
        path.write_text(f"#!/bin/sh\nPYTHON={sys.executable}\n{script}\n")
        path.chmod(0o755)
        return self.url.replace(sys.executable, str(path))

    def _there(self) -> list[str]:
        """Files and folders; os.walk minds no folder that goes while it looks."""
        walked = os.walk(self.temporary)
        return [os.path.join(folder, name) for folder, folders, names in walked for name in (*folders, *names)]

    def left(self) -> list[str]:
        """Files that the device has not removed, given a moment."""
        until = time.monotonic() + 10
        while (found := self._there()) and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def cut(self) -> None:
        """Every connection is lost at once."""
        for child in children(self.daemon.pid):
            os.kill(child, signal.SIGKILL)

    def running(self, word: str) -> list[int]:
        """Processes on the device with ``word`` in their command line, those of lost connections too."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it may end at any moment
                ours = os.fsencode(self.temporary) in (process / "environ").read_bytes()
                if ours and word.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(word) for file in tasks for word in file.read_text().split()]


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
        for process in (*children(daemon.pid), daemon.pid):
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


def write_model(path: Path, channels: int = 4, seed: int = 0, batch: int | str = 1) -> Path:
    """A 3×3 convolution and a ReLU as an ONNX file; input (batch, 3, 8, 8)."""
    weight = np.random.default_rng(seed).standard_normal((channels, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, 6, 6])
    return save_graph(path, nodes, [given], [result], {"w": weight})


def write_open(path: Path) -> Path:
    """A 3×3 convolution whose input (N, 3, H, W) leaves its sizes open."""
    weight = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, "h", "w"])
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    return save_graph(path, nodes, [given], [result], {"w": weight})


def write_lookup(path: Path) -> Path:
    """Rows of a table of seven by their index, kept or not, times a number: inputs of three types, one a scalar."""
    given = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 4]),
        helper.make_tensor_value_info("keep", TensorProto.BOOL, [1, 4]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT16, []),
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["keep"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["scale"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "kept"], ["masked"]),
        helper.make_node("Mul", ["masked", "factor"], ["y"]),
    ]
    return save_graph(path, nodes, given, [result], {"table": np.arange(7, dtype=np.float32)})


def save_graph(path: Path, nodes: Any, inputs: Any, outputs: Any, constants: dict[str, Any]) -> Path:
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
