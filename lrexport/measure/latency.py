"""Latency of ONNX files on a target, and each file's ratio to a baseline, round by round.

Protocol: one process, all files interleaved in shuffled order, warm up until stable and at least ten runs, at least fifty
rounds, every sample at least 0.3 ms by inner repeats, one thread unless asked, spinning off, all optimisations on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrexport.errors import DeviceError
from lrexport.measure import runner
from lrexport.measure.statistics import spread
from lrexport.measure.targets import Job, Target
from lrexport.measure.targets.local import Local
from lrexport.record import Latency

# A spread this wide relative to the median says that the machine was busy.
_NOISY = 0.2


def session(path: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU. Raises DeviceError when the runtime refuses the file."""
    import onnxruntime

    try:
        return runner.session(path, threads)
    except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
        raise DeviceError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def measure_latency(
    files: Mapping[str, Path], baseline: str | None = None, options: Job | None = None, target: Target | None = None
) -> dict[str, Latency]:
    """Milliseconds of one inference per file, and each file's ratio to ``baseline`` round by round.

    ``options`` is a job, whose groups are not looked at. Raises DeviceError where a file or the target fails.
    """
    job = replace(options or Job(()), groups=(dict(files),))
    found = next(answer["models"] for answer in (target or Local()).run(job) if "models" in answer)
    samples = {name: figures.pop("samples_ms") for name, figures in found.items()}
    against = samples[baseline] if baseline is not None else None
    return {name: _summary(samples[name], against, job, found[name]) for name in files}


def _summary(times: Sequence[float], baseline: Sequence[float] | None, job: Job, figures: dict[str, Any]) -> Latency:
    found, ratios = spread(times), None
    if baseline is not None and baseline is not times:
        ratios = spread([mine / other for mine, other in zip(times, baseline, strict=True)])
    noisy = found.iqr > _NOISY * found.p50
    return Latency(
        p50=found.p50,
        p90=found.p90,
        p99=found.p99,
        iqr=found.iqr,
        rounds=len(times),
        threads=job.threads,
        batch=job.batch,
        ratio=ratios.p50 if ratios else None,
        ratio_iqr=(ratios.p25, ratios.p75) if ratios else None,
        warning=f"inconclusive: the IQR is {100 * found.iqr / found.p50:.0f} % of the median" if noisy else None,
        **{name: figures[name] for name in ("load_ms", "first_run_ms", "peak_bytes", "operators_ms") if name in figures},
    )
