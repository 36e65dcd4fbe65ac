"""The base of all targets: run one measuring job of the runner and yield its answers."""

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
from lrexport.measure.runtimes.base import CONVERTED, DEFAULT, NAMES

_PACKAGE = Path(__file__).parents[2]
_MOST_WAITING = 8  # lines
_MOMENT = 0.2  # seconds
_FAREWELL_SECONDS = 2.0
_TAIL_BYTES = 16_384
_MOST_WORDS = 1_000
# The runner's modules.
_MODULES = (
    "confinement",
    *(f"measure/{name}" for name in ("runner", "preparing", "serving", "inputs", "machine", "watch")),
    *(f"measure/runtimes/{name}" for name in ("base", "compare", *NAMES, CONVERTED)),
)
_VALUES = "inputs.npz"


@dataclass(frozen=True)
class Artefact:
    """A runtime's files of one ONNX file, and the .npz with the inputs and ONNX Runtime's outputs.

    ``about``: names, shapes and types of both, the description of the inputs, and the tolerance of the outputs.
    """

    files: tuple[Path, ...]
    arrays: Path
    about: dict[str, Any]


@dataclass(frozen=True)
class MeasuringJob:
    """Groups of files to measure together, {name: path} each, and how.

    ``rounds`` samples of at least ``sample_ms`` each; with ``group_seconds`` as many rounds as fit in that time, at least
    ``least_rounds``. With ``evict_bytes``, that much memory is touched before each sample, which is then a single run.
    ``batch`` must equal a fixed batch in a file; 0: the file's, or 1. ``cold`` also loads each file in a new process,
    ``profile`` measures time by operator. ``shapes`` are sizes by input name, ``values`` the content of a .npz with arrays
    by input name. ``seconds`` is the limit for loading, the first run and every other run, ``memory`` the limit in bytes
    for the process (None: a share of the target's memory). ``artefacts`` are what ``runtime`` loads instead of the files, if
    it does not load ONNX files.
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
    runtime: str = DEFAULT
    artefacts: Mapping[Path, Artefact] = field(default_factory=dict)

    def paths(self) -> list[Path]:
        """Every file once, in order; targets may use its index as its name."""
        return list(dict.fromkeys(path for group in self.groups for path in group.values()))

    def read(self) -> list[Path]:
        """Every file that the runner reads: the files, or what the runtime loads instead."""
        made = [self.artefacts[path] for path in self.paths() if path in self.artefacts]
        if not made:
            return self.paths()
        return list(dict.fromkeys(path for artefact in made for path in (*artefact.files, artefact.arrays)))

    def to_json(self, names: dict[Path, str]) -> dict[str, Any]:
        """The job as runner.py reads it, with the target's names of the files."""
        options = {name: value for name, value in vars(self).items() if name not in ("groups", "values", "artefacts")}
        options["values"] = None if self.values is None else _VALUES
        groups = [[self._model(name, path, names) for name, path in group.items()] for group in self.groups]
        return {**options, "groups": groups}

    def _model(self, name: str, path: Path, names: dict[Path, str]) -> dict[str, Any]:
        if path not in self.artefacts:
            return {"name": name, "file": names[path]}
        artefact = self.artefacts[path]
        files = [names[file] for file in artefact.files]
        return {"name": name, "file": files[-1], "files": files, "arrays": names[artefact.arrays], **artefact.about}


class Target(Protocol):
    """A place that runs jobs in ``runtime``. ``name`` is its name in records and tables."""

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    def run(self, job: MeasuringJob) -> Iterator[dict[str, Any]]:
        """The runner's answers as they arrive. Raises DeviceError if the target or the runtime fails."""
        ...

    def environment(self) -> dict[str, Any]:
        """The machine: processor, instruction sets, cores, system, runtime."""
        ...


class ModelRefused(DeviceError):
    """The target's runtime cannot load or run ``model``, a name in the job, for ``reason``."""

    def __init__(self, target: str, model: str, reason: str) -> None:
        super().__init__(f"{target} cannot measure{f' {model}' if model else ''}: {reason}")
        self.model, self.reason = model, reason


class InputsRefused(ModelRefused):
    """The given inputs do not fit a file, or some are missing; ``model`` is "" if no file has the input."""


class LimitReached(ModelRefused):
    """``model`` needs more time or memory than the job allows."""


class Silent(DeviceError):
    """A target was silent for too long."""


class Flood(DeviceError):
    """A target sent a line longer than any answer."""


def work_folder(job: MeasuringJob, names: dict[Path, str]) -> dict[str, bytes]:
    """The files, by path, of the folder in which ``python -m lrexport.measure.runner job.json`` runs the job.

    ``names`` are the target's names of the files to measure. The folder includes the runner's package: every target uses the
    same one, whatever is installed.
    """
    values = {} if job.values is None else {_VALUES: job.values}
    return {**modules(), **values, "job.json": json.dumps(job.to_json(names)).encode()}


def modules() -> dict[str, bytes]:
    """The runner's package, by path: the same for every target, whatever is installed there."""
    packages = {f"lrexport/{name}__init__.py": b"" for name in ("", "measure/", "measure/runtimes/")}
    return {**packages, **{f"lrexport/{name}.py": (_PACKAGE / f"{name}.py").read_bytes() for name in _MODULES}}


def write_all(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by their paths in ``folder``."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """A process in its own group: Ctrl-C reaches only lrexport, which then ends the process properly."""
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=os.name == "posix", **options)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of :func:`start` and its children, unless it has ended."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS raises the second for a dead group
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def lines_of(process: subprocess.Popen[bytes], most_bytes: int, most_silent_seconds: float | None = None) -> Iterator[str]:
    """Lines of stdout as they arrive. Raises Silent if the next one is late, Flood if it is too long."""
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
    """The last part of a process's stderr, read continuously so that the process never blocks."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        """The last part written so far; complete if the process has ended."""
        self._thread.join(_FAREWELL_SECONDS)
        return self.so_far()

    def so_far(self) -> str:
        """The last part written so far, at once."""
        return self._kept.decode(errors="replace")

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := stream.read1(_TAIL_BYTES):  # type: ignore[attr-defined]
                self._kept = (self._kept + chunk)[-_TAIL_BYTES:]


def last_line(text: str) -> str:
    """The last non-empty line, truncated."""
    return next((line.strip()[:_MOST_WORDS] for line in reversed(text.splitlines()) if line.strip()), "")
