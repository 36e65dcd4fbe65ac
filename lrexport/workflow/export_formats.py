"""Other formats of an exported run: made from its ONNX files, compared and scored in their runtimes, written all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.run_files import DENSE_ONNX, HOLDER, IN_FORMATS, MODEL_ONNX, ORT, RECORD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.export_options import ExportOptions
from lrexport.config.runtime_titles import title_of
from lrexport.errors import UsageError
from lrexport.events import FormatWritten, OnEvent, Warned, Working
from lrexport.formats.in_runtime import Subject, write_in_ort, write_in_runtime
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.metric import TOP1
from lrexport.runs import loading
from lrexport.runs.record import Format, FormatFiles, Record, exported_shapes, exported_signature, load_record
from lrexport.text import shell_path
from lrexport.training.stopping import heeding_signals
from lrexport.workflow.export_data import ExportData, load_export_data, output_like


@dataclass(frozen=True)
class FormatRequest:
    """A format to write, and the Python that has its runtime and toolchain; None: this one."""

    name: str
    python: str | None = None


def export_formats(run: Path, asked: Sequence[FormatRequest], data: str | None, rescore: bool, on_event: OnEvent) -> Record:
    """Write the files of an exported run in other formats, and their figures into its record.

    The run is locked meanwhile. Raises UsageError if it has no ONNX files yet, InputError if a runtime cannot have a network
    or computes something else, DeviceError without the runtime. After an error no file is written.
    """
    record = load_record(run)
    if DENSE_ONNX not in record.files or MODEL_ONNX not in record.files:
        raise UsageError(f"{run} has no ONNX files yet", f"Write them with lrexport onnx {shell_path(run)}.")
    names = [name for each in asked for of_source in IN_FORMATS[each.name].values() for name in of_source]
    run_folder.check(run, (RECORD, HOLDER, *names))
    files.make_run_folder(run)
    with RunLock(run):
        run_folder.remove_leftovers(run)
        record = load_record(run)
        on_event(Working("loading the networks and the data"))
        networks = {DENSE_ONNX: loading.load_baseline(run, record), MODEL_ONNX: loading.load_compressed(run, record)}
        images = load_export_data(record, ExportOptions(data=data, rescore=rescore), networks[DENSE_ONNX], run / RECORD)
        for text in images.warnings:
            on_event(Warned(text))
        subjects = {name: _subject(network, record, images) for name, network in networks.items()}
        with run_folder.scratch(run) as scratch:
            formats = {each.name: _format(each, run, scratch, record, subjects, on_event) for each in asked}
            record = record.model_copy(update={"formats": {**record.formats, **formats}}).sealed(scratch, *names)
            with heeding_signals():
                run_folder.move(run, names, scratch)
                record.save(run)
    return record


def _subject(network: nn.Module, record: Record, images: ExportData) -> Subject:
    samples = None if images.test is None else next(iter(images.test.batches(1, torch.device("cpu"))))[0]
    return Subject(
        network,
        exported_signature(record.model.signature, record.export),
        exported_shapes(record.model, record.export),
        images.test,
        images.task,
        output_like(network, samples),
    )


def _format(
    asked: FormatRequest,
    run: Path,
    scratch: Path,
    record: Record,
    subjects: dict[str, Subject],
    on_event: OnEvent,
) -> Format:
    """Write the files of both networks in one format into ``scratch``."""
    made: dict[str, FormatFiles] = {}
    runtime = DEFAULT if asked.name == ORT else asked.name
    title, version, precision = title_of(runtime), "", ""
    for source, names in IN_FORMATS[asked.name].items():
        compared = f" and comparing it with {source} in {title}" if base.runtime(runtime).is_run else f" from {source}"
        on_event(Working(f"writing {names[0]}{compared}"))
        result = record.result_of(source)
        known = result.accuracy if result is not None else None
        paths = [scratch / name for name in names]
        model, subject = record.check(run, source), subjects[source]
        if asked.name == ORT:
            done = write_in_ort(model, paths, subject, known)
        else:
            done = write_in_runtime(model, paths, runtime, asked.python, subject, known)
        version, precision = done.version, done.precision
        made[source] = FormatFiles(
            files=names,
            bytes=done.bytes,
            relative_error=done.relative_error,
            sizes=done.sizes,
            accuracy=done.score,
            notes=done.notes,
        )
        on_event(
            FormatWritten(
                files=names,
                source=source,
                runtime=title,
                bytes=done.bytes,
                relative_error=done.relative_error,
                precision=precision,
                score=done.score.primary if done.score else None,
                metric=done.score.metric if done.score else TOP1,
                notes=done.notes or None,
            )
        )
    return Format(runtime=runtime, version=version, precision=precision, dense=made[DENSE_ONNX], compressed=made[MODEL_ONNX])
