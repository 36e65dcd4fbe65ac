"""A phone for tests: a small adb server on a loopback port whose only device is a folder and this machine's shell.

The real adb client talks to it (``ANDROID_ADB_SERVER_PORT``). The protocol is public: SERVICES.TXT, SYNC.TXT and
shell_protocol.h in Android's packages/modules/adb.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ADB = shutil.which("adb")
_VERSION = b"0029"  # of the protocol between client and server, 41
_FEATURES = b"shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)
_ROOM = 1 << 40


@dataclass
class FakePhone:
    """``folder`` has its /data/local/tmp, /sys and /proc, ``bin`` its programs; ``states`` are the devices of the server.

    ``emulator`` runs its programs, if they are for another processor.
    """

    folder: Path
    states: dict[str, str] = field(default_factory=lambda: {"PHONE1": "device"})
    room: int = _ROOM
    lose_after: int | None = None
    commands: list[str] = field(default_factory=list)
    port: int = 0
    emulator: str = ""

    @property
    def temporary(self) -> Path:
        return self.folder / "data/local/tmp"

    def has_program(self, name: str, script: str) -> None:
        """A program on the device's PATH."""
        write_script(self.folder / "bin" / name, script)

    def path(self, text: str) -> str:
        """A path, or a script with paths, of the device as one of this machine."""
        for name in ("/data/local/tmp", "/sys/", "/proc/cpuinfo"):
            text = text.replace(name, f"{self.folder}{name}")
        return text.replace("./program ", f"{self.emulator} ./program ") if self.emulator else text

    def left(self) -> list[str]:
        """Files that are left on the device, given a moment."""
        until = time.monotonic() + 10
        while (found := [str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")]) and (
            time.monotonic() < until
        ):
            time.sleep(0.05)
        return found

    def running(self) -> list[int]:
        """Processes of the device: those that work in its folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(process / "cwd").startswith(str(self.temporary)):
                    found.append(int(process.name))
        return found

    def unplug(self) -> None:
        """No device is there any more, and every connection to it is lost."""
        self.states.clear()


def write_script(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def start_phone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePhone]:
    """The server, and the environment in which the client finds it. Skips where there is no adb."""
    if ADB is None:
        pytest.skip("needs adb (Debian: apt-get install adb)")
    phone = FakePhone(folder)
    for name in ("data/local/tmp", "bin", "proc", "sys/class/thermal/thermal_zone0"):
        (folder / name).mkdir(parents=True)
    (folder / "proc/cpuinfo").write_text("Features\t: fp asimd asimddp\n")
    (folder / "sys/class/thermal/thermal_zone0/type").write_text("cpu-0-0\n")
    (folder / "sys/class/thermal/thermal_zone0/temp").write_text("41500\n")
    phone.has_program("dumpsys", "echo '  temperature: 312'")
    phone.has_program("logcat", "cat log-of-device")
    phone.has_program("getprop", _GETPROP)
    for number in range(os.cpu_count() or 1):
        policy = folder / f"sys/devices/system/cpu/cpu{number}/cpufreq"
        policy.mkdir(parents=True)
        for name, value in (("cpuinfo_max_freq", 2_800_000), ("scaling_max_freq", 2_800_000), ("scaling_cur_freq", 900_000)):
            (policy / name).write_text(f"{value}\n")
        (policy / "scaling_governor").write_text("schedutil\n")
    server = _Server(phone)
    phone.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(phone.port))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    try:
        yield phone
    finally:
        server.shutdown()
        server.server_close()
        for process in phone.running():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)


_GETPROP = """case "$1" in
ro.product.manufacturer) echo Example;;
ro.product.model) echo 'Phone 7';;
ro.build.version.release) echo 14;;
ro.build.version.sdk) echo 34;;
ro.soc.manufacturer) echo Acme;;
ro.soc.model) echo X1;;
ro.product.cpu.abi) echo x86_64;;
esac"""


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True

    def __init__(self, phone: FakePhone) -> None:
        self.phone = phone
        super().__init__(("127.0.0.1", 0), _Client)


class _Client(socketserver.StreamRequestHandler):
    """One connection of the client: services of the server, then perhaps one of the device."""

    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while self._serve(self._text(int(self._read(4), 16))):
                pass

    def _serve(self, service: str) -> bool:
        """Answer one request; whether another may follow."""
        phone = self.server.phone
        if service == "host:version":
            self._okay(_VERSION)
        elif service.startswith("host:devices"):
            self._okay("".join(f"{serial}\t{state}\n" for serial, state in phone.states.items()).encode())
        elif service.startswith("host:features") or service.endswith(":features"):
            self._okay(_FEATURES)
        elif service.startswith(("host:transport:", "host:tport:serial:")):
            return self._transport(service)
        elif service.startswith("shell,v2"):
            self.wfile.write(b"OKAY")
            self._shell(service.partition(":")[2])
            return False
        elif service == "sync:":
            self.wfile.write(b"OKAY")
            self._sync()
            return False
        else:
            self._fail(f"unknown service {service}")
            return False
        return False

    def _transport(self, service: str) -> bool:
        serial = service.split(":", 3)[-1] if "tport" in service else service.split(":", 2)[-1]
        state = self.server.phone.states.get(serial)
        if state != "device":
            self._fail(f"device '{serial}' not found" if state is None else f"device {state}.")
            return False
        self.wfile.write(b"OKAY" + (struct.pack("<Q", 1) if "tport" in service else b""))
        return True

    def _shell(self, command: str) -> None:
        phone = self.server.phone
        phone.commands.append(command)
        if phone.lose_after is not None:
            phone.lose_after -= 1
            if phone.lose_after < 0:
                phone.unplug()
                return
        environment = {**os.environ, "PATH": f"{phone.folder / 'bin'}:{os.environ['PATH']}"}
        process = subprocess.Popen(
            ["/bin/sh", "-c", phone.path(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=phone.folder,
            env=environment,
            start_new_session=True,
        )
        assert process.stdin is not None
        readers = [
            threading.Thread(target=self._pass_on, args=(stream, number), daemon=True)
            for stream, number in ((process.stdout, _STDOUT), (process.stderr, _STDERR))
        ]
        for reader in readers:
            reader.start()
        feeder = threading.Thread(target=self._feed, args=(process,), daemon=True)
        feeder.start()
        while process.poll() is None and self._is_connected():
            time.sleep(0.005)
        if process.poll() is None:  # unplugged: adbd ends the session's input, and nobody hears the rest
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        for reader in readers:
            reader.join(5)
        with contextlib.suppress(OSError):
            self.wfile.write(struct.pack("<BIB", _EXIT, 1, process.returncode & 0xFF))
            self.connection.shutdown(socket.SHUT_RDWR)

    def _is_connected(self) -> bool:
        return bool(self.server.phone.states)

    def _pass_on(self, stream: Any, number: int) -> None:
        with contextlib.suppress(OSError, ValueError), stream:  # a closed pipe ends what still writes into it
            while chunk := stream.read1(1 << 15):
                self.wfile.write(struct.pack("<BI", number, len(chunk)) + chunk)

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, EOFError, ValueError):
            while True:
                number, length = struct.unpack("<BI", self._read(5))
                content = self._read(length)
                if number == _STDIN:
                    process.stdin.write(content)
                    process.stdin.flush()
                elif number == _CLOSE_STDIN:
                    break
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _sync(self) -> None:
        phone = self.server.phone
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            if kind == b"QUIT":
                return
            path = self._text(length)
            if kind in (b"STA2", b"LST2"):
                self.wfile.write(_stat2(kind, phone.path(path)))
            elif kind == b"STAT":
                mode = Path(phone.path(path)).stat().st_mode if Path(phone.path(path)).exists() else 0
                self.wfile.write(struct.pack("<4sIII", b"STAT", mode, 0, 0))
            elif kind == b"SEND":
                self._receive(path)
            else:
                raise OSError(f"unknown request {kind!r}")

    def _receive(self, path: str) -> None:
        name, _, mode = path.rpartition(",")
        content, phone = b"", self.server.phone
        while True:
            kind, length = struct.unpack("<4sI", self._read(8))
            if kind == b"DONE":
                break
            content += self._read(length)
        phone.room -= len(content)
        if phone.room < 0:
            words = b"couldn't create file: No space left on device"
            self.wfile.write(struct.pack("<4sI", b"FAIL", len(words)) + words)
            return
        target = Path(phone.path(name))
        target.write_bytes(content)
        target.chmod(int(mode) & 0o777)
        self.wfile.write(struct.pack("<4sI", b"OKAY", 0))

    def _okay(self, content: bytes) -> None:
        self.wfile.write(b"OKAY%04x%b" % (len(content), content))

    def _fail(self, words: str) -> None:
        self.wfile.write(b"FAIL%04x%b" % (len(words), words.encode()))

    def _read(self, size: int) -> bytes:
        content: bytes = self.rfile.read(size)
        if len(content) < size:
            raise EOFError
        return content

    def _text(self, size: int) -> str:
        return self._read(size).decode()


def _stat2(kind: bytes, path: str) -> bytes:
    form = "<4sIQQIIIIQqqq"
    try:
        found = os.stat(path)
    except OSError as error:
        return struct.pack(form, kind, error.errno or 2, *[0] * 10)
    mode = found.st_mode if stat.S_ISDIR(found.st_mode) else stat.S_IFREG | 0o644
    numbers = (found.st_dev, found.st_ino, mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size)
    return struct.pack(form, kind, 0, *numbers, 0, 0, 0)
