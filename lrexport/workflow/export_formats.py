"""Other formats of an exported run: made from its ONNX files, compared and scored in their runtimes, written all at once.

On request also in int8, by the quantiser of each runtime, from its float32 files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.run_files import DENSE_ONNX, HOLDER, IN_FORMATS, IN_FORMATS_INT8, MODEL_ONNX, ORT, RECORD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.export_options import ExportOptions
from lrexport.config.runtime_titles import title_of
from lrexport.data.images import ImageSet
from lrexport.errors import UsageError
from lrexport.events import FilesRemoved, FormatQuantised, FormatWritten, OnEvent, Warned, Working
from lrexport.formats.in_runtime import InRuntime, Subject, write_in_ort, write_in_runtime
from lrexport.formats.int8_in_runtime import write_int8_in_runtime
from lrexport.measure.runtimes import base
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets.artefacts import check_quantiser
from lrexport.metric import TOP1
from lrexport.runs import loading
from lrexport.runs.figures import Format, FormatFiles, FormatQuantisation
from lrexport.runs.record import Record, load_record
from lrexport.runs.scores import Score
from lrexport.runs.sources import exported_shapes, exported_signature
from lrexport.text import shell_path
from lrexport.training.stopping import heeding_signals
from lrexport.workflow.export_data import ExportData, load_export_data, output_like


@dataclass(frozen=True)
class FormatRequest:
    """A format to write, and the Python that has its runtime and toolchain; None: this one."""

    name: str
    python: str | None = None


def export_formats(run: Path, asked: Sequence[FormatRequest], options: ExportOptions, on_event: OnEvent) -> Record:
    """Write the files of an exported run in other formats, and their figures into its record.

    Of the ``options`` count ``data``, ``rescore``, and ``int8`` with its calibration images. The run is locked meanwhile.
    Raises UsageError if it has no ONNX files yet or a runtime has no int8, InputError if a runtime cannot have a network or
    computes something else, DeviceError without the runtime. After an error no file is written.
    """
    if options.int8:
        check_int8([each.name for each in asked])
    record = load_record(run)
    if DENSE_ONNX not in record.files or MODEL_ONNX not in record.files:
        raise UsageError(f"{run} has no ONNX files yet", f"Write them with lrexport onnx {shell_path(run)}.")
    names = [name for each in asked for of_source in IN_FORMATS[each.name].values() for name in of_source]
    in_int8 = [name for each in asked for of_source in IN_FORMATS_INT8.get(each.name, {}).values() for name in of_source]
    names += in_int8 if options.int8 else []
    run_folder.check(run, (RECORD, HOLDER, *names))
    files.make_run_folder(run)
    with RunLock(run):
        run_folder.remove_leftovers(run)
        record = load_record(run)
        for each in asked if options.int8 else ():
            check_quantiser(each.name, each.python, title_of(each.name))
        on_event(Working("loading the networks and the data"))
        networks = {DENSE_ONNX: loading.load_baseline(run, record), MODEL_ONNX: loading.load_compressed(run, record)}
        images = load_export_data(record, options, networks[DENSE_ONNX], run / RECORD)
        for text in images.warnings:
            on_event(Warned(text))
        subjects = {name: _subject(network, record, images) for name, network in networks.items()}
        with run_folder.scratch(run) as scratch:
            formats = {each.name: _format(each, run, scratch, record, subjects, images, on_event) for each in asked}
            stale = [] if options.int8 else in_int8
            kept = {name: stored for name, stored in record.files.items() if name not in stale}
            record = record.model_copy(update={"formats": {**record.formats, **formats}, "files": kept})
            record = record.sealed(scratch, *names)
            with heeding_signals():
                run_folder.move(run, names, scratch)
                record.save(run)
                removed = run_folder.remove(run, *stale)
        if removed:
            on_event(FilesRemoved(tuple(removed)))
    return record


def check_int8(formats: Iterable[str]) -> None:
    """Raise UsageError for a format whose runtime has no quantiser."""
    for name in formats:
        if name == ORT:
            raise UsageError("--int8 with --to ort", "lrexport onnx RUN --int8 --ort writes model.int8.ort.")
        if name not in IN_FORMATS_INT8:
            known = ", ".join(IN_FORMATS_INT8)
            raise UsageError(
                f"lrexport writes no int8 files for {title_of(name)}: {base.runtime(name).no_int8}",
                f"Formats with --int8: {known}. lrexport onnx RUN --int8 writes those of ONNX Runtime.",
            )


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
    images: ExportData,
    on_event: OnEvent,
) -> Format:
    """Write the files of both networks in one format into ``scratch``, in int8 too if there are images to calibrate on."""
    made: dict[str, FormatFiles] = {}
    in_int8: dict[str, FormatFiles] = {}
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
                score=_primary(done.score),
                metric=done.score.metric if done.score else TOP1,
                notes=done.notes or None,
            )
        )
        if images.calibration is not None:
            in_int8[source] = _in_int8(asked, model, scratch, done, subject, images, images.calibration, on_event)
    return Format(
        runtime=runtime,
        version=version,
        precision=precision,
        dense=made[DENSE_ONNX],
        compressed=made[MODEL_ONNX],
        dense_int8=in_int8.get(DENSE_ONNX),
        compressed_int8=in_int8.get(MODEL_ONNX),
    )


def _in_int8(
    asked: FormatRequest,
    model: Path,
    scratch: Path,
    float32: InRuntime,
    subject: Subject,
    images: ExportData,
    calibration: ImageSet,
    on_event: OnEvent,
) -> FormatFiles:
    """Write the int8 files of the network in the ONNX file ``model``, whose float32 files are in ``scratch``."""
    assert float32.ports is not None
    assert images.source is not None
    names, title = IN_FORMATS_INT8[asked.name][model.name], title_of(asked.name)
    floats, paths = ([scratch / name for name in each[asked.name][model.name]] for each in (IN_FORMATS, IN_FORMATS_INT8))
    on_event(Working(f"writing {names[0]}, calibrated on {len(calibration)} images"))
    done = write_int8_in_runtime(model, floats, paths, asked.name, asked.python, float32.ports, subject, calibration)
    how = FormatQuantisation(
        tool=done.tool,
        data=images.source,
        images=len(calibration),
        agreement=next(iter(done.agreement.same.values()), None),
        sqnr_db={**done.agreement.sqnr_db},
    )
    on_event(
        FormatQuantised(
            files=names,
            source=model.name,
            runtime=title,
            tool=done.tool,
            bytes=done.bytes,
            data=how.data,
            images=how.images,
            agreement=how.agreement,
            sqnr_db=how.sqnr_db,
            incomparable=done.agreement.incomparable,
            relative_error=done.agreement.relative_error,
            score=_primary(done.score),
            float32_score=_primary(float32.score),
            metric=done.score.metric if done.score else TOP1,
            notes=done.notes or None,
        )
    )
    return FormatFiles(
        files=names,
        bytes=done.bytes,
        relative_error=done.agreement.relative_error,
        sizes=float32.sizes[:1],
        accuracy=done.score,
        notes=done.notes,
        quantisation=how,
    )


def _primary(score: Score | None) -> float | None:
    return None if score is None else score.primary
