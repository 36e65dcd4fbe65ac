"""What every target does: run one measuring job of the runner and yield its answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from lrexport.errors import DeviceError

_PACKAGE = Path(__file__).parents[2]
_MOST_WAITING = 8  # lines
_MOMENT = 0.2  # seconds
_FAREWELL_SECONDS = 2.0
_TAIL_BYTES = 16_384
_MOST_WORDS = 1_000
# What the runner is made of.
_MODULES = ("confinement", "measure/runner", "measure/inputs", "measure/machine", "measure/watch")
_VALUES = "inputs.npz"


@dataclass(frozen=True)
class MeasuringJob:
    """Groups of files that are measured together, {name: path} each, and how.

    ``rounds`` samples of at least ``sample_ms`` each; with ``group_seconds`` as many rounds as fit in that time, at least
    ``least_rounds``. With ``evict_bytes`` so much memory is touched before each sample, which is one run then. ``batch``
    must be that of files with a fixed one; 0 is theirs, or one. ``cold`` also loads each file in a process of its own,
    ``profile`` tells time by operator. ``shapes`` are sizes of inputs by name, ``values`` the content of a .npz with arrays
    for inputs by name. ``seconds`` are what loading, the first run and every other may take each, ``memory`` the bytes that
    the process may need (None: a share of the target's own).
    """

    groups: Sequence[dict[str, Path]]
    rounds: int = 50
    threads: int = 1
    batch: int = 1
    seed: int = 0
    sample_ms: float = 0.3
    warmup_runs: int = 10
    group_seconds: float | None = None
    least_rounds: int = 7
    evict_bytes: int = 0
    cold: bool = False
    profile: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    values: bytes | None = None
    seconds: float = 300.0
    memory: int | None = None

    def paths(self) -> list[Path]:
        """Every file once, in order; its place in this list is the number by which a target may name it."""
        return list(dict.fromkeys(path for group in self.groups for path in group.values()))

    def to_json(self, names: dict[Path, str]) -> dict[str, Any]:
        """What runner.py reads, with the files under the names that the target gave them."""
        options = {name: value for name, value in vars(self).items() if name not in ("groups", "values")}
        options["values"] = None if self.values is None else _VALUES
        groups = [[{"name": name, "file": names[path]} for name, path in group.items()] for group in self.groups]
        return {**options, "groups": groups}


class Target(Protocol):
    """A place that runs jobs. ``name`` is how records and tables call it."""

    @property
    def name(self) -> str: ...

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        """The runner's answers, one by one as they come. Raises DeviceError where the target or the runtime fails."""
        ...

    def environment(self) -> dict[str, Any]:
        """The machine: processor, instruction sets, cores, system, runtime."""
        ...


class ModelRefused(DeviceError):
    """The target's runtime cannot load or run what the job calls ``model``, for ``reason``."""

    def __init__(self, target: str, model: str, reason: str) -> None:
        super().__init__(f"{target} cannot measure{f' {model}' if model else ''}: {reason}")
        self.model, self.reason = model, reason


class InputsRefused(ModelRefused):
    """What is given, or not given, for the inputs of a file does not fit it; ``model`` is "" where no file has the input."""


class LimitReached(ModelRefused):
    """``model`` needs more time or memory than the job gives it."""


class Silent(DeviceError):
    """A target said nothing for too long."""


class Flood(DeviceError):
    """A target says more than any answer has."""


def work_folder(job: MeasuringJob, names: dict[Path, str]) -> dict[str, bytes]:
    """The files, by path, of the folder in which ``python -m lrexport.measure.runner job.json`` does the job.

    ``names`` are those that the target gave the files to measure. The runner comes with its own package there, so that it is
    the same one everywhere, whatever is installed.
    """
    modules = {f"lrexport/{name}.py": (_PACKAGE / f"{name}.py").read_bytes() for name in _MODULES}
    packages = {"lrexport/__init__.py": b"", "lrexport/measure/__init__.py": b""}
    values = {} if job.values is None else {_VALUES: job.values}
    return {**packages, **modules, **values, "job.json": json.dumps(job.to_json(names)).encode()}


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process in a group of its own: Ctrl-C reaches lrexport alone, which then ends the process in good order."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=os.name == "posix", **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`start` with whatever it has started, if it has not ended by itself."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the second is macOS's word for a dead group
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def lines_of(process: subprocess.Popen[bytes], most_bytes: int, most_silent_seconds: float | None = None) -> Iterator[str]:
    """Lines of stdout as they come. Raises Silent where the next one does not come in time, Flood where it is too long."""
    lines: queue.Queue[bytes] = queue.Queue(_MOST_WAITING)
    closed = threading.Event()
    threading.Thread(target=_pass_on, args=(process.stdout, lines, most_bytes, closed), daemon=True).start()
    try:
        while True:
            try:
                line = lines.get(timeout=most_silent_seconds)
            except queue.Empty:
                raise Silent(f"no answer for {most_silent_seconds:g} s") from None
            if not line:
                return
            if len(line) > most_bytes:
                raise Flood(f"a line of more than {most_bytes:,} bytes")
            yield line.decode(errors="replace")
    finally:
        closed.set()


def _pass_on(stream: IO[bytes], lines: queue.Queue[bytes], most_bytes: int, closed: threading.Event) -> None:
    with stream:
        while not closed.is_set():
            line = stream.readline(most_bytes + 1)
            while not closed.is_set():
                with contextlib.suppress(queue.Full):
                    lines.put(line, timeout=_MOMENT)
                    break
            if not line:
                return


class Tail:
    """The end of what a process writes on stderr, however much that is: read as it comes, so that it never waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was written last; of a process that has ended all of its end."""
        self._thread.join(_FAREWELL_SECONDS)
        return self._kept.decode(errors="replace")

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := stream.read1(_TAIL_BYTES):  # type: ignore[attr-defined]
                self._kept = (self._kept + chunk)[-_TAIL_BYTES:]


def last_line(text: str) -> str:
    """The last line with something in it, cut where no reader would go on."""
    return next((line.strip()[:_MOST_WORDS] for line in reversed(text.splitlines()) if line.strip()), "")
