"""This machine: the runner in a process of its own, where neither torch's threads nor its memory are in the way."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrexport.measure import runner
from lrexport.measure.targets.base import RUNNER, Job, answers


class Local:
    """The machine that lrexport runs on."""

    name = "local"

    def environment(self) -> dict[str, Any]:
        return runner.environment()

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job.to_json({file: str(file.resolve()) for file in job.paths()})), encoding="utf-8")
            yield from _answers_of([sys.executable, str(RUNNER), str(path)], folder, self.name)


def _answers_of(command: list[str], folder: str, target: str) -> Iterator[dict[str, Any]]:
    # Its messages go to a file: nobody reads a second pipe while the answers come.
    with (Path(folder) / "messages").open("w+", encoding="utf-8", errors="replace") as messages:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, text=True)
        assert process.stdout is not None
        try:
            yield from answers(process.stdout, target, lambda: _last_line(messages))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _last_line(messages: Any) -> str:
    messages.seek(0)
    return next((line.strip() for line in reversed(messages.read().splitlines()) if line.strip()), "")
