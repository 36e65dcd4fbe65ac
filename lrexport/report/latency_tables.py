"""Measured latencies as tables and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrexport.artifacts.files import sha256
from lrexport.config.runtime_titles import title_of
from lrexport.report.tables import Table
from lrexport.runs.figures import Latency
from lrexport.text import number_of, plain
from lrexport.units import format_bytes, format_ms

_SPARE = ("first run", "load", "size", "memory", "p90", "IQR", "p99", "ratio's IQR")


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest end of each path that distinguishes it from the others; a file given twice gets a number."""
    names: list[str] = []
    for path in paths:
        name = end = _distinct_end(path, [other for other in paths if other != path])
        number = 1
        while name in names:
            number += 1
            name = f"{end} #{number}"
        names.append(name)
    return names


def _distinct_end(path: Path, others: Sequence[Path]) -> str:
    for length in range(1, len(path.parts) + 1):
        end = path.parts[-length:]
        if all(other.parts[-length:] != end for other in others):
            return str(Path(*end))
    return str(path)


def verdict(latency: Latency, is_baseline: bool = False) -> str:
    """The conclusion about a file relative to the baseline, in one or two words."""
    if latency.warning:
        return latency.warning.partition(":")[0]
    if latency.ratio_iqr is None:
        return "baseline" if is_baseline else ""
    low, high = latency.ratio_iqr
    return "faster" if high < 1 else "slower" if low > 1 else "no difference"


def latency_table(
    latencies: Mapping[str, Latency], sizes: Mapping[str, int], baseline: str | None, target: str, machine: Mapping[str, Any]
) -> Table:
    """One row per file, without columns of figures that were not measured."""
    rows = [_row(name, latency, sizes.get(name), name == baseline) for name, latency in latencies.items()]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    cells = tuple(tuple(row[column] for column in columns) for row in rows)
    caption = _caption(next(iter(latencies.values())), baseline, target, machine)
    spare = tuple(column for column in _SPARE if column in columns)
    return Table(tuple(columns), cells, caption, words=("verdict",), spare=spare)


def targets_table(
    measured: Sequence[tuple[str, Mapping[str, Latency], Mapping[str, Any]]], sizes: Mapping[str, int], baseline: str | None
) -> Table:
    """One row per target and file; of each target its name, its latencies and its machine. Ratios are within a target."""
    rows = [
        {"target": plain(target), **_row(name, latency, sizes.get(name), name == baseline)}
        for target, latencies, _ in measured
        for name, latency in latencies.items()
    ]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    cells = tuple(tuple(row[column] for column in columns) for row in rows)
    first = next(iter(measured[0][1].values()))
    protocol = _protocol(first, baseline) + (" and target" if baseline is not None else "")
    caption = "\n".join([f"{protocol}.", *(f"{machine_line(target, machine)}." for target, _, machine in measured)])
    spare = tuple(column for column in _SPARE if column in columns)
    return Table(tuple(columns), cells, caption, words=("file", "verdict"), spare=spare)


def _row(name: str, latency: Latency, size: int | None, is_baseline: bool) -> dict[str, str]:
    quartiles = " – ".join(f"{value:.2f}" for value in latency.ratio_iqr or ())
    return {
        "file": plain(name),
        "p50": format_ms(latency.p50),
        "p90": format_ms(latency.p90),
        "p99": format_ms(latency.p99),
        "IQR": format_ms(latency.iqr),
        "ratio": f"{latency.ratio:.2f}×" if latency.ratio is not None else "",
        "ratio's IQR": quartiles,
        "load": format_ms(latency.load_ms) if latency.load_ms is not None else "",
        "first run": format_ms(latency.first_run_ms) if latency.first_run_ms is not None else "",
        "memory": format_bytes(latency.peak_bytes) if latency.peak_bytes is not None else "",
        "size": format_bytes(size) if size is not None else "",
        "verdict": verdict(latency, is_baseline),
    }


def _caption(latency: Latency, baseline: str | None, target: str, machine: Mapping[str, Any]) -> str:
    return f"{_protocol(latency, baseline)}.\n{machine_line(target, machine)}."


def _protocol(latency: Latency, baseline: str | None) -> str:
    caption = f"Batch of {latency.batch}, {latency.rounds} rounds, {number_of(latency.threads, 'thread')}"
    if baseline is not None:
        caption += f"; ratio to {plain(baseline)} in the same rounds"
    return caption


def inputs_line(inputs: Mapping[str, Mapping[str, Any]]) -> str:
    """``ids int64 1,16 (ones), image float32 1,3,32,32 (random)``."""
    return ", ".join(
        f"{plain(name)} {fed['dtype']} {','.join(map(str, fed['shape'])) or 'scalar'} ({fed['values']})"
        for name, fed in inputs.items()
    )


def machine_line(target: str, machine: Mapping[str, Any]) -> str:
    """``local: AMD EPYC (avx2, avx512f), 2 cores, governor performance, 45 °C, ONNX Runtime 1.31.1``."""
    isa = f" ({', '.join(machine['isa'])})" if machine.get("isa") else ""
    parts = [f"{machine.get('cpu', 'unknown processor')}{isa}", f"{machine.get('cores', '?')} cores"]
    parts += [f"governor {machine['governor']}"] if "governor" in machine else []
    parts += [f"{machine['celsius']:.0f} °C"] if "celsius" in machine else []
    parts += [runtime_words(machine)]
    parts += [f"clock in steps of {machine['timer_us']:g} µs"] if "timer_us" in machine else []
    return plain(f"{target}: {', '.join(parts)}")


def runtime_words(machine: Mapping[str, Any]) -> str:
    """``ONNX Runtime 1.31.1``, ``ncnn 1.0.20261020 in float32``."""
    if "runtime" not in machine:
        return f"ONNX Runtime {machine.get('onnxruntime', '?')}"
    name = title_of(machine["runtime"])
    return f"{name} {machine.get('runtime_version', '?')} in {machine.get('precision', 'unknown precision')}"


def operator_table(latencies: Mapping[str, Latency], baseline: str | None) -> Table:
    """Milliseconds by operator, one column per file, sorted by the first file, longest first."""
    spent = {name: latency.operators_ms or {} for name, latency in latencies.items()}
    leading = spent[baseline] if baseline in spent else next(iter(spent.values()))
    longest = {operator: max(times.get(operator, 0.0) for times in spent.values()) for operator in _operators(spent)}
    order = sorted(longest, key=lambda operator: (-leading.get(operator, 0.0), -longest[operator]))
    rows = [
        (plain(operator), *(format_ms(times[operator]) if operator in times else "" for times in spent.values()))
        for operator in order
    ]
    sums = ("all operators", *(format_ms(sum(times.values())) for times in spent.values()))
    caption = "Time by operator in one inference, from the runtime's profiler, which adds some overhead."
    return Table(("operator", *(plain(name) for name in spent)), (*rows, sums), caption)


def _operators(spent: Mapping[str, Mapping[str, float]]) -> dict[str, None]:
    return {operator: None for times in spent.values() for operator in times}


def latencies_to_json(
    latencies: Mapping[str, Latency],
    files: Mapping[str, Path],
    sizes: Mapping[str, int],
    baseline: str | None,
    target: str,
    environment: Mapping[str, Any],
    after: Mapping[str, Any] | None,
    samples_ms: Mapping[str, Sequence[float]] | None = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Latencies as documented in docs/latency.md. ``sizes`` are bytes with external data, ``samples_ms`` times in the same
    rounds, ``inputs`` the inputs of each file.
    """
    return {
        "target": target,
        "environment": dict(environment),
        "environment_after": dict(after) if after is not None else None,
        "baseline": baseline,
        "files": {
            name: {
                "path": str(files[name]),
                "bytes": sizes[name],
                "sha256": sha256(files[name]),  # `lrexport check --latency` identifies the file by it
                "inputs": dict((inputs or {}).get(name, {})),
                "latency_ms": latency.model_dump(mode="json"),
                # They give the ratio of any two files of one run.
                "samples_ms": [float(f"{sample:.6g}") for sample in (samples_ms or {}).get(name, ())],
                "verdict": verdict(latency, name == baseline),
            }
            for name, latency in latencies.items()
        },
    }
