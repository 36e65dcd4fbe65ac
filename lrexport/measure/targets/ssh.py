"""A board over ssh: files, runner and answers go through one connection of the system's OpenSSH.

The device needs sshd, Python 3.9, numpy and onnxruntime; lrexport is not installed there. Everything is sent to its Python
on stdin under generated names, and removed by the receiver on the device (:mod:`lrexport.measure.receiver`) even if
the connection is lost. Unknown host keys are never accepted.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from lrexport.errors import DeviceError, InputError, UsageError
from lrexport.measure import receiver
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets.answers import answers, most_line_bytes
from lrexport.measure.targets.artefacts import measured_when_prepared
from lrexport.measure.targets.base import Flood, MeasuringJob, Silent, Tail, lines_of, start, stop, work_folder
from lrexport.measure.targets.queries import options_of, runtime_in
from lrexport.measure.targets.ssh_errors import explain

SYNTAX = "ssh://[user@]host[:port][?runtime=NAME][&python=PATH][&timeout=SECONDS]"
# An ssh_config file instead of the user's.
CONFIG_VARIABLE = "LREXPORT_SSH_CONFIG"
# A leading dash would be an option of ssh; %, quotes and spaces have a meaning in ssh's configuration.
_URL = re.compile(
    r"ssh://(?:(?P<user>\w[\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\])(?::(?P<port>\d{1,5}))?(?:\?(?P<query>.+))?",
    re.ASCII,
)
_PYTHON = re.compile(r"[\w./+][\w./+-]*", re.ASCII)
_OPTIONS = {
    "BatchMode": "yes",  # nobody can answer prompts
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "6",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "EscapeChar": "none",
    "LogLevel": "INFO",
}
_BEAT_SECONDS = 2.0  # receiver.py gives up after 30 s without one
_FAREWELL_SECONDS = 5.0
_CHUNK_BYTES = 1 << 18
# Code for the device's Python -c: it reads the receiver, whose length comes first. One line with no single quotes, because
# the login shell is unknown.
_BOOTSTRAP = (
    'import sys; sys.version_info >= (3, 9) or sys.exit("Python is too old: " + sys.version.split()[0]); '
    "f = sys.stdin.buffer; exec(f.read(int(f.readline())))"
)
_COMMAND = ["-m", "lrexport.measure.runner", "job.json"]


@dataclass(frozen=True)
class Ssh:
    """A board: ``host``, ``user`` and ``port`` (None: ssh's choice), and the device's Python."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    most_silent_seconds: float = 300.0
    runtime: str = DEFAULT

    @property
    def name(self) -> str:
        runtime = "" if self.runtime == DEFAULT else f"?runtime={self.runtime}"
        return f"{self._place}{runtime}"

    @property
    def _place(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user + '@' if self.user else ''}{host}{f':{self.port}' if self.port else ''}"

    def environment(self) -> dict[str, Any]:
        return next(answer["environment"] for answer in self.run(MeasuringJob(())) if "environment" in answer)

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        # Boards have no toolchains: the runtime's files are made here.
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            job = replace(job, runtime=self.runtime)
            yield from measured_when_prepared(job, None, Path(folder), self.name, self._measured)

    def _measured(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        files = _to_send(job)
        try:
            process = start(self._command(), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError as error:
            raise DeviceError("ssh is not installed on this machine", "Install OpenSSH's client.") from error
        assert process.stdin is not None
        assert process.stderr is not None
        messages, gone = Tail(process.stderr), threading.Event()
        sender = threading.Thread(target=_send, args=(process.stdin, files, gone), daemon=True)
        sender.start()
        try:
            lines = lines_of(process, most_line_bytes(job), self.most_silent_seconds)
            yield from answers(lines, job, self.name, lambda: self._ended_early(process, messages))
        except Silent as error:
            hint = "If one inference takes longer, raise the limit: ?timeout=SECONDS."
            raise DeviceError(f"{self.name} hangs: {error.message}", hint) from error
        except Flood as error:
            raise DeviceError(f"{self.name} floods its output: {error.message}", "Check the device by hand.") from error
        finally:
            # The receiver cleans up and ends when its stdin ends; only then is the connection closed.
            gone.set()
            sender.join(_FAREWELL_SECONDS)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_FAREWELL_SECONDS)
            finally:
                if process.poll() is None:
                    stop(process)

    def _command(self) -> list[str]:
        config = os.environ.get(CONFIG_VARIABLE)
        options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
        where = [*(("-F", config) if config else ()), *(("-p", str(self.port)) if self.port else ())]
        whom = ["-l", self.user] if self.user else []
        # Isolated: no modules of the login folder or PYTHONPATH. The measurement itself is not isolated.
        remote = shlex.join([self.python, "-I", "-c", _BOOTSTRAP])
        return ["ssh", "-T", *options, *where, *whom, "--", self.host, f"exec {remote}"]

    def _ended_early(self, process: subprocess.Popen[bytes], messages: Tail) -> DeviceError:
        return explain(self._place, self.python, process.wait(), messages.text())


def parse_ssh(text: str) -> Ssh:
    """``ssh://pi@board:2222?python=venv/bin/python``. Raises UsageError."""
    match = _URL.fullmatch(text)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise UsageError(
            f"invalid ssh target {text!r}: expected {SYNTAX}", "User and host may contain letters, digits and . _ -"
        )
    options = options_of(text, match["query"] or "", ("runtime", "python", "timeout"), SYNTAX)
    runtime = runtime_in(text, options)
    python = options.get("python", "python3")
    if not _PYTHON.fullmatch(python):
        raise UsageError(
            f"invalid ssh target {text!r}: {python!r} is not a path to Python",
            "It may contain letters, digits and . _ / + -, and is relative to the home folder on the device.",
        )
    timeout = options.get("timeout", "300")
    if not re.fullmatch(r"[1-9]\d{0,4}", timeout):
        raise UsageError(
            f"invalid ssh target {text!r}: expected a timeout in whole seconds, not {timeout!r}", "For example 300."
        )
    port = int(match["port"]) if match["port"] else None
    return Ssh(match["host"].strip("[]"), match["user"], port, python, float(timeout), runtime)


def _to_send(job: MeasuringJob) -> list[tuple[str, int, bytes | Path]]:
    """(path in the device's folder, bytes, content) of every file of the job. Raises InputError."""
    # Runtimes tell formats by the suffix; no other part of a file's name leaves this machine.
    names = {path: f"{place}{_suffix(path, job)}" for place, path in enumerate(job.read())}
    own = [(name, len(content), content) for name, content in work_folder(job, names).items()]
    try:
        return [*own, *((name, path.stat().st_size, path) for path, name in names.items())]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def _suffix(path: Path, job: MeasuringJob) -> str:
    return path.suffix if path.suffix == ".ort" or job.artefacts else ".onnx"


def _send(pipe: IO[bytes], files: list[tuple[str, int, bytes | Path]], gone: threading.Event) -> None:
    """Send the receiver, the list of files and the files, then a sign of life until ``gone``. Closes the pipe."""
    program = Path(receiver.__file__).read_bytes() + f"\nsys.exit(main({_COMMAND!r}))\n".encode()
    head = json.dumps([(name, size) for name, size, _ in files])
    try:
        with pipe:
            pipe.write(b"%d\n%b%b\n" % (len(program), program, head.encode()))
            for _, size, content in files:
                _send_file(pipe, size, content, gone)
            pipe.flush()
            while not gone.wait(_BEAT_SECONDS):
                pipe.write(b"\n")
                pipe.flush()
    except OSError:  # the connection is lost, or the device refuses: the reader of answers gets the reason
        pass


def _send_file(pipe: IO[bytes], size: int, content: bytes | Path, gone: threading.Event) -> None:
    if isinstance(content, bytes):
        pipe.write(content)
        return
    with open(content, "rb") as file:
        left = size
        while left and not gone.is_set():
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise OSError(f"{content} has become shorter")
            pipe.write(chunk)
            left -= len(chunk)
