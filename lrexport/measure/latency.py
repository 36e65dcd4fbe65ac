"""Latency of ONNX files on a target, and each file's ratio to a baseline, round by round.

Protocol: one process, all files interleaved in shuffled order, warm-up until stable and at least ten runs, at least fifty
rounds, every sample at least 0.3 ms by inner repeats, one thread by default, spinning off, all optimisations on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError
from lrexport.measure.runtimes import onnxruntime as runtime
from lrexport.measure.statistics import spread
from lrexport.measure.targets import MeasuringJob, Target
from lrexport.measure.targets.local import Local
from lrexport.runs.figures import Latency

LEAST_ROUNDS = 50
# A spread this wide, relative to the median, means that the machine was busy.
_NOISY = 0.2
_FIGURES = ("load_ms", "first_run_ms", "peak_bytes", "operators_ms")
JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """Latency by file name, and the target's machine before and after; after is None if the target was lost.

    ``nodes_ms`` has, for a profiled file, the milliseconds of each node of the optimised graph; ``samples_ms`` the
    milliseconds of each file round by round, in the same rounds for all; ``inputs`` the shape, type and values of each
    file's inputs.
    """

    latencies: dict[str, Latency]
    environment: JsonObject
    after: JsonObject | None
    nodes_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    inputs: dict[str, JsonObject] = field(default_factory=dict)


class Interrupted(DeviceError):
    """The target failed during a measurement; ``measurement`` has the figures so far, marked as partial."""

    def __init__(self, cause: DeviceError, measurement: Measurement) -> None:
        super().__init__(cause.message, cause.hint)
        self.measurement = measurement


def session(path: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU. Raises DeviceError if the runtime refuses the file."""
    import onnxruntime

    try:
        return runtime.session(path, threads)
    except Exception as error:  # onnxruntime's exceptions have no common base except Exception
        raise DeviceError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def measure_latency(
    files: Mapping[str, Path], baseline: str | None = None, options: MeasuringJob | None = None, target: Target | None = None
) -> dict[str, Latency]:
    """The latencies of :func:`measure` alone."""
    return measure(files, baseline, options, target).latencies


def measure(
    files: Mapping[str, Path],
    baseline: str | None = None,
    options: MeasuringJob | None = None,
    target: Target | None = None,
    on_progress: Callable[[JsonObject], None] = lambda progress: None,
) -> Measurement:
    """Milliseconds of one inference per file, and each file's ratio to ``baseline`` round by round.

    ``options`` is a job, whose groups are ignored. ``on_progress`` gets the runner's progress about once a second. Raises
    DeviceError if a file or the target fails, Interrupted if that happens after the first rounds.
    """
    job = replace(options or MeasuringJob(()), groups=(dict(files),))
    before: JsonObject = {}
    after: JsonObject | None = None
    figures: dict[str, JsonObject] = {}
    so_far: dict[str, list[float]] = {name: [] for name in files}
    try:
        for answer in (target or Local()).run(job):
            before = answer.get("environment", before)
            after = answer.get("done", after)
            figures = answer.get("models", figures)
            if "progress" in answer:
                for name, samples in answer["progress"].get("samples_ms", {}).items():
                    so_far[name] += samples
                on_progress(answer["progress"])
    except DeviceError as error:
        if figures or not all(so_far.values()):
            raise
        figures = {name: {"samples_ms": samples} for name, samples in so_far.items()}
        raise Interrupted(error, Measurement(_summaries(figures, baseline, job, before, None), before, None)) from error
    return Measurement(
        _summaries(figures, baseline, job, before, after),
        before,
        after,
        nodes_ms={name: measured["nodes_ms"] for name, measured in figures.items() if "nodes_ms" in measured},
        samples_ms={name: measured["samples_ms"] for name, measured in figures.items()},
        inputs={name: measured["inputs"] for name, measured in figures.items() if "inputs" in measured},
    )


def slowed_down(before: JsonObject, after: JsonObject) -> str | None:
    """Why the machine was slowed down between two of its reports, if it was."""
    if after.get("throttled", 0) > before.get("throttled", 0):
        return "throttled for heat"
    if after.get("governor") != before.get("governor") and after:
        return f"governor {before.get('governor')}, then {after.get('governor')}"
    reasons = {**dict.fromkeys(before.get("slowed", ())), **dict.fromkeys(after.get("slowed", ()))}
    return ", ".join(reasons) or None


def _summaries(
    figures: Mapping[str, JsonObject], baseline: str | None, job: MeasuringJob, before: JsonObject, after: JsonObject | None
) -> dict[str, Latency]:
    against = figures[baseline]["samples_ms"] if baseline is not None else None
    reason = slowed_down(before, after or {})
    slowed = f"inconclusive: the processor was slowed down ({reason})" if reason else None
    summaries = {}
    for name, measured in figures.items():
        others = against if name != baseline else None
        warning = _partial(measured, job) or slowed
        summaries[name] = _summary(measured["samples_ms"], others, job, measured, warning)
    return summaries


def _partial(figures: JsonObject, job: MeasuringJob) -> str | None:
    rounds = len(figures["samples_ms"])
    if rounds < job.rounds:
        return f"partial: {rounds} of {job.rounds} rounds before the target was lost"
    if rounds < LEAST_ROUNDS:
        return f"inconclusive: {rounds} rounds; at least {LEAST_ROUNDS} are needed"
    return None


def _summary(
    times: Sequence[float], baseline: Sequence[float] | None, job: MeasuringJob, figures: JsonObject, warning: str | None
) -> Latency:
    spread_ms, ratios = spread(times), None
    if baseline is not None:
        ratios = spread([mine / other for mine, other in zip(times, baseline, strict=True)])
    if warning is None and spread_ms.iqr > _NOISY * spread_ms.p50:
        warning = f"inconclusive: the IQR is {100 * spread_ms.iqr / spread_ms.p50:.0f} % of the median"
    return Latency(
        p50=spread_ms.p50,
        p90=spread_ms.p90,
        p99=spread_ms.p99,
        iqr=spread_ms.iqr,
        rounds=len(times),
        threads=job.threads,
        batch=figures.get("batch", job.batch or 1),
        ratio=ratios.p50 if ratios else None,
        ratio_iqr=(ratios.p25, ratios.p75) if ratios else None,
        warning=warning,
        **{name: figures[name] for name in _FIGURES if name in figures},
    )
