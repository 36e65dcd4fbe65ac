"""Measures ONNX files with ONNX Runtime. Self-contained: it is also sent to devices, where lrexport is not installed.

    python runner.py JOB.json

Needs Python 3.9, numpy and onnxruntime only. The job names groups of files; the files of a group are loaded together and
timed in shuffled order, round by round, so that what slows the machine down slows all of them. Every answer is one line
of JSON on stdout: first {"environment": …}, then {"group": index, "models": {name: figures}} for each group as soon as it
is done, or {"error": …}; last {"done": environment}, whose throttling and temperature may differ from the first.

Protocol: warm up until stable; every sample at least ``sample_ms`` by inner repeats; spinning off; all optimisations on.
"""

# Devices may have an older Python than the rest of lrexport asks for.
from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

Facts = dict[str, Any]

# Instruction sets that decide which kernels a runtime takes.
_ISA = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
_MOST_WARMUP_SECONDS = 3.0
_STABLE = 0.05


def session(path: Any, threads: int = 1, profile_prefix: str | None = None) -> Any:
    """An ONNX Runtime session on the CPU; ``threads`` 0 leaves the number to the runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_group(models: Sequence[Facts], job: Facts) -> dict[str, Facts]:
    """Figures of the models of one group: {name: {"samples_ms": […], "repeats": n}}, one sample a round.

    Rounds are ``job["rounds"]``; with ``job["group_seconds"]`` as many of them as fit, and at least ``least_rounds``.
    """
    runs = {model["name"]: _load(model, job) for model in models}
    single = {name: _warm_up(run, job) for name, run in runs.items()}
    repeats = {name: max(1, -int(-job["sample_ms"] // (1e3 * seconds))) for name, seconds in single.items()}
    rounds = job["rounds"]
    if job.get("group_seconds"):
        a_round = sum(single[name] * repeats[name] for name in runs)
        rounds = max(job["least_rounds"], min(rounds, int(job["group_seconds"] / a_round)))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffler = list(runs), random.Random(job["seed"])
    for _ in range(rounds):
        shuffler.shuffle(order)
        for name in order:
            samples[name].append(1e3 * _sample(runs[name], repeats[name]))
    return {name: {"samples_ms": samples[name], "repeats": repeats[name]} for name in runs}


def _load(model: Facts, job: Facts) -> Callable[[], Any]:
    try:
        return _run_of(session(model["file"], job["threads"]), job)
    except Exception as error:  # the runtime's exceptions share no base but Exception
        raise RuntimeError(f"{model['name']}: {error}") from error


def _run_of(runtime: Any, job: Facts) -> Callable[[], Any]:
    feed = _feed(runtime, job)
    names = [runtime.get_outputs()[0].name]
    return lambda: runtime.run(names, feed)


def _feed(runtime: Any, job: Facts) -> Facts:
    """Random inputs, with the asked batch where a size is open."""
    import numpy

    generator = numpy.random.default_rng(job["seed"])
    feed: Facts = {}
    for given in runtime.get_inputs():
        shape = [size if isinstance(size, int) else job["batch"] for size in given.shape]
        kind = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64"}.get(given.type)
        if kind is None:
            raise ValueError(f"input {given.name!r} is {given.type}; a tensor of floats was wanted")
        feed[given.name] = generator.standard_normal(shape).astype(kind)
    return feed


def _warm_up(run: Callable[[], Any], job: Facts) -> float:
    """Seconds of one run, once the last few times agree with the few before."""
    times: list[float] = []
    runs = job["warmup_runs"]
    few, began = max(1, runs // 2), time.perf_counter()
    while len(times) < runs or time.perf_counter() - began < _MOST_WARMUP_SECONDS:
        times.append(_sample(run, 1))
        if len(times) >= runs:
            before, last = _median(times[-2 * few : -few]), _median(times[-few:])
            if abs(last - before) <= _STABLE * before or job.get("group_seconds"):
                break
    return _median(times[-few:])


def _sample(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - began) / repeats


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def cold(file: str, job: Facts) -> Facts:
    """What loading costs in a fresh process: load and first run in milliseconds, and the memory both added, in bytes."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    before = _peak_bytes()
    began = time.perf_counter()
    runtime = session(file, job["threads"])
    loaded = time.perf_counter()
    _run_of(runtime, job)()
    ran = time.perf_counter()
    return {"load_ms": 1e3 * (loaded - began), "first_run_ms": 1e3 * (ran - loaded), "peak_bytes": _peak_bytes() - before}


def _cold_in_child(file: str, job: Facts) -> Facts:
    command = [sys.executable, os.path.abspath(__file__), "--cold", file, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, timeout=600)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(last[0] if last else f"ended with {done.returncode}")
    return json.loads(done.stdout.decode())


def _peak_bytes() -> int:
    """The most memory that this process has had resident."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def profile(file: str, job: Facts, runs: int = 20) -> dict[str, float]:
    """Milliseconds of one run by kind of operator, as the runtime's own profiler tells them."""
    prefix = os.path.join(os.path.dirname(os.path.abspath(file)), f"profile-{os.getpid()}")
    runtime = session(file, job["threads"], prefix)
    run = _run_of(runtime, job)
    for _ in range(runs):
        run()
    written = runtime.end_profiling()
    try:
        with open(written, encoding="utf-8") as events:
            found = json.load(events)
    finally:
        os.unlink(written)
    # The first run also loads; its events are left out by their order.
    nodes = [event for event in found if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    spent: dict[str, float] = {}
    skip = len(nodes) // runs
    for event in nodes[skip:]:
        operator = event["args"]["op_name"]
        spent[operator] = spent.get(operator, 0.0) + event["dur"] / 1e3 / (runs - 1)
    return spent


def environment() -> Facts:
    """The machine as it is now: processor and its instruction sets, cores, governor, throttling, temperature, versions."""
    facts: Facts = {
        "cpu": cpu_model(),
        "isa": isa(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name, value in (
        ("governor", _line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        ("throttled", _throttle_count()),
        ("celsius", _celsius()),
    ):
        if value is not None:
            facts[name] = value
    try:
        import onnxruntime

        facts["onnxruntime"] = onnxruntime.__version__
    except ImportError:
        pass
    return facts


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    for key in ("model name", "Hardware", "Model"):
        if found := _cpuinfo(key):
            return found
    name = _line("/proc/device-tree/model")
    return name.strip("\0") if name else platform.processor() or platform.machine()


def isa() -> list[str]:
    """Instruction sets beyond the architecture's base, those that runtimes choose kernels by."""
    flags = (_cpuinfo("flags") or _cpuinfo("Features") or "").split()
    return [name for name in _ISA if name in flags]


def _cpuinfo(key: str) -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        pass
    return None


def _throttle_count() -> int | None:
    """How often the processor has slowed itself down for heat since the start, on x86."""
    found = _line("/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count")
    return int(found) if found else None


def _celsius() -> float | None:
    """The hottest of the thermal zones."""
    import glob

    found = [_line(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    degrees = [int(value) / 1e3 for value in found if value and value.lstrip("-").isdigit()]
    return max(degrees) if degrees else None


def _line(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip() or None
    except OSError:
        return None


def main(path: str) -> int:
    """Do the job in ``path``; files in it are relative to its folder. Returns the exit status."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    os.chdir(os.path.dirname(os.path.abspath(path)))
    _say({"environment": environment()})
    for index, models in enumerate(job["groups"]):
        try:
            # Before any session is loaded: a child starts with what its parent has in memory.
            first = {model["name"]: _cold_in_child(model["file"], job) if job.get("cold") else {} for model in models}
            figures = measure_group(models, job)
            for model in models:
                name = model["name"]
                figures[name].update(first[name])
                if job.get("profile"):
                    figures[name]["operators_ms"] = profile(model["file"], job)
        except Exception as error:  # whatever it is, the other side must hear of it
            _say({"group": index, "error": str(error) or type(error).__name__})
            return 1
        _say({"group": index, "models": figures})
    _say({"done": environment()})
    return 0


def _say(value: Facts) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "--cold":
        print(json.dumps(cold(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        sys.exit(main(sys.argv[1]))
