"""This machine: the runner in a process of its own, where neither torch's threads nor its memory are in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError
from lrexport.measure import machine
from lrexport.measure.targets.base import Job, answers, last_line, lines_of, start, stop, work_folder


@dataclass(frozen=True)
class Local:
    """The machine that lrexport runs on."""

    name: str = "local"

    def environment(self) -> dict[str, Any]:
        return machine.environment()

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
            folder = Path(name)
            names = {file: str(file.resolve()) for file in job.paths()}
            for path, content in work_folder(job, names).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            # Its messages go to a file: nobody reads a second pipe while the answers come.
            with (folder / "messages").open("w+b") as messages:
                command = [sys.executable, "-m", "lrexport.measure.runner", "job.json"]
                modules = os.pathsep.join(filter(None, (name, os.getenv("PYTHONPATH"))))
                environment = {**os.environ, "PYTHONPATH": modules, "TMPDIR": name}
                process = start(command, stderr=messages, cwd=folder, env=environment)
                try:
                    yield from answers(lines_of(process), self.name, lambda: _ended_early(process, folder / "messages"))
                finally:
                    stop(process)


def _ended_early(process: subprocess.Popen[bytes], messages: Path) -> DeviceError:
    status = process.wait()
    words = last_line(messages.read_text(encoding="utf-8", errors="replace"))
    if not words:
        words = f"it crashed ({signal.Signals(-status).name})" if status < 0 else f"it ended with {status}"
    return DeviceError(f"the measurement on this machine stopped in the middle: {words}")
