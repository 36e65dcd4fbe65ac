"""Measures networks in a runtime. Self-contained: it is sent to devices with the modules it needs.

    python -m lrexport.measure.runner JOB.json [PARENT]

lrexport is not installed there. Needs Python 3.9, numpy and the job's runtime. The job has groups of networks; those of a
group are loaded together and timed in shuffled order, round by round, so that what slows the machine down slows all of them.
A runtime that does not load ONNX files gets its own files with the inputs and ONNX Runtime's outputs; outputs that differ
end the job before anything is timed. Every answer is one line of JSON on stdout: first {"environment": …}, then
{"group": index, "models": {name: figures}} for each group as soon as it is done, or {"error": …}; last
{"done": environment}, whose throttling and temperature may differ from the first. In between, about once a second,
{"progress": …} with the samples since the last one, as a sign of life, and to keep them if the device disappears. The job
also has limits on the time of a stage and on memory.

Protocol: warm-up until stable; every sample at least ``sample_ms`` by inner repeats; spinning off; all optimisations on.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

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
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import Loaded, Ports
from lrexport.measure.runtimes.compare import check_outputs
from lrexport.measure.watch import Watch, confine_to, is_about_memory

JsonObject = dict[str, Any]

_MOST_WARMUP_SECONDS = 3.0
_STABLE = 0.05
_SECONDS_BETWEEN_PROGRESS = 1.0
_CHILD_SECONDS = 60  # for a fresh Python and its imports, beyond what loading and a run may take
_PROFILED_RUNS = 20
_ALLOCATION = re.compile(r"^.*(?=Failed to allocate)", re.DOTALL)  # prefix with a place in the runtime's sources


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


def measure_group(
    models: Sequence[JsonObject], job: JsonObject, progress: ProgressReporter | None = None, watch: Watch | None = None
) -> dict[str, JsonObject]:
    """Figures of the models of one group: {name: {"samples_ms": […], "repeats": n, "batch": n, "inputs": {…}}}.

    Each round takes one sample of each model. There are ``job["rounds"]`` rounds; with ``job["group_seconds"]`` as many as
    fit, but at least ``least_rounds``.
    """
    progress, watch = progress or ProgressReporter(0), watch or _unwatched()
    inputs = inputs_of(job)
    fed: dict[str, JsonObject] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for model in models:
        name = model["name"]
        progress.say(stage="loading", model=name)
        watch.begin_loading(name, model["file"])
        try:
            loaded = _load(model, job)
            watch.begin(name, "the first run")
            runs[name], fed[name] = _runnable(loaded, model, inputs)
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


def inputs_of(job: JsonObject) -> Inputs:
    """Inputs for the job's files; ``values`` is the name of a .npz in the current folder."""
    values: JsonObject = {}
    if job.get("values"):
        import numpy

        with numpy.load(job["values"], allow_pickle=False) as arrays:
            values = {name: arrays[name] for name in arrays.files}
    return Inputs(values, job.get("shapes", {}), job["batch"], job["seed"])


def _load(model: JsonObject, job: JsonObject, profile_to: str | None = None) -> Loaded:
    ports = Ports.from_json(model["ports"]) if "ports" in model else None
    return _runtime(job).load(model.get("files", [model["file"]]), job["threads"], ports, profile_to)


def _runtime(job: JsonObject) -> base.Runtime:
    return base.runtime(job.get("runtime", base.DEFAULT))


def _runnable(loaded: Loaded, model: JsonObject, inputs: Inputs) -> tuple[Callable[[], Any], JsonObject]:
    """One inference as a function without arguments, its batch, and the shape, type and values of each input.

    Raises OutputsDiffer if the model has expected outputs and these are others.
    """
    feed, fed = _feed(loaded, model, inputs)
    if "arrays" in model:
        outputs = [name for name, _, _ in model["ports"]["outputs"]]
        check_outputs(dict(zip(outputs, _stored(model, "out"))), loaded.run(feed), model["tolerance"])
    return loaded.timed(feed), fed


def _feed(loaded: Loaded, model: JsonObject, inputs: Inputs) -> tuple[JsonObject, JsonObject]:
    """Arrays by input name, and their description with the batch: those sent with the model, else made up."""
    if "arrays" in model:
        names = [name for name, _, _ in model["ports"]["inputs"]]
        return dict(zip(names, _stored(model, "in"))), model["fed"]
    feed, about, batch = inputs.feed(loaded.inputs)
    return feed, {"batch": batch, "inputs": about}


def _stored(model: JsonObject, prefix: str) -> list[Any]:
    """The arrays of the model's .npz whose names start with ``prefix``, in order."""
    import numpy

    with numpy.load(model["arrays"], allow_pickle=False) as arrays:
        count = sum(name.startswith(prefix) for name in arrays.files)
        return [arrays[f"{prefix}{number}"] for number in range(count)]


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


def cold(model: JsonObject, job: JsonObject) -> JsonObject:
    """Cost of loading in a new process: load and first run in milliseconds, and the memory added by both, in bytes."""
    import numpy.random

    _runtime(job).version()  # its import is not a cost of the file
    confine_to(job.get("memory"), model.get("files", [model["file"]]))
    watch = Watch(job.get("seconds"), lambda model, reason: _say_at_once({"error": reason, "limit": "time"}))
    numpy.random.default_rng(0).random(1)  # imported by numpy at first use: not a cost of the file, nor are its inputs
    before = _peak_bytes()
    began = time.perf_counter()
    try:
        watch.begin_loading("", model["file"])
        loaded = _load(model, job)
        ready, peak = time.perf_counter(), _peak_bytes()
        feed = _feed(loaded, model, inputs_of(job))[0]
        run = loaded.timed(feed)
        watch.begin("", "the first run")
        fed = time.perf_counter()
        run()
    except Exception as error:
        return ModelError("", error).facts()
    ran = time.perf_counter()
    watch.end()
    peak = max(peak, _peak_bytes() - sum(array.nbytes for array in feed.values()))
    return {"load_ms": 1e3 * (ready - began), "first_run_ms": 1e3 * (ran - fed), "peak_bytes": max(peak - before, 0)}


def _cold_in_child(model: JsonObject, job: JsonObject, watch: Watch) -> JsonObject:
    """:func:`cold` in a new process. Raises ModelError, also if the runtime crashes on the file."""
    watch.begin(model["name"], "loading and the first run", times=2, more=_CHILD_SECONDS)
    options = json.dumps({name: value for name, value in job.items() if name != "groups"})
    command = [sys.executable, "-m", "lrexport.measure.runner", "--cold", json.dumps(model), options, str(os.getpid())]
    done = subprocess.run(command, capture_output=True)
    watch.end()
    # Runtimes print on stdout too.
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.startswith("{")]
    answer = json.loads(lines[-1] if lines else "{}")
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


def profile(model: JsonObject, job: JsonObject, runs: int = _PROFILED_RUNS) -> JsonObject:
    """Milliseconds of one run by operator and by node, medians over ``runs`` from the runtime's profiler."""
    with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
        loaded = _load(model, job, os.path.join(folder, "profile"))
        run = loaded.timed(_feed(loaded, model, inputs_of(job))[0])
        passes = loaded.profiled(run, runs)[1:]  # the first run also loads
        loaded.close()
    return {
        "operators_ms": _by([[(operator, spent) for _, operator, spent in nodes] for nodes in passes]),
        "nodes_ms": _by([[(name, spent) for name, _, spent in nodes] for nodes in passes]),
    }


def _by(passes: Sequence[Sequence[tuple[str, float]]]) -> dict[str, float]:
    """Medians over passes of the total milliseconds of each key."""
    spent: dict[str, list[float]] = {}
    for nodes in passes:
        sums: dict[str, float] = {}
        for key, milliseconds in nodes:
            sums[key] = sums.get(key, 0.0) + milliseconds
        for name, total in sums.items():
            spent.setdefault(name, []).append(total)
    return {name: _median(values) for name, values in spent.items()}


def main(path: str) -> int:
    """Run the job in ``path``; its files are relative to its folder. Returns the exit status."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    os.chdir(os.path.dirname(os.path.abspath(path)))
    name = job.get("runtime", base.DEFAULT)
    _say({"environment": environment(name)})
    absent = base.missing(_runtime(job).needs) if job["groups"] else None
    if absent is not None:
        reason = f"{sys.executable} has no usable {absent[0]} ({absent[1]})"
        _say({"error": reason, "missing": absent[0], "python": sys.executable})
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
    _say({"done": environment(name)})
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
            figures[name].update(profile(model, job))
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
        print(json.dumps(cold(json.loads(sys.argv[2]), json.loads(sys.argv[3]))))
    else:
        sys.exit(main(sys.argv[1]))
