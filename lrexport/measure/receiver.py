"""The device's side of a measurement over ssh: receives files on stdin, runs the job, and leaves nothing behind.

Sent as text to the device's Python, followed by its input: a line of JSON, [[path, bytes], …], then the files' contents one
after the other, then meaningless bytes while the other side is alive. Needs Python 3.9 and nothing else.

Everything is in one new folder that only this user can enter. It is removed, and its processes killed, when the job ends or
fails, when stdin ends, and after ``_MOST_SILENT_SECONDS`` of silence: a lost connection may not end stdin.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any, NoReturn

_MOST_SILENT_SECONDS = 30
_SECONDS_BETWEEN_PROGRESS = 1.0
_CHUNK_BYTES = 1 << 16
_ROOM = 1.05  # of free space, for what the job itself writes


def main(command: Sequence[str]) -> int:
    """Receive files and run this Python with ``command`` in their folder. Returns the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, _end)
    stream = sys.stdin.buffer
    folder, child = tempfile.mkdtemp(prefix="lrexport-"), None
    try:
        _receive(stream, folder)
        environment = {**os.environ, "PYTHONPATH": folder, "TMPDIR": folder}
        child = subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        threading.Thread(target=_watch, args=(stream.fileno(), child.pid), daemon=True).start()
        return child.wait()
    except (OSError, EOFError) as error:
        _say({"error": str(error)})
        return 1
    finally:
        if child is not None and child.poll() is None:
            _kill(child.pid)
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _receive(stream: IO[bytes], folder: str) -> None:
    """Write the arriving files. Raises OSError, also if they do not fit, and EOFError if they are incomplete."""
    signal.alarm(_MOST_SILENT_SECONDS)
    files = json.loads(stream.readline() or b"[]")
    needed, free = sum(size for _, size in files), shutil.disk_usage(folder).free
    if needed * _ROOM > free:
        raise OSError(f"{folder} has {free:,} bytes free, but the files need {needed:,}; set TMPDIR to another folder")
    told, received = time.monotonic(), 0
    for name, size in files:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            while size:
                chunk = stream.read1(min(size, _CHUNK_BYTES))  # type: ignore[attr-defined]
                if not chunk:
                    raise EOFError("the files are incomplete")
                size -= file.write(chunk)
                received += len(chunk)
                signal.alarm(_MOST_SILENT_SECONDS)
                if time.monotonic() - told >= _SECONDS_BETWEEN_PROGRESS:
                    _say({"progress": {"stage": "receiving", "bytes": received, "of_bytes": needed}})
                    told = time.monotonic()
    signal.alarm(0)


def _watch(descriptor: int, group: int) -> None:
    """Kill the job as soon as the other side is gone; :func:`main` then cleans up."""
    while select.select([descriptor], [], [], _MOST_SILENT_SECONDS)[0] and os.read(descriptor, _CHUNK_BYTES):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(OSError):  # it may have ended
        os.killpg(group, signal.SIGKILL)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)
