"""This machine: the runner in a separate process, without torch's threads and memory, under any Python."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError, UsageError
from lrexport.measure import machine
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets.answers import answers, most_line_bytes
from lrexport.measure.targets.artefacts import measured_when_prepared, started, surroundings
from lrexport.measure.targets.base import (
    Flood,
    MeasuringJob,
    Silent,
    Tail,
    last_line,
    lines_of,
    stop,
    work_folder,
    write_all,
)
from lrexport.measure.targets.queries import options_of, runtime_in

_LONGEST_STAGE = 50  # profiling is forty runs
_SECONDS_TO_START = 120


_URL = re.compile(r"local(?:\?(?P<query>.+))?")
SYNTAX = "local[?runtime=NAME][&python=PATH]"


@dataclass(frozen=True)
class Local:
    """The machine that lrexport runs on: a runtime, and the Python that has it (None: this one)."""

    runtime: str = DEFAULT
    python: str | None = None

    @property
    def name(self) -> str:
        return "local" if self.runtime == DEFAULT else f"local?runtime={self.runtime}"

    def environment(self) -> dict[str, Any]:
        if self.runtime == DEFAULT and self.python is None:
            return machine.environment()
        return next(answer["environment"] for answer in self.run(MeasuringJob(())) if "environment" in answer)

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
            made = Path(name) / "made"
            made.mkdir()
            job = replace(job, runtime=self.runtime)
            yield from measured_when_prepared(
                job, self.python, made, self.name, lambda ready: self.measured(ready, Path(name))
            )

    def measured(self, job: MeasuringJob, folder: Path) -> Iterator[dict[str, Any]]:
        """The answers for a job whose runtime has its files; ``folder`` is for the runner. Raises DeviceError."""
        names = {file: str(file.resolve()) for file in job.read()}
        write_all(folder, work_folder(job, names))
        command = [self.python or sys.executable, "-m", "lrexport.measure.runner", "job.json", str(os.getpid())]
        process = started(command, self.name, stderr=subprocess.PIPE, cwd=folder, env=surroundings(folder, self.python))
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


def parse_local(text: str) -> Local:
    """``local?runtime=ncnn&python=/opt/ncnn/bin/python``. Raises UsageError."""
    match = _URL.fullmatch(text)
    if match is None:
        raise UsageError(f"invalid target {text!r}: expected {SYNTAX}")
    options = options_of(text, match["query"] or "", ("runtime", "python"), SYNTAX)
    python = options.get("python")
    if python == "":
        raise UsageError(f"invalid target {text!r}: python= without a path", f"Expected {SYNTAX}.")
    return Local(runtime_in(text, options), python)


def _ended_early(process: subprocess.Popen[bytes], messages: Tail) -> DeviceError:
    status = process.wait()
    words = last_line(messages.text())
    if not words:
        words = f"it crashed ({signal.Signals(-status).name})" if status < 0 else f"exit status {status}"
    return DeviceError(f"the measurement on this machine stopped early: {words}")
