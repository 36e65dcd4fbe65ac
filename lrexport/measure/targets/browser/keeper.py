"""Holds a browser: starts it with a new folder as its home, and leaves nothing behind. Run as a script, with nothing else.

    python keeper.py PROGRAM ARGUMENT…

``{folder}`` in an argument is the folder. The browser and the folder are gone when it ends, when stdin ends (the process
that asked for it has ended, however), and at a signal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

_SECONDS_TO_END = 5.0
_MOMENT = 0.05
_LONGEST_FOLDER = 60  # Chromium puts a socket into it, whose path may have 107 characters


def main(command: Sequence[str]) -> int:
    """Run the browser to its end; returns its exit status, 1 if it cannot be started."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, _end)
    folder, child = _new_folder(), None
    # Browsers write into the home folder whatever the folder of their profile is.
    homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), folder)
    try:
        child = subprocess.Popen(
            [argument.replace("{folder}", folder) for argument in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **homes},
            start_new_session=True,
        )
        threading.Thread(target=_watch, args=(child.pid,), daemon=True).start()
        return child.wait()
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error.strerror}\n".encode())
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if child is not None:
            _kill(child.pid)
            child.wait()
        _remove(folder)


def _new_folder() -> str:
    folder = tempfile.mkdtemp(prefix="lrexport-")
    if len(os.fsencode(folder)) > _LONGEST_FOLDER and os.access("/tmp", os.W_OK):
        os.rmdir(folder)
        folder = tempfile.mkdtemp(prefix="lrexport-", dir="/tmp")
    return folder


def _watch(group: int) -> None:
    """Kill the browser as soon as the other side is gone; :func:`main` then cleans up."""
    while os.read(0, 1):
        pass
    _kill(group)


def _kill(group: int) -> None:
    with contextlib.suppress(OSError):  # it may have ended
        os.killpg(group, signal.SIGKILL)


def _remove(folder: str) -> None:
    """Remove the folder; processes that are just dying may still write into it."""
    until = time.monotonic() + _SECONDS_TO_END
    while os.path.exists(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > until:
            return
        time.sleep(_MOMENT)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
