"""This machine: the runner in a separate process, without torch's threads and memory."""

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
from lrexport.measure.targets.answers import answers, most_line_bytes
from lrexport.measure.targets.base import Flood, MeasuringJob, Silent, Tail, last_line, lines_of, start, stop, work_folder

_LONGEST_STAGE = 50  # profiling is forty runs
_SECONDS_TO_START = 120


@dataclass(frozen=True)
class Local:
    """The machine that lrexport runs on."""

    name: str = "local"

    def environment(self) -> dict[str, Any]:
        return machine.environment()

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
            folder = Path(name)
            names = {file: str(file.resolve()) for file in job.paths()}
            for path, content in work_folder(job, names).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            command = [sys.executable, "-m", "lrexport.measure.runner", "job.json", str(os.getpid())]
            modules = os.pathsep.join(filter(None, (name, os.getenv("PYTHONPATH"))))
            environment = {**os.environ, "PYTHONPATH": modules, "TMPDIR": name}
            process = start(command, stderr=subprocess.PIPE, cwd=folder, env=environment)
            assert process.stderr is not None
            messages = Tail(process.stderr)
            try:
                # The runner enforces its own limits; this is for one that hangs.
                lines = lines_of(process, most_line_bytes(job), _LONGEST_STAGE * job.seconds + _SECONDS_TO_START)
                yield from answers(lines, job, self.name, lambda: _ended_early(process, messages))
            except (Silent, Flood) as error:
                raise DeviceError(f"the measurement on this machine gave {error.message}") from error
            finally:
                stop(process)


def _ended_early(process: subprocess.Popen[bytes], messages: Tail) -> DeviceError:
    status = process.wait()
    words = last_line(messages.text())
    if not words:
        words = f"it crashed ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
    return DeviceError(f"the measurement on this machine stopped early: {words}")
