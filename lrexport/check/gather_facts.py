"""Facts about a run or an .onnx file: counted on the file itself, accuracy and latency from its record."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrexport.artifacts.children import threads_with_children
from lrexport.artifacts.files import check_readable
from lrexport.artifacts.lfs import refuse_lfs_pointer
from lrexport.artifacts.run_files import DENSE_ONNX, MODEL_ONNX, RECORD
from lrexport.budget.facts import AccuracyFacts, Facts, LatencyFacts, Layer, ScoreFacts, machine_of
from lrexport.check.find_models import is_other
from lrexport.errors import InputError
from lrexport.measure.macs.onnx_macs import layer_of
from lrexport.measure.macs.onnx_survey import Survey, survey
from lrexport.metric import TOP1, TOP5
from lrexport.text import shell_path

if TYPE_CHECKING:
    from lrexport.runs.figures import Result
    from lrexport.runs.record import Record

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Gathered:
    """A model, the dense network to compare it with, if any, and the .onnx files of both.

    ``files`` are all files that hold the model's bytes. ``gaps`` is as in :class:`lrexport.budget.quantities.Comparison`.
    ``notes`` tell readers of the figures what to know about the file.
    """

    facts: Facts
    file: Path | None = None
    dense: Facts | None = None
    dense_file: Path | None = None
    files: tuple[Path, ...] = ()
    gaps: Mapping[tuple[str, str], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class How:
    """What to gather: also the size after gzip, and MACs at these sizes of inputs."""

    with_gzip: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def survey(self, path: Path) -> Survey:
        """Count an .onnx file. Raises InputError, and UsageError if the shapes do not fit the file."""
        return survey(path, self.shapes) if self.shapes else survey(path)


def gather_facts(path: Path, how: How | None = None, dense: Path | None = None) -> Gathered:
    """Facts about a run, an .onnx file, possibly of a run, or a file of another kind, which only has a size.

    ``dense`` replaces the run's dense network. Raises InputError for a file that is malformed, damaged or contradicts the
    record, or a run without a result; UsageError if the shapes do not fit.
    """
    how = how or How()
    if is_other(path):
        looked = _look_at_other(path, how)
        return looked if dense is None else replace(looked, dense=gather_facts(dense, how).facts, dense_file=dense)
    run, name = (path, MODEL_ONNX) if path.is_dir() else (path.parent, path.name)
    with threads_with_children(2) as pool:
        # The child processes count while this one imports the record's library.
        now = pool.submit(how.survey, run / name) if (run / name).is_file() else None
        other = pool.submit(gather_facts, dense, how) if dense is not None else None
        record = _record_of(path)
        if record is not None:
            looked = _look_at_run(run, name, record, now, how)
        else:
            surveyed = (now or pool.submit(how.survey, path)).result()
            looked = Gathered(_facts(surveyed, how), path, files=surveyed.files, notes=tuple(surveyed.notes))
    if other is not None:
        looked = replace(looked, dense=other.result().facts, dense_file=dense)
    return looked


def _look_at_other(path: Path, how: How) -> Gathered:
    """Facts about a file whose size alone is known, such as one for another runtime. Raises InputError."""
    refuse_lfs_pointer(path)
    check_readable(path)
    packed = gzip_bytes([path]) if how.with_gzip else None
    return Gathered(Facts(bytes=path.stat().st_size, gzip_bytes=packed, kind=_kind(path)), path, files=(path,))


def _kind(path: Path) -> str:
    return f"a {path.suffix} file" if path.suffix else "a file without a suffix"


def _record_of(path: Path) -> Record | None:
    """The record of a run, or of the run that an .onnx file belongs to; None if it belongs to none."""
    if not path.is_dir() and not (path.parent / RECORD).is_file():
        return None
    from lrexport.runs.record import load_record

    if path.is_dir():
        return load_record(path)
    record = load_record(path.parent)
    return record if path.name in record.files and record.result_of(path.name) is not None else None


def _look_at_run(run: Path, name: str, record: Record, counting: Future[Survey] | None, how: How) -> Gathered:
    result = record.result_of(name)
    if result is None:
        raise InputError(
            f"{run} has no compressed network yet", f"Compress it: lrexport compress {shell_path(run)} --macs 0.5"
        )
    file, counted = None, Facts()
    files: tuple[Path, ...] = ()
    if name in record.files:
        file = record.check(run, name)
        sized = _sized(how, record)
        surveyed = counting.result() if counting and sized is how else sized.survey(file)
        counted, files = _facts(surveyed, how), surveyed.files
    dense = None
    if record.results.dense:
        counts_dense = how.shapes and DENSE_ONNX in record.files  # the record has its MACs at the run's own sizes
        dense_facts = _facts(how.survey(record.check(run, DENSE_ONNX)), how) if counts_dense else Facts()
        dense = _recorded(dense_facts, record.results.dense, record)
    unknown = name != DENSE_ONNX and record.is_quality_unknown
    notes = ("quality unknown: the network was compressed without data",) if unknown else ()
    return Gathered(_recorded(counted, result, record), file, dense, run / DENSE_ONNX, files, notes=notes)


def _sized(how: How, record: Record) -> How:
    """With the sizes at which the run's files were counted, where they leave them open and nobody gave others."""
    from lrexport.runs.sources import exported_shapes

    shapes = exported_shapes(record.model, record.export)
    return replace(how, shapes=shapes) if shapes and not how.shapes else how


def _recorded(facts: Facts, result: Result, record: Record) -> Facts:
    """``facts`` with accuracy and latency from the record, and its MACs and bytes if they were not counted."""
    return replace(
        facts,
        bytes=result.bytes if facts.bytes is None else facts.bytes,
        macs=result.macs if facts.macs is None else facts.macs,
        uncounted=result.uncounted if facts.macs is None else facts.uncounted,
        params=result.params,
        accuracy=_accuracy(result),
        latency_ms={
            target: latency(measured.model_dump(), machine_of(record.environment_of(target)))
            for target, measured in result.latency_ms.items()
        },
    )


def _accuracy(result: Result) -> AccuracyFacts | ScoreFacts | None:
    score = result.accuracy
    if score is None:
        return None
    top1, top5 = score.value_of(TOP1), score.value_of(TOP5)
    if top1 is not None and top5 is not None:
        return AccuracyFacts(top1, top5, score.n)
    metric = score.metric
    return ScoreFacts(score.task, metric.name, metric.unit, score.primary, score.n, metric.higher_is_better)


def latency(figures: Mapping[str, Any], machine: Mapping[str, Any]) -> LatencyFacts:
    """A latency from a record's dictionary, measured on ``machine``."""
    quartiles = figures["ratio_iqr"]
    return LatencyFacts(
        p50=figures["p50"],
        p90=figures["p90"],
        iqr=figures["iqr"],
        threads=figures["threads"],
        batch=figures["batch"],
        ratio=figures["ratio"],
        ratio_iqr=(quartiles[0], quartiles[1]) if quartiles else None,
        warning=figures["warning"],
        machine=machine,
    )


def _facts(surveyed: Survey, how: How) -> Facts:
    return Facts(
        bytes=surveyed.bytes,
        gzip_bytes=gzip_bytes(surveyed.files) if how.with_gzip else None,
        macs=surveyed.cost.macs,
        params=surveyed.cost.params,
        opset=surveyed.opset,
        operators=surveyed.operators,
        uncounted=surveyed.cost.uncounted,
        layers=_layers(surveyed),
        graph=surveyed.structure,
    )


def gzip_bytes(files: Iterable[Path]) -> int:
    """Bytes of the files after ``gzip -9``, each compressed separately, without a file name in the header."""
    total = 0
    for path in files:
        packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)  # +16: with the header and trailer of gzip
        with open(path, "rb") as stream:
            for block in iter(lambda: stream.read(_BLOCK), b""):
                total += len(packer.compress(block))
        total += len(packer.flush())
    return total


def _layers(surveyed: Survey) -> dict[str, Layer]:
    """Costs by layer; nodes without a weight are listed by their own name."""
    layers: dict[str, Layer] = {}
    for node in surveyed.cost.nodes:
        name = layer_of(node.weight) if node.weight else node.name or node.operator
        sofar = layers.get(name, Layer(0, 0, 0))
        layers[name] = Layer(sofar.macs + node.macs, sofar.params + node.params, sofar.bytes + node.bytes)
    return layers
