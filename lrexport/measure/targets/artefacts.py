"""A runtime's files of a job's ONNX files, made in child processes before the job is measured.

The outputs that they must have come from ONNX Runtime, in this Python; the files from the runtime's toolchain, in the Python
that the target names. Nothing that a toolchain says about its own success is believed: the runner compares the outputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lrexport.errors import DeviceError
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets.answers import Package
from lrexport.measure.targets.base import (
    Artefact,
    Flood,
    InputsRefused,
    LimitReached,
    MeasuringJob,
    ModelRefused,
    Silent,
    Tail,
    last_line,
    lines_of,
    modules,
    start,
    stop,
    write_all,
)

JsonObject = dict[str, Any]
_SECONDS_TO_START = 120
# Limit for a toolchain that writes a run's files.
SECONDS_TO_CONVERT = 600.0
_LINE_BYTES = 4_000_000
_MOST_WORDS = 1_000
_VALUES = "inputs.npz"
# Extras of lrexport that bring a runtime into its environment; others have environments of their own.
EXTRAS = ("openvino", "ncnn")
# Those that bring its quantiser, too.
_INT8_EXTRAS = {"openvino": "openvino-int8"}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    begun: str | None = None
    model: str | None = None
    facts: JsonObject | None = None
    error: str | None = None
    missing: Package | None = None
    is_about_inputs: bool = False
    limit: str | None = None


def prepared(
    job: MeasuringJob, runtime: str, python: str | None, folder: Path, target: str
) -> Iterator[JsonObject | MeasuringJob]:
    """Progress as the runner's answers, then the job with the runtime's files, which are in ``folder``.

    ``python`` has the runtime's toolchain (None: this one). A runtime that loads ONNX files needs no
    others: only the inputs and outputs are made. Raises ModelRefused and its kinds for a file that cannot be had in the
    runtime, DeviceError if a package is missing.
    """
    sources = {path: _key(path) for path in job.paths()}
    models = {key: {"key": key, "file": str(path.resolve())} for path, key in sources.items()}
    named = {sources[path]: name for group in job.groups for name, path in group.items()}
    facts: dict[str, JsonObject] = {}
    write_all(folder, modules())
    chosen = base.runtime(runtime)
    first, last = (["needs"], ["convert"]) if chosen.suffixes else ([], [])
    for stage in (*first, "reference", *(("program",) if chosen.takes_program else ()), *last):
        for key, model in models.items():
            model |= {"arrays": str(folder / f"{key}.npz"), "folder": str(folder / key), **facts.get(key, {})}
        asked = [] if stage == "needs" else list(models.values())
        options = {"stage": stage, "runtime": runtime, "models": asked, **_options(job, folder)}
        child = _Child(folder, options, python if stage in ("needs", "convert") else None, job, target, named)
        for done, (key, more) in enumerate(child.answers(), start=1):
            facts[key] = {**facts.get(key, {}), **more}
            doing = f"converting to {runtime}" if chosen.suffixes else "running in ONNX Runtime"
            yield {"progress": {"stage": doing, "done": done, "of": len(models)}}
    artefacts = {path: _artefact(folder, key, facts[key]) for path, key in sources.items()}
    yield replace(job, runtime=runtime, artefacts=artefacts, shapes={}, values=None)


def check_quantiser(runtime: str, python: str | None, target: str) -> None:
    """Raise DeviceError unless ``python`` (None: this one) has the runtime, its toolchain and its quantiser."""
    with tempfile.TemporaryDirectory(prefix="lrexport-") as name:
        folder, job = Path(name), MeasuringJob(())
        write_all(folder, modules())
        options = {"stage": "needs", "runtime": runtime, "models": [], **_options(job, folder), "int8": True}
        for _ in _Child(folder, options, python, job, target, {}).answers():
            pass


def quantised(
    source: str,
    given: Sequence[Path],
    inputs: Mapping[str, Path],
    zero: Sequence[str],
    runtime: str,
    python: str | None,
    folder: Path,
    target: str,
) -> JsonObject:
    """The int8 files of a runtime's float32 files ``given``, made in ``folder``: ``files``, ``tool`` and ``notes``.

    ``source`` is the name of the network's ONNX file; ``inputs`` and ``zero`` are those of
    :class:`base.Calibration`. Raises ModelRefused and its kinds, DeviceError.
    """
    write_all(folder, modules())
    job = MeasuringJob((), seconds=SECONDS_TO_CONVERT)
    arrays = {name: str(path.resolve()) for name, path in inputs.items()}
    files = [str(path.resolve()) for path in given]
    model = {"key": source, "file": files[-1], "files": files, "inputs": arrays, "zero": list(zero)}
    model["folder"] = str(folder / "int8")
    options = {"stage": "quantise", "runtime": runtime, "models": [model], **_options(job, folder), "int8": True}
    ((_, facts),) = _Child(folder, options, python, job, target, {source: source}).answers()
    return facts


def measured_when_prepared(
    job: MeasuringJob,
    python: str | None,
    folder: Path,
    target: str,
    measured: Callable[[MeasuringJob], Iterator[JsonObject]],
) -> Iterator[JsonObject]:
    """The answers of ``measured`` for a job whose runtime has its files, made in ``folder`` before; raises as both."""
    if job.runtime != DEFAULT and job.groups:
        for step in prepared(job, job.runtime, python, folder, target):
            if isinstance(step, MeasuringJob):
                job = step
            else:
                yield step
    yield from measured(job)


def _key(path: Path) -> str:
    """Files with the same content are converted once. Raises DeviceError."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise DeviceError(f"cannot read {path}: {error.strerror}") from error


def _options(job: MeasuringJob, folder: Path) -> JsonObject:
    if job.values is not None:
        (folder / _VALUES).write_bytes(job.values)
    return {
        "values": None if job.values is None else _VALUES,
        "shapes": {name: list(shape) for name, shape in job.shapes.items()},
        "threads": job.threads,
        "batch": job.batch,
        "seed": job.seed,
        "seconds": job.seconds,
        "memory": job.memory,
        "int8": False,
    }


def _artefact(folder: Path, key: str, facts: Mapping[str, Any]) -> Artefact:
    about = {name: facts[name] for name in ("ports", "fed", "tolerance", "has_open_sizes")} | {
        "notes": facts.get("notes", [])
    }
    about["version"] = facts.get("version", "")
    return Artefact(tuple(map(Path, facts.get("files", ()))), folder / f"{key}.npz", about)


class _Child:
    """One stage in a process of its own, under the Python ``program`` (None: this one)."""

    def __init__(
        self,
        folder: Path,
        options: JsonObject,
        program: str | None,
        job: MeasuringJob,
        target: str,
        named: Mapping[str, str],
    ) -> None:
        self._folder, self._options, self._job, self._target, self._named = folder, options, job, target, named
        self._program, self._python = program, program or sys.executable
        self._current = ""

    def answers(self) -> Iterator[tuple[str, JsonObject]]:
        """Each model's key with its facts, as soon as it is done."""
        asked = self._folder / "prepare.json"
        asked.write_text(json.dumps(self._options), encoding="utf-8")
        command = [self._python, "-m", "lrexport.measure.preparing", str(asked), str(os.getpid())]
        place, environment = self._folder, surroundings(self._folder, self._program)
        if self._options["stage"] == "program":  # with all of lrexport, not with the runner's modules alone
            place, environment = self._folder / "programs", {**os.environ, "TMPDIR": str(self._folder)}
            place.mkdir()
        process = started(command, self._target, stderr=subprocess.PIPE, cwd=place, env=environment)
        assert process.stderr is not None
        messages, done = Tail(process.stderr), 0
        try:
            for line in lines_of(process, _LINE_BYTES, 2 * self._job.seconds + _SECONDS_TO_START):
                answer = self._checked(line)
                self._current = answer.begun or self._current
                if answer.error is not None:
                    raise self._failure(answer)
                if answer.model is not None and answer.facts is not None:
                    done += 1
                    yield answer.model, answer.facts
            if process.wait() or done < len(self._options["models"]):
                raise self._crashed(process.returncode, messages)
        except (Silent, Flood) as error:
            raise DeviceError(f"{self._target}: the conversion gave {error.message}") from error
        finally:
            stop(process)

    def _checked(self, line: str) -> _Answer:
        try:
            return _Answer.model_validate_json(line)
        except ValidationError as error:
            raise DeviceError(f"{self._target}: the conversion gave an answer that is not lrexport's") from error

    def _failure(self, answer: _Answer) -> DeviceError:
        words = (answer.error or "")[:_MOST_WORDS]
        if answer.missing is not None:
            hint = install_hint(self._options["runtime"], self._python, self._options["int8"])
            return DeviceError(f"{self._target} cannot be used: {words}", hint)
        model = self._named.get(answer.model or "", "")
        if answer.is_about_inputs:
            return InputsRefused(self._target, model, words)
        return (LimitReached if answer.limit else ModelRefused)(self._target, model, words)

    def _crashed(self, status: int, messages: Tail) -> DeviceError:
        ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        words = last_line(messages.text())
        reason = f"the process that {self._doing()} it {ended}{f': {words}' if words else ''}"
        model = self._named.get(self._current)
        return ModelRefused(self._target, model, reason) if model else DeviceError(f"{self._target}: {reason}")

    def _doing(self) -> str:
        return {"convert": "converts", "quantise": "quantises"}.get(self._options["stage"], "runs")


def started(command: list[str], target: str, **options: Any) -> subprocess.Popen[bytes]:
    """:func:`start`. Raises DeviceError if the Python in ``command`` cannot be run."""
    try:
        return start(command, **options)
    except OSError as error:
        message = f"{target}: cannot run the Python {command[0]}: {error.strerror}"
        raise DeviceError(message, "Check python=… of the target.") from error


def surroundings(folder: Path, python: str | None) -> dict[str, str]:
    """Environment variables of a process that uses the runner's modules in ``folder`` and leaves its own files there.

    Another Python than this one (None) gets none of this one's modules.
    """
    elsewhere = os.getenv("PYTHONPATH") if python is None else None
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), elsewhere))), "TMPDIR": str(folder)}


def install_hint(runtime: str, python: str, int8: bool = False) -> str:
    """How to install what a runtime needs, for ``int8`` with its quantiser, into that Python."""
    chosen = base.runtime(runtime)
    if runtime in EXTRAS and python == sys.executable:
        return f"Install it: pip install 'lrexport[{_INT8_EXTRAS.get(runtime, runtime) if int8 else runtime}]'"
    parts = (chosen.needs, chosen.converter, *((chosen.quantiser,) if int8 else ()))
    needs = list(dict.fromkeys(package for part in parts for package in part.values()))
    if chosen.takes_program:  # the torch that writes programs is the one that reads them
        own = metadata.version("torch").partition("+")[0]
        needs = [f"torch=={own}" if package == "torch" else package for package in needs]
    return f"Install it there: {shlex.quote(python)} -m pip install {' '.join(needs)}"
