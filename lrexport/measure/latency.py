"""Latency of ONNX files on this machine: one process, all files interleaved in shuffled order.

Protocol: warm up until stable and at least ten runs, at least fifty rounds, every sample at least 0.3 ms by inner
repeats, one thread unless asked, spinning off, all optimisations on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrexport.errors import DeviceError
from lrexport.measure.statistics import spread
from lrexport.record import Latency

_WARMUP_RUNS = 10
_MOST_WARMUP_SECONDS = 3.0
_SAMPLE_SECONDS = 0.3e-3
# A spread this wide relative to the median says that the machine was busy.
_NOISY = 0.2


def session(path: Path, threads: int = 1) -> Any:
    """An ONNX Runtime session on the CPU. Raises DeviceError when the runtime refuses the file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
        raise DeviceError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {error}") from error


def measure_latency(
    files: Mapping[str, Path], baseline: str, rounds: int = 50, threads: int = 1, batch: int = 1, seed: int = 0
) -> dict[str, Latency]:
    """Milliseconds of one inference per file, and each file's ratio to ``baseline`` round by round."""
    runs = {name: _runner(path, threads, batch, seed) for name, path in files.items()}
    repeats = {name: _warm_up(run) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in files}
    order, shuffler = list(files), random.Random(seed)
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            samples[name].append(_sample(runs[name], repeats[name]))
    return {name: _summary(times, samples[baseline], rounds, threads, batch) for name, times in samples.items()}


def _summary(times: list[float], baseline: list[float], rounds: int, threads: int, batch: int) -> Latency:
    found = spread([1e3 * value for value in times])
    ratios = spread([mine / other for mine, other in zip(times, baseline, strict=True)])
    noisy = found.iqr > _NOISY * found.p50
    return Latency(
        p50=found.p50,
        p90=found.p90,
        p99=found.p99,
        iqr=found.iqr,
        rounds=rounds,
        threads=threads,
        batch=batch,
        ratio=None if times is baseline else ratios.p50,
        ratio_iqr=None if times is baseline else (ratios.p25, ratios.p75),
        warning=f"inconclusive: the IQR is {100 * found.iqr / found.p50:.0f} % of the median" if noisy else None,
    )


def _runner(path: Path, threads: int, batch: int, seed: int) -> Any:
    runtime = session(path, threads)
    given = runtime.get_inputs()[0]
    shape = [size if isinstance(size, int) else batch for size in given.shape]
    feed = {given.name: np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}
    names = [runtime.get_outputs()[0].name]
    return lambda: runtime.run(names, feed)


def _warm_up(run: Any) -> int:
    """Run until the last five times are within 5 % of the five before, then say how many runs make one sample."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < _WARMUP_RUNS or time.perf_counter() - began < _MOST_WARMUP_SECONDS:
        times.append(_sample(run, 1))
        if len(times) >= _WARMUP_RUNS:
            before, last = np.median(times[-10:-5]), np.median(times[-5:])
            if abs(last - before) <= 0.05 * before:
                break
    return max(1, int(np.ceil(_SAMPLE_SECONDS / float(np.median(times[-5:])))))


def _sample(run: Any, repeats: int) -> float:
    """Seconds of one inference."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats
