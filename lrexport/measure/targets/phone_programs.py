"""The benchmark programs of runtimes: how each is called on a phone, and what it prints.

Each format is read from the program's source, named at its class. A program that prints anything else is an error, never a
figure: another version, or another program of that name.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
_MOST_LINES, _MOST_WORDS = 6, 120
# Runs at the beginning of an invocation that are not counted: caches and clocks settle.
_WARMUP_SHARE = 4


class Unreadable(ValueError):
    """A program printed something else than its source says."""


@dataclass(frozen=True)
class Timing:
    """One invocation: milliseconds of one run, and if the program says so those of loading and of the first run."""

    ms: float
    load_ms: float | None = None
    first_run_ms: float | None = None


class Program:
    """A benchmark program. ``name`` is its usual name, ``title`` its runtime's, ``suffixes`` those of files it takes.

    ``converted`` is the runtime whose toolchain makes its files here; None: it takes the user's. ``resolution_ms`` is the
    last digit that it prints.
    """

    name = ""
    runtime = ""
    suffixes: tuple[str, ...] = (".onnx",)
    converted: str | None = None
    precision = "float32"
    resolution_ms = 1e-4
    takes_any_type = False
    sizes_are_in_file = True
    # Words for cores that it can be held to, if it chooses its cores itself and so overrides taskset.
    own_cores: tuple[str, ...] = ()
    # A file that it writes, printed after its output.
    results: str | None = None
    # The tag of its messages in Android's log, if it prints none itself.
    log_tag: str | None = None

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        """Its arguments for ``file``, which is alone in its folder; ``shapes`` are those of the inputs, with the batch."""
        raise NotImplementedError

    def fed(self, dtype: str) -> str:
        """What it gives to an input of that type."""
        return "unknown"

    def parse(self, output: str, runs: int, file: str) -> Timing:
        """What it printed about ``runs`` runs of ``file``. Raises Unreadable."""
        raise NotImplementedError

    def _only(self, pattern: str, output: str, expected: str) -> re.Match[str]:
        """The only line that matches. Raises Unreadable, which shows what was printed instead."""
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        matches = [match for match in (re.search(pattern, line) for line in lines) if match]
        if len(matches) == 1:
            return matches[0]
        raise self._unreadable(output, f"{len(matches) or 'no'} lines like {expected!r}, expected one")

    def _average(self, line: re.Match[str], name: str, output: str) -> Timing:
        """The average in a line with a name and three times. Raises Unreadable for another name."""
        if line[1] != name:
            what = f"times of {line[1]}, expected {name}: {self.name} may be too old to measure a file that it is given"
            raise self._unreadable(output, what)
        return Timing(self._milliseconds(float(line[4]), output))

    def _unreadable(self, output: str, what: str) -> Unreadable:
        lines = [line.strip()[:_MOST_WORDS] for line in output.splitlines() if line.strip()]
        shown = " | ".join(lines[:_MOST_LINES]) or "nothing"
        more = f" | … and {len(lines) - _MOST_LINES} more lines" if len(lines) > _MOST_LINES else ""
        return Unreadable(f"{what}. It printed: {shown}{more}")

    def _milliseconds(self, value: float, output: str) -> float:
        if not (math.isfinite(value) and value > 0):
            raise self._unreadable(output, f"a time of {value:g} ms, expected more than 0")
        return value


class OnnxRuntimeTest(Program):
    """onnxruntime/test/perftest/performance_runner.cc: the summary, and a line of the result file for every run."""

    name, runtime = "onnxruntime_perf_test", "onnxruntime"
    suffixes = (".onnx", ".ort")
    precision = "float32, int8 files in int8"
    takes_any_type = True
    results = "runs.csv"

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        spinning = [] if threads == 1 else ["-D"]  # one thread has nobody to spin for
        options = ["-e", "cpu", "-I", "-S", "1", "-m", "times", "-r", str(runs), "-x", str(threads), *spinning]
        return [*options, file, "runs.csv"]

    def fed(self, dtype: str) -> str:
        return "random" if dtype.startswith("float") or dtype in ("int8", "uint8") else "zeros"

    def parse(self, output: str, runs: int, file: str) -> Timing:
        # Older versions write no "total".
        average = self._only(
            rf"^Average inference time cost(?: total)?: {_NUMBER} ms$", output, "Average inference time cost total: 5.88 ms"
        )
        rows = re.findall(rf"^[^,\n]*,{_NUMBER},\d+,-?\d+,(\d+)\s*$", output, re.MULTILINE)
        if [int(place) for _, place in rows] != list(range(runs)):
            raise self._unreadable(output, f"{len(rows)} runs in its result file, expected {runs}")
        times = [1e3 * float(seconds) for seconds, _ in rows]
        if abs(statistics.fmean(times) - float(average[1])) > 0.01 * float(average[1]) + 1e-3:
            mean = statistics.fmean(times)
            raise self._unreadable(output, f"an average of {average[1]} ms, but its runs have {mean:g} ms")
        load = re.search(rf"^Session creation time cost: {_NUMBER} s$", output, re.MULTILINE)
        first = re.search(rf"^First inference time cost: {_NUMBER} ms$", output, re.MULTILINE)
        return Timing(
            self._milliseconds(_settled(times), output),
            1e3 * float(load[1]) if load else None,
            float(first[1]) if first and float(first[1]) else None,  # whole milliseconds: 0 says nothing
        )


class BenchNcnn(Program):
    """benchmark/benchncnn.cpp of ncnn: "%20s  min = %7.2f  max = %7.2f  avg = %7.2f" on stderr.

    It never reads weights, which are all zero, and chooses half precision where the processor has it.
    """

    name, runtime, converted = "benchncnn", "ncnn", "ncnn"
    precision = "float16 where the processor has it"
    resolution_ms = 1e-2
    sizes_are_in_file = False
    own_cores = ("big", "little", "all")  # its argument "powersave"

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        # ncnn has no batch axis, and width first.
        sizes = ",".join(f"[{','.join(map(str, reversed(shape[1:])))}]" for shape in shapes)
        return [*map(str, (runs, threads, powersave, -1, 0)), f"param={file}", f"shape={sizes}"]

    def fed(self, dtype: str) -> str:
        return "0.01"

    def parse(self, output: str, runs: int, file: str) -> Timing:
        loops = self._only(r"^loop_count = (\d+)$", output, "loop_count = 4")
        if int(loops[1]) != runs:
            raise self._unreadable(output, f"{loops[1]} runs, expected {runs}")
        line = self._only(
            rf"^(\S+)\s+min = +{_NUMBER}  max = +{_NUMBER}  avg = +{_NUMBER}$",
            output,
            f"{file}  min =    4.21  max =    5.00  avg =    4.50",
        )
        return self._average(line, file, output)


class MnnBenchmark(Program):
    """benchmark/benchmark.cpp of MNN: "[ - ] %-24s    max = %8.3f ms  min = %8.3f ms  avg = %8.3f ms"."""

    name, runtime, converted = "benchmark.out", "mnn", "mnn"
    resolution_ms = 1e-3
    own_cores = ("big",)  # it asks for MNN's high power, which binds threads to the fastest cores

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        # It measures every file of a folder. Forward type 0 is the CPU, precision 1 is float32.
        folder = file.rpartition("/")[0] or "."
        return [folder, *map(str, (runs, warmup(runs), 0, threads, 1))]

    def fed(self, dtype: str) -> str:
        return "undefined"

    def parse(self, output: str, runs: int, file: str) -> Timing:
        name = file.rpartition("/")[2]
        line = self._only(
            rf"^\[ - \] (\S+)\s+max = +{_NUMBER} ms  min = +{_NUMBER} ms  avg = +{_NUMBER} ms$",
            output,
            f"[ - ] {name}    max =    5.000 ms  min =    4.210 ms  avg =    4.500 ms",
        )
        return self._average(line, name, output)


class LiteRtBenchmark(Program):
    """tensorflow/lite/tools/benchmark/benchmark_model.cc: "Inference timings in us: Init: …, First inference: …"."""

    name, runtime = "benchmark_model", "litert"
    suffixes = (".tflite",)
    precision = "the file's"
    resolution_ms = 1e-3

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        timed = [f"--num_runs={runs}", "--min_secs=0", "--max_secs=3600"]
        before = [f"--warmup_runs={warmup(runs)}", "--warmup_min_secs=0"]
        return [f"--graph={file}", f"--num_threads={threads or -1}", *timed, *before]

    def parse(self, output: str, runs: int, file: str) -> Timing:
        line = self._only(
            rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
            rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}$",
            output,
            "Inference timings in us: Init: 5685, First inference: 18535, Warmup (avg): 14462.3, Inference (avg): 14575.2",
        )
        counts = re.findall(r"\bcount=(\d+)\b", output)
        if not counts or int(counts[-1]) != runs:
            raise self._unreadable(output, f"{counts[-1] if counts else 'an unknown number of'} runs, expected {runs}")
        load, first, _, average = (float(line[number]) / 1e3 for number in (1, 2, 3, 4))
        return Timing(self._milliseconds(average, output), load, first)


class ExecutorRunner(Program):
    """examples/portable/executor_runner/executor_runner.cpp: "Model executed successfully %u time(s) in %f ms."

    Newer versions also have a line for each run. On Android messages go to the log (runtime/platform/default/android.cpp).
    """

    name, runtime = "executor_runner", "executorch"
    suffixes = (".pte",)
    precision = "the file's"
    resolution_ms = 1e-6
    log_tag = "ExecuTorch"

    def arguments(self, file: str, runs: int, threads: int, shapes: Sequence[Sequence[int]], powersave: int) -> list[str]:
        return [f"--model_path={file}", f"--num_executions={runs}", f"--cpu_threads={threads or -1}"]

    def parse(self, output: str, runs: int, file: str) -> Timing:
        line = self._only(
            rf"Model executed successfully (\d+) time\(s\) in {_NUMBER} ms\.$",
            output,
            "Model executed successfully 10 time(s) in 45.000000 ms.",
        )
        if int(line[1]) != runs:
            raise self._unreadable(output, f"{line[1]} runs, expected {runs}")
        load = re.search(rf"Model loaded in {_NUMBER} ms\.$", output, re.MULTILINE)
        each = re.findall(rf"Iteration (\d+) of {runs}: {_NUMBER} ms$", output, re.MULTILINE)
        are_single = re.search(r"Iteration \d+ of ", output) is not None
        if are_single and [int(number) for number, _ in each] != list(range(1, runs + 1)):
            raise self._unreadable(output, f"{len(each)} iterations, expected {runs}")
        times = [float(spent) for _, spent in each] or [float(line[2]) / runs]
        return Timing(
            self._milliseconds(_settled(times), output), float(load[1]) if load else None, times[0] if each else None
        )


PROGRAMS: dict[str, Program] = {
    "ort": OnnxRuntimeTest(),
    "ncnn": BenchNcnn(),
    "mnn": MnnBenchmark(),
    "litert": LiteRtBenchmark(),
    "executorch": ExecutorRunner(),
}


def warmup(runs: int) -> int:
    """Runs before those that count, of an invocation of ``runs``."""
    return max(1, runs // _WARMUP_SHARE)


def _settled(times: Sequence[float]) -> float:
    """The median of the runs after the warm-up."""
    return statistics.median(times[warmup(len(times)) :] if len(times) > 1 else times)
