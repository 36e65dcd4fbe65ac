"""What every target does: run one measuring job of the runner and yield its answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from lrexport.errors import DeviceError

_MEASURE = Path(__file__).parents[1]
# What the runner is made of.
_MODULES = ("runner", "inputs", "machine")
_VALUES = "inputs.npz"


@dataclass(frozen=True)
class Job:
    """Groups of files that are measured together, {name: path} each, and how.

    ``rounds`` samples of at least ``sample_ms`` each; with ``group_seconds`` as many rounds as fit in that time, at least
    ``least_rounds``. With ``evict_bytes`` so much memory is touched before each sample, which is one run then. ``batch``
    must be that of files with a fixed one; 0 is theirs, or one. ``cold`` also loads each file in a process of its own,
    ``profile`` tells time by operator. ``shapes`` are sizes of inputs by name, ``values`` the content of a .npz with arrays
    for inputs by name.
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

    def run(self, job: Job) -> Iterator[dict[str, Any]]:
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


class Silent(DeviceError):
    """A target said nothing for too long."""


def work_folder(job: Job, names: dict[Path, str]) -> dict[str, bytes]:
    """The files, by path, of the folder in which ``python -m lrexport.measure.runner job.json`` does the job.

    ``names`` are those that the target gave the files to measure. The runner has a package of its own there, so that it is
    the same one everywhere, whatever is installed.
    """
    modules = {f"lrexport/measure/{name}.py": (_MEASURE / f"{name}.py").read_bytes() for name in _MODULES}
    packages = {"lrexport/__init__.py": b"", "lrexport/measure/__init__.py": b""}
    values = {} if job.values is None else {_VALUES: job.values}
    return {**packages, **modules, **values, "job.json": json.dumps(job.to_json(names)).encode()}


def answers(lines: Iterable[str], target: str, ended_early: Callable[[], DeviceError]) -> Iterator[dict[str, Any]]:
    """The runner's answers up to the last. Raises DeviceError for an error among them, or ``ended_early()``."""
    for line in lines:
        try:
            answer = json.loads(line)
        except ValueError:  # what a login script or a library prints
            continue
        if not isinstance(answer, dict):
            continue
        if "error" in answer:
            raise _failure(answer, target)
        yield answer
        if "done" in answer:
            return
    raise ended_early()


def _failure(answer: dict[str, Any], target: str) -> DeviceError:
    if answer.get("is_about_inputs"):
        return InputsRefused(target, answer.get("model", ""), answer["error"])
    if "model" in answer:
        return ModelRefused(target, answer["model"], answer["error"])
    message = f"{target} cannot measure: {answer['error']}"
    if "missing" in answer:
        return DeviceError(message, f"Install it there: {answer['python']} -m pip install {answer['missing']}")
    return DeviceError(message)


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


def lines_of(process: subprocess.Popen[bytes], most_silent_seconds: float | None = None) -> Iterator[str]:
    """Lines of stdout as they come. Raises Silent where the next one does not come in time."""
    found: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_pass_on, args=(process.stdout, found), daemon=True).start()
    while True:
        try:
            line = found.get(timeout=most_silent_seconds)
        except queue.Empty:
            raise Silent(f"no answer for {most_silent_seconds:g} s") from None
        if not line:
            return
        yield line.decode(errors="replace")


def _pass_on(stream: IO[bytes], found: queue.SimpleQueue[bytes]) -> None:
    with stream:
        for line in stream:
            found.put(line)
    found.put(b"")


def last_line(text: str) -> str:
    """The last line with something in it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
