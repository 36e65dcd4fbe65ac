"""Measures ONNX files with ONNX Runtime. Self-contained: it is sent to devices as one file.

    python -m lrexport.measure.runner JOB.json [PARENT]

lrexport is not installed there. Needs Python 3.9, numpy, onnxruntime and the modules sent with it. The job has groups of
files; the files of a group are loaded together and timed in shuffled order, round by round, so that what slows the machine
down slows all of them. Every answer is one line of JSON on stdout: first {"environment": …}, then
{"group": index, "models": {name: figures}} for each group as soon as it is done, or {"error": …}; last
{"done": environment}, whose throttling and temperature may differ from the first. In between, about once a second,
{"progress": …} with the samples since the last one, as a sign of life, and to keep them if the device disappears. The job
also has limits on the time of a stage and on memory.

Protocol: warm-up until stable; every sample at least ``sample_ms`` by inner repeats; spinning off; all optimisations on.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from lrexport.confinement import die_with_parent
from lrexport.measure.inputs import Inputs, InputsError
from lrexport.measure.machine import environment
from lrexport.measure.watch import Watch, confine_to, is_about_memory

JsonObject = dict[str, Any]

_MOST_WARMUP_SECONDS = 3.0
_STABLE = 0.05
_SECONDS_BETWEEN_PROGRESS = 1.0
_CHILD_SECONDS = 60  # for a fresh Python and its imports, beyond what loading and a run may take
_PROFILED_RUNS = 20
_ALLOCATION = re.compile(r"^.*(?=Failed to allocate)", re.DOTALL)  # prefix with a place in the runtime's sources
_KERNEL = "_kernel_time"  # the profiler's suffix of computing nodes


class ModelError(Exception):
    """A model that the runtime cannot load or run; ``name`` is its name in the job.

    ``is_about_inputs``: other sizes or values for its inputs would help; ``limit``: more "time" or "memory" would help.
    """

    def __init__(self, name: str, reason: object, is_about_inputs: bool = False, limit: str | None = None) -> None:
        super().__init__(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(reason)) or type(reason).__name__)
        self.name = name
        self.is_about_inputs = is_about_inputs or isinstance(reason, InputsError)
        self.limit = "memory" if isinstance(reason, Exception) and is_about_memory(reason) else limit

    def facts(self, memory: int | None = None) -> JsonObject:
        """The answer about this error; ``memory`` is the limit in bytes."""
        words = str(self)
        if self.limit == "memory" and memory is not None:
            short = _ALLOCATION.sub("", words).strip()
            words = f"it needs more than its memory limit of {memory / 1e9:.3g} GB ({short})"
        return {"error": words, "model": self.name, "is_about_inputs": self.is_about_inputs, "limit": self.limit}


class ProgressReporter:
    """Reports the progress of a group, at most once a second."""

    def __init__(self, group: int) -> None:
        self.group = group
        self._told = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._told >= _SECONDS_BETWEEN_PROGRESS

    def say(self, **facts: Any) -> None:
        if self.due():
            _say({"progress": {"group": self.group, **facts}})
            self._told = time.monotonic()


def session(path: Any, threads: int = 1, profile_prefix: str | None = None) -> Any:
    """An ONNX Runtime session on the CPU; ``threads`` 0: the runtime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; names of nodes would be printed raw
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure_group(
    models: Sequence[JsonObject], job: JsonObject, progress: ProgressReporter | None = None, watch: Watch | None = None
) -> dict[str, JsonObject]:
    """Figures of the models of one group: {name: {"samples_ms": […], "repeats": n, "batch": n, "inputs": {…}}}.

    Each round takes one sample of each model. There are ``job["rounds"]`` rounds; with ``job["group_seconds"]`` as many as
    fit, but at least ``least_rounds``.
    """
    progress, watch = progress or ProgressReporter(0), watch or _unwatched()
    inputs = _inputs(job)
    fed: dict[str, JsonObject] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for model in models:
        name = model["name"]
        progress.say(stage="loading", model=name)
        watch.begin_loading(name, model["file"])
        try:
            runs[name], fed[name] = _runnable(session(model["file"], job["threads"]), inputs)
            watch.begin(name, "the first run")
            runs[name]()
            watch.end()
        except Exception as error:  # the runtime's exceptions have no common base except Exception
            raise ModelError(name, error) from error
    if unused := inputs.unused():
        raise InputsError(f"no file has an input named {', '.join(map(repr, unused))}: expected {_named(fed)}")
    single = {name: _warm_up(name, run, job, progress, watch) for name, run in runs.items()}
    repeats = {name: max(1, -int(-job["sample_ms"] // (1e3 * seconds))) for name, seconds in single.items()}
    before = _nothing
    if job.get("evict_bytes"):  # one run per sample: a second one would have its weights in the cache
        before, repeats = _evictor(job["evict_bytes"]), dict.fromkeys(runs, 1)
    rounds = job["rounds"]
    if job.get("group_seconds"):
        a_round = sum(single[name] * repeats[name] for name in runs) + len(runs) * _sample(before, 1)
        rounds = max(job["least_rounds"], min(rounds, int(job["group_seconds"] / a_round)))
    samples = _rounds(runs, repeats, rounds, job["seed"], progress, before, watch)
    return {name: {"samples_ms": samples[name], "repeats": repeats[name], **fed[name]} for name in runs}


def _rounds(
    runs: dict[str, Callable[[], Any]],
    repeats: dict[str, int],
    rounds: int,
    seed: int,
    progress: ProgressReporter,
    before: Callable[[], Any],
    watch: Watch,
) -> dict[str, list[float]]:
    """Milliseconds of every model, round by round, in an order shuffled for each round.

    ``before`` is called before each sample, outside its time.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order, shuffler, told = list(runs), random.Random(seed), 0
    for done in range(1, rounds + 1):
        shuffler.shuffle(order)
        for name in order:
            watch.begin(name, "a run", repeats[name])
            before()
            samples[name].append(1e3 * _sample(runs[name], repeats[name]))
        watch.end()
        if progress.due():
            news = {name: values[told:] for name, values in samples.items()}
            progress.say(stage="measuring", done=done, of=rounds, samples_ms=news)
            told = done
    return samples


def _named(fed: dict[str, JsonObject]) -> str:
    return ", ".join(sorted({repr(name) for figures in fed.values() for name in figures["inputs"]}))


def _nothing() -> None:
    pass


def _evictor(size: int) -> Callable[[], Any]:
    """Reads and writes that many bytes, to evict the caches as the rest of a network does."""
    import numpy

    filler = numpy.zeros(max(1, size // 4), numpy.float32)
    return lambda: numpy.add(filler, 1.0, out=filler)


def _inputs(job: JsonObject) -> Inputs:
    """Inputs for the job's files; ``values`` is the name of a .npz in the current folder."""
    values: JsonObject = {}
    if job.get("values"):
        import numpy

        with numpy.load(job["values"], allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
    return Inputs(values, job.get("shapes", {}), job["batch"], job["seed"])


def _runnable(runtime: Any, inputs: Inputs) -> tuple[Callable[[], Any], JsonObject]:
    """One inference as a function without arguments, its batch, and the shape, type and values of each input."""
    feed, about, batch = inputs.feed(runtime.get_inputs())
    names = [runtime.get_outputs()[0].name]
    return lambda: runtime.run(names, feed), {"batch": batch, "inputs": about}


def _unwatched() -> Watch:
    return Watch(None, lambda model, reason: None)


def _warm_up(name: str, run: Callable[[], Any], job: JsonObject, progress: ProgressReporter, watch: Watch) -> float:
    """Seconds of one run, as soon as the last few runs agree with those before."""
    times: list[float] = []
    runs = job["warmup_runs"]
    few, began = max(1, runs // 2), time.perf_counter()
    while len(times) < runs or time.perf_counter() - began < _MOST_WARMUP_SECONDS:
        watch.begin(name, "a run")
        times.append(_sample(run, 1))
        watch.end()
        progress.say(stage="warming up")
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


def cold(file: str, job: JsonObject) -> JsonObject:
    """Cost of loading in a new process: load and first run in milliseconds, and the memory added by both, in bytes."""
    import numpy.random
    import onnxruntime  # noqa: F401

    confine_to(job.get("memory"), [file])
    watch = Watch(job.get("seconds"), lambda model, reason: _say_at_once({"error": reason, "limit": "time"}))
    numpy.random.default_rng(0).random(1)  # imported by numpy at first use: not a cost of the file, nor are its inputs
    before = _peak_bytes()
    began = time.perf_counter()
    try:
        watch.begin_loading("", file)
        runtime = session(file, job["threads"])
        loaded, peak = time.perf_counter(), _peak_bytes()
        feed = _inputs(job).feed(runtime.get_inputs())[0]
        watch.begin("", "the first run")
        fed = time.perf_counter()
        runtime.run([runtime.get_outputs()[0].name], feed)
    except Exception as error:
        return ModelError("", error).facts()
    ran = time.perf_counter()
    watch.end()
    peak = max(peak, _peak_bytes() - sum(array.nbytes for array in feed.values()))
    return {"load_ms": 1e3 * (loaded - began), "first_run_ms": 1e3 * (ran - fed), "peak_bytes": max(peak - before, 0)}


def _cold_in_child(model: JsonObject, job: JsonObject, watch: Watch) -> JsonObject:
    """:func:`cold` in a new process. Raises ModelError, also if the runtime crashes on the file."""
    watch.begin(model["name"], "loading and the first run", times=2, more=_CHILD_SECONDS)
    options = json.dumps({name: value for name, value in job.items() if name != "groups"})
    command = [sys.executable, "-m", "lrexport.measure.runner", "--cold", model["file"], options, str(os.getpid())]
    done = subprocess.run(command, capture_output=True)
    watch.end()
    answer = json.loads(done.stdout.decode() or "{}")
    if "load_ms" not in answer:
        reason = answer.get("error", f"the runtime crashed on it (exit {done.returncode})")
        raise ModelError(model["name"], reason, answer.get("is_about_inputs", False), answer.get("limit"))
    return answer


def _peak_bytes() -> int:
    """The peak resident memory of this process, in bytes."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:
            return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def profile(file: str, job: JsonObject, runs: int = _PROFILED_RUNS) -> JsonObject:
    """Milliseconds of one run by operator and by node, medians over ``runs`` from the runtime's profiler.

    Nodes are those of the optimised graph, with the runtime's names.
    """
    with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
        runtime = session(file, job["threads"], os.path.join(folder, "profile"))
        run, _ = _runnable(runtime, _inputs(job))
        for _ in range(runs):
            run()
        with open(runtime.end_profiling(), encoding="utf-8") as events:
            recorded = json.load(events)
    nodes = [event for event in recorded if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
    a_run = max(1, len(nodes) // runs)
    passes = [nodes[number * a_run : (number + 1) * a_run] for number in range(1, runs)]  # the first run also loads
    return {
        "operators_ms": _by(passes, lambda event: event["args"]["op_name"]),
        "nodes_ms": _by(passes, lambda event: event["name"][: -len(_KERNEL)]),
    }


def _by(passes: Sequence[Sequence[JsonObject]], key: Callable[[JsonObject], str]) -> dict[str, float]:
    """Medians over passes of the total milliseconds of each key's events."""
    spent: dict[str, list[float]] = {}
    for events in passes:
        sums: dict[str, float] = {}
        for event in events:
            sums[key(event)] = sums.get(key(event), 0.0) + event["dur"] / 1e3
        for name, milliseconds in sums.items():
            spent.setdefault(name, []).append(milliseconds)
    return {name: _median(values) for name, values in spent.items()}


def main(path: str) -> int:
    """Run the job in ``path``; its files are relative to its folder. Returns the exit status."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    os.chdir(os.path.dirname(os.path.abspath(path)))
    _say({"environment": environment()})
    for package in ("numpy", "onnxruntime") if job["groups"] else ():
        try:
            importlib.import_module(package)
        except Exception as error:  # a package for another machine raises arbitrary errors
            reason = f"{sys.executable} has no usable {package} ({error})"
            _say({"error": reason, "missing": package, "python": sys.executable})
            return 1
    memory = confine_to(job.get("memory"), [model["file"] for models in job["groups"] for model in models])
    watch = Watch(job.get("seconds"), lambda model, reason: _say_at_once({"error": reason, "model": model, "limit": "time"}))
    for index, models in enumerate(job["groups"]):
        try:
            _say({"group": index, "models": _figures(models, job, ProgressReporter(index), watch)})
        except ModelError as error:
            _say({"group": index, **error.facts(memory)})
            return 1
        except InputsError as error:
            _say({"group": index, "error": str(error), "is_about_inputs": True})
            return 1
        except Exception as error:  # whatever it is, the other side must be informed
            _say({"group": index, "error": str(error) or type(error).__name__})
            return 1
    _say({"done": environment()})
    return 0


def _figures(
    models: Sequence[JsonObject], job: JsonObject, progress: ProgressReporter, watch: Watch
) -> dict[str, JsonObject]:
    first: dict[str, JsonObject] = {model["name"]: {} for model in models}
    if job.get("cold"):  # before any session is loaded: a child starts with its parent's memory
        for model in models:
            progress.say(stage="loading", model=model["name"])
            first[model["name"]] = _cold_in_child(model, job, watch)
    figures = measure_group(models, job, progress, watch)
    for model in models:
        name = model["name"]
        figures[name].update(first[name])
        if job.get("profile"):
            progress.say(stage="profiling", model=name)
            watch.begin(name, "profiling", times=2 * _PROFILED_RUNS)
            figures[name].update(profile(model["file"], job))
            watch.end()
    return figures


def _say(value: JsonObject) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _say_at_once(value: JsonObject) -> None:
    """:func:`_say` from another thread, whatever the main thread is doing."""
    os.write(1, json.dumps(value).encode() + b"\n")


if __name__ == "__main__":
    die_with_parent(int(sys.argv[-1]) if sys.argv[-1].isdigit() else None)
    if sys.argv[1] == "--cold":
        print(json.dumps(cold(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        sys.exit(main(sys.argv[1]))
