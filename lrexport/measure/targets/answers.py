"""Answers of a target's runner, validated before use: a device may be broken or untrusted."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lrexport.errors import DeviceError
from lrexport.measure.runtimes import base
from lrexport.measure.targets.base import InputsRefused, LimitReached, MeasuringJob, ModelRefused

# Lines that are not answers, from login scripts and libraries.
_MOST_NOISE, _NOISE_A_LINE = 4_000_000, 100
# One per second for ten days.
_MOST_PROGRESS = 1_000_000
_MOST_WORDS = 1_000
_LINE_BYTES, _SAMPLE_BYTES = 32_000_000, 64

_Text = Annotated[str, Field(max_length=500)]
_Words = Annotated[list[_Text], Field(max_length=100)]
_Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _known(package: str) -> str:
    if package not in base.packages():
        raise ValueError("not a package that a runtime needs")
    return package


# The name ends up in a command to copy.
Package = Annotated[str, AfterValidator(_known)]
_Samples = list[Annotated[float, Field(gt=0, allow_inf_nan=False)]]
_Times = Mapping[str, _Milliseconds]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Environment(_Answer):
    cpu: _Text
    isa: _Words
    cores: _Count
    system: _Text
    python: _Text | None = None
    timer_us: _Milliseconds | None = None
    governor: _Text | None = None
    throttled: _Count | None = None
    slowed: _Words | None = None
    celsius: Annotated[float, Field(allow_inf_nan=False)] | None = None
    onnxruntime: _Text | None = None
    runtime: _Text | None = None
    runtime_version: _Text | None = None
    precision: _Text | None = None


class _Input(_Answer):
    shape: Annotated[list[_Count], Field(max_length=64)]
    dtype: _Text
    values: _Text


class _Figures(_Answer):
    samples_ms: _Samples
    repeats: Annotated[_Count, Field(ge=1)]
    batch: _Count
    inputs: dict[str, _Input]
    load_ms: _Milliseconds | None = None
    first_run_ms: _Milliseconds | None = None
    peak_bytes: _Count | None = None
    operators_ms: _Times | None = None
    nodes_ms: _Times | None = None


class _Progress(_Answer):
    stage: _Text
    group: _Count | None = None
    model: str | None = None
    done: _Count | None = None
    of: _Count | None = None
    bytes: _Count | None = None
    of_bytes: _Count | None = None
    samples_ms: dict[str, _Samples] | None = None


class _First(_Answer):
    environment: _Environment


class _Under(_Answer):
    progress: _Progress


class _Group(_Answer):
    group: _Count
    models: dict[str, _Figures]


class _Last(_Answer):
    done: _Environment


class _Failed(_Answer):
    error: str
    group: _Count | None = None
    model: str | None = None
    is_about_inputs: bool = False
    limit: Literal["time", "memory"] | None = None
    missing: Package | None = None
    python: _Text | None = None


# By a key that only one kind of answer has, in the order in which they are tested.
_KINDS: dict[str, type[_Answer]] = {
    "error": _Failed,
    "models": _Group,
    "progress": _Under,
    "environment": _First,
    "done": _Last,
}


def most_line_bytes(job: MeasuringJob) -> int:
    """The largest length of a line of an answer to ``job``."""
    return _LINE_BYTES + _SAMPLE_BYTES * job.rounds * max(map(len, job.groups), default=0)


def answers(
    lines: Iterable[str], job: MeasuringJob, target: str, ended_early: Callable[[], DeviceError]
) -> Iterator[dict[str, Any]]:
    """The runner's validated answers to ``job``.

    Raises DeviceError for an error among them or an answer that the runner cannot give, or ``ended_early()``.
    """
    checked, noise = _Checked(job, target), 0
    for line in lines:
        answer = _answer(line)
        if answer is None:
            noise += len(line) + _NOISE_A_LINE
            if noise > _MOST_NOISE:
                raise DeviceError(f"{target} floods its output with text that is not an answer", _hint(target))
            continue
        yield checked.next(answer)
        if checked.is_done:
            return
    raise ended_early()


def _answer(line: str) -> dict[str, Any] | None:
    """A line as JSON if it is an answer of any kind, else None."""
    if not line.startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _KINDS.keys().isdisjoint(value) else None


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(_KINDS[kind])


class _Checked:
    """One job's answers: the environment, then every group in order with its progress, then the environment again."""

    def __init__(self, job: MeasuringJob, target: str) -> None:
        self.job, self.target, self.is_done = job, target, False
        self._began, self._groups, self._progress = False, 0, 0
        self._samples: dict[str, int] = {}

    def next(self, value: dict[str, Any]) -> dict[str, Any]:
        """The validated answer. Raises DeviceError for an error, or if it does not fit the job or the order."""
        kind = next(kind for kind in _KINDS if kind in value)
        try:
            answer = _adapter(kind).validate_python(value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise self._wrong(f"{'.'.join(map(str, first['loc']))[:_MOST_WORDS]}: {first['msg']}") from error
        if isinstance(answer, _Failed):
            raise self._failure(answer)
        if isinstance(answer, _First) is self._began:
            raise self._wrong("the environment must come first and only once")
        self._began = True
        if isinstance(answer, _Group):
            self._check_group(answer)
        elif isinstance(answer, _Under):
            self._check_progress(answer.progress)
        elif isinstance(answer, _Last):
            self.is_done = True
            if self._groups != len(self.job.groups):
                raise self._wrong(f"{self._groups} of {len(self.job.groups)} groups")
        return answer.model_dump(exclude_none=True)  # null means the same as a missing key

    def _check_group(self, answer: _Group) -> None:
        if answer.group != self._groups or answer.group >= len(self.job.groups):
            raise self._wrong(f"group {answer.group}, expected group {self._groups} of {len(self.job.groups)}")
        self._groups, self._samples = self._groups + 1, {}
        if answer.models.keys() != self.job.groups[answer.group].keys():
            raise self._wrong("figures of files that are not in the group")
        counts = {len(figures.samples_ms) for figures in answer.models.values()}
        if len(counts) > 1 or not all(0 < count <= self.job.rounds for count in counts):
            raise self._wrong(f"{' and '.join(map(str, sorted(counts)))} samples of {self.job.rounds} rounds")

    def _check_progress(self, progress: _Progress) -> None:
        self._progress += 1
        if self._progress > _MOST_PROGRESS:
            raise self._wrong("progress without end")
        group = self._names(self._groups)
        if progress.model is not None and progress.model not in group:
            raise self._wrong("progress of a file that is not measured")
        news = progress.samples_ms
        if news is None:
            return
        counts = {len(samples) for samples in news.values()}
        if news.keys() != group.keys() or len(counts) != 1:
            raise self._wrong("samples of only some files of a group")
        for name, samples in news.items():
            self._samples[name] = self._samples.get(name, 0) + len(samples)
            if self._samples[name] > self.job.rounds:
                raise self._wrong(f"more samples than the {self.job.rounds} rounds")

    def _names(self, group: int) -> Mapping[str, object]:
        return self.job.groups[group] if group < len(self.job.groups) else {}

    def _failure(self, answer: _Failed) -> DeviceError:
        words = answer.error[:_MOST_WORDS]
        known = any(answer.model in group for group in self.job.groups)
        if answer.model and not known:
            raise self._wrong("an error about a file that is not measured")
        if answer.is_about_inputs:
            return InputsRefused(self.target, answer.model or "", words)
        if answer.model:
            kind = LimitReached if answer.limit else ModelRefused
            return kind(self.target, answer.model, words)
        message = f"{self.target} cannot measure: {words}"
        if answer.missing and answer.python:
            python = shlex.quote(answer.python)
            return DeviceError(message, f"Install it there: {python} -m pip install {answer.missing}")
        return DeviceError(message)

    def _wrong(self, what: str) -> DeviceError:
        return DeviceError(f"{self.target} gave an answer that is not from lrexport's runner ({what})", _hint(self.target))


def _hint(target: str) -> str:
    return "Another program of the same name may have run." if target == "local" else "Check the device by hand."
