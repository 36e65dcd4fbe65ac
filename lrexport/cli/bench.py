"""``lrexport bench``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.artifacts.plain_files import check_input
from lrexport.cli.help import INPUTS, MEASUREMENT, OUTPUT, Command, section
from lrexport.cli.input_options import Shapes, input_file_option, input_shapes_option, read_inputs
from lrexport.cli.option_types import SizeType, TargetType
from lrexport.cli.options import FILE, json_option, threads_option
from lrexport.config.runtime_titles import title_of
from lrexport.errors import InputError, UsageError
from lrexport.text import shell_path

if TYPE_CHECKING:
    from lrexport.measure.latency import Measurement
    from lrexport.measure.targets import MeasuringJob, Target

_INPUTS_HINT = "--shape NAME=SIZES gives an input's sizes, --input FILE.npz its values."
_LIMIT_HINT = "If the file needs more, raise --timeout SECONDS or --memory SIZE."
# Per stage. A file that takes longer on this machine is rarely worth a hundred rounds; --timeout raises the limit.
_SECONDS, _SECONDS_ON_DEVICE = {"local": 10.0}, 120.0
# By suffix: bytes from the fourth of every file of that format, the format's owner, and where such a file comes from.
_MARKS = {
    ".ort": (b"ORTM", "ONNX Runtime", "Write such a file with lrexport onnx RUN --ort."),
    ".tflite": (b"TFL3", "LiteRT", "Write such a file with lrexport export RUN --to litert."),
    ".pte": (b"ET", "ExecuTorch", "Write such a file with lrexport export RUN --to executorch."),
}


@click.command("bench", cls=Command, short_help="Latency of ONNX files on a target, interleaved in one process.")
@click.argument("paths", type=FILE, nargs=-1, required=True, metavar="FILE|RUN...")
@section(
    INPUTS,
    click.option("--batch", type=click.IntRange(1), metavar="N", help="Batch size if a file leaves it open. [default: 1]"),
    input_shapes_option("Shape of an input that a file leaves open: images=1,3,320,320."),
    input_file_option("Arrays to feed, by input name, instead of made-up ones."),
)
@section(
    MEASUREMENT,
    click.option(
        "--target",
        type=TargetType(),
        metavar="TARGET",
        multiple=True,
        help="Where latency is measured: local, local?runtime=ncnn, ssh://HOST, adb://…, browser; may be repeated. "
        "[default: local]",
    ),
    threads_option(),
    click.option("--baseline", type=FILE, metavar="FILE", help="File that ratios are relative to. [default: the first]"),
    click.option(
        "--rounds",
        type=click.IntRange(10),
        metavar="N",
        default=100,
        show_default=True,
        help="Rounds, at least 10; with fewer than 50 the result is inconclusive.",
    ),
    click.option("--profile", is_flag=True, help="Also measure time per operator."),
    click.option(
        "--timeout",
        type=click.FloatRange(0, 100_000, min_open=True),
        metavar="SECONDS",
        help="Time limit of loading, of the first run, and of each other run. [default: 10 here, 120 on a device]",
    ),
    click.option(
        "--memory",
        type=SizeType(),
        metavar="SIZE",
        help="Memory limit, such as 6GB. [default: 4 × the files + 1/8 of the machine, at least 2 GiB]",
    ),
)
@section(OUTPUT, json_option())
def command(
    paths: tuple[Path, ...],
    baseline: Path | None,
    target: tuple[str, ...],
    threads: int,
    batch: int | None,
    shapes: Shapes,
    input_file: Path | None,
    rounds: int,
    profile: bool,
    timeout: float | None,
    memory: int | None,
    json_to: str | None,
) -> None:
    """Measure the latency of .onnx and .ort FILEs, and its ratio to a baseline. A RUN stands for its exported files.

    All files are measured in one process, in an order that is shuffled every round, so that whatever slows the machine down
    slows all of them. A spread too wide for a conclusion is reported as inconclusive.

    \b
    lrexport bench run
    lrexport bench dense.onnx model.onnx --profile
    lrexport bench detector.onnx --shape images=1,3,640,640
    lrexport bench encoder.onnx --input tokens.npz
    lrexport bench run --target ssh://pi@raspberrypi.local
    lrexport bench run --target local --target 'local?runtime=ncnn' --target browser

    Inputs without --input: floats and pixels are random, wider integers are 1, booleans are true.
    """
    from lrexport.artifacts.arrays import npz_bytes
    from lrexport.measure.latency import Interrupted
    from lrexport.measure.targets import MeasuringJob, parse_target
    from lrexport.report.latency_tables import distinct_names

    texts = dict.fromkeys(target or ("local",))
    chosen = {parse_target(text): text for text in texts}
    _check_profilers(chosen, profile)
    is_sent = any(text.startswith(("ssh:", "adb:", "browser")) for text in texts)
    files = [sized for path in paths for sized in _files(path, is_sent)]
    if baseline is not None:
        first = _files(baseline, is_sent)[0]
        files = [first, *(sized for sized in files if sized != first)]
    names = distinct_names([file for file, _ in files])
    named = {name: file for name, (file, _) in zip(names, files, strict=True)}
    sizes = {name: size for name, (_, size) in zip(names, files, strict=True)}
    against = next(iter(named)) if len(named) > 1 else None
    shapes = {**_own_shapes(paths), **shapes}
    values = npz_bytes(read_inputs(input_file, shapes)) if input_file else None
    job = MeasuringJob(
        (),
        rounds,
        threads,
        batch or 0,
        cold=True,
        profile=profile,
        shapes=shapes,
        values=values,
        memory=memory,
    )
    subject = _Subject(named, sizes, against)
    done: list[tuple[Target, Measurement]] = []
    for place, text in chosen.items():
        limited = replace(job, seconds=timeout or _SECONDS.get(text, _SECONDS_ON_DEVICE))
        try:
            done.append((place, _measured(subject, limited, text)))
        except Interrupted as error:
            _print(subject, [*done, (place, error.measurement)], json_to)
            raise
    _print(subject, done, json_to)


@dataclass(frozen=True)
class _Subject:
    """The files to measure by name, their bytes, and the name of the baseline."""

    files: dict[str, Path]
    sizes: dict[str, int]
    baseline: str | None


def _check_profilers(targets: Iterable[Target], profile: bool) -> None:
    """Raise UsageError if time by operator is asked of a runtime that has no profiler."""
    from lrexport.measure.runtimes.base import NAMES, runtime

    for target in targets if profile else ():
        if target.runtime not in NAMES or not runtime(target.runtime).has_profiler:
            raise UsageError(
                f"{target.name} cannot measure time per operator: {title_of(target.runtime)} has no profiler",
                "Omit --profile.",
            )


def _files(path: Path, is_sent: bool) -> list[tuple[Path, int]]:
    """The checked file, or a run's exported files; each with its size in bytes, external data included.

    Raises UsageError if there are no files, InputError for a damaged one.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist", "Give an .onnx or .ort file, or a run.")
    check_input(path)
    if not path.is_dir():
        return [(path, _checked_bytes(path, is_sent))]
    from lrexport.artifacts.run_files import DENSE_ONNX, MODEL_ONNX
    from lrexport.runs.record import load_record

    record = load_record(path)
    order = {DENSE_ONNX: 0, MODEL_ONNX: 1}
    names = sorted((name for name in record.files if name.endswith(".onnx")), key=lambda name: (order.get(name, 2), name))
    if not names:
        raise UsageError(f"{path} has no ONNX files yet", f"Write them with lrexport onnx {shell_path(path)}.")
    return [(file, file.stat().st_size) for file in (record.check(path, name) for name in names)]


def _own_shapes(paths: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The sizes at which files of runs were exported, for those that they leave open."""
    from lrexport.runs.record import load_record
    from lrexport.runs.sources import exported_shapes

    records = [load_record(path) for path in paths if path.is_dir()]
    return {name: shape for record in records for name, shape in exported_shapes(record.model, record.export).items()}


def _checked_bytes(path: Path, is_sent: bool) -> int:
    """Bytes of a file and its external data.

    Raises InputError if the content does not match the suffix, or if a file to send to a device has external data.
    """
    from lrexport.artifacts import files
    from lrexport.artifacts.onnx_files import external_files

    if path.suffix in _MARKS:
        mark, owner, hint = _MARKS[path.suffix]
        if not files.read_bytes(path)[4:8].startswith(mark):
            raise InputError(f"{path} is not in {owner}'s format", hint)
        return path.stat().st_size
    others = external_files(path)
    if others and is_sent:
        raise InputError(
            f"{path} keeps its weights in other files; devices need a single file",
            "Save it as one file: onnx.save(onnx.load(path), path).",
        )
    return sum(file.stat().st_size for file in (path, *others))


def _measured(subject: _Subject, job: MeasuringJob, text: str) -> Measurement:
    from lrexport.cli.progress import Progressing
    from lrexport.events import Measuring
    from lrexport.measure.latency import measure
    from lrexport.measure.targets import parse_target
    from lrexport.measure.targets.base import InputsRefused, LimitReached, ModelRefused

    def on_progress(facts: Mapping[str, Any]) -> None:
        progress(Measuring(target.name, facts.get("done"), facts.get("of")))

    try:
        with Progressing(refreshes=1) as progress:
            target = parse_target(text, progress)
            return measure(subject.files, subject.baseline, job, target, on_progress)
    except InputsRefused as error:
        of = f" {subject.files[error.model]}" if error.model else ""
        raise UsageError(f"{target.name} cannot measure{of}: {error.reason}", _INPUTS_HINT) from error
    except ModelRefused as error:
        hint = _LIMIT_HINT if isinstance(error, LimitReached) else None
        raise InputError(f"{target.name} cannot measure {subject.files[error.model]}: {error.reason}", hint) from error


def _print(subject: _Subject, done: Sequence[tuple[Target, Measurement]], json_to: str | None) -> None:
    from lrexport.cli.console import print_result
    from lrexport.report.latency_tables import latencies_to_json, latency_table, operator_table, targets_table

    of_targets = [(target.name, measured.latencies, measured.environment) for target, measured in done]
    if len(done) == 1:
        name, latencies, environment = of_targets[0]
        tables = [latency_table(latencies, subject.sizes, subject.baseline, name, environment)]
    else:
        tables = [targets_table(of_targets, subject.sizes, subject.baseline)]
    for _, latencies, _ in of_targets:
        if any(latency.operators_ms for latency in latencies.values()):
            tables.append(operator_table(latencies, subject.baseline))
    values = [
        latencies_to_json(
            measured.latencies,
            subject.files,
            subject.sizes,
            subject.baseline,
            target.name,
            measured.environment,
            measured.after,
            measured.samples_ms,
            measured.inputs,
        )
        for target, measured in done
    ]
    print_result(values[0] if len(done) == 1 else {"targets": values}, json_to, *tables)
    _print_notes(subject, done)


def _print_notes(subject: _Subject, done: Sequence[tuple[Target, Measurement]]) -> None:
    """What was fed, once, and warnings, each with the files and, of several, the target it is about."""
    from lrexport.cli.console import note
    from lrexport.report.latency_tables import inputs_line
    from lrexport.text import plain

    for name, fed in done[0][1].inputs.items():
        if any(one["values"] != "random" for one in fed.values()):
            note(f"inputs of {plain(name)}: {inputs_line(fed)}")
    for target, measured in done:
        warned: dict[str, list[str]] = {}
        for name, latency in measured.latencies.items():
            if latency.warning:
                warned.setdefault(latency.warning, []).append(plain(name))
        where = f"{target.name}: " if len(done) > 1 else ""
        for warning, names in warned.items():
            about = f"{', '.join(names)}: " if len(names) < len(subject.files) else ""
            note(f"warning: {where}{about}{warning}")
