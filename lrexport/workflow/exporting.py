"""Export of a run: both networks exported, verified, quantised, re-scored and measured; all files appear at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.run_files import (
    BASELINE,
    DENSE_INT8,
    DENSE_ONNX,
    EXPORTED,
    HOLDER,
    MODEL_ARM_ORT,
    MODEL_INT8,
    MODEL_INT8_ARM_ORT,
    MODEL_INT8_ORT,
    MODEL_ONNX,
    MODEL_ORT,
    OF_FORMATS,
    RECORD,
    SOURCE_ONNX,
)
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.export_options import ExportOptions
from lrexport.events import FileExported, FileQuantised, FilesRemoved, Measuring, OnEvent, OrtWritten, Warned, Working
from lrexport.formats.file_scores import check_same_score, score_onnx
from lrexport.formats.int8 import quantise_onnx
from lrexport.formats.onnx import export_onnx
from lrexport.formats.ort import Platform, write_ort
from lrexport.formats.rewritten import as_it_was, check_untouched
from lrexport.measure.environment import environment
from lrexport.measure.latency import Measurement, measure
from lrexport.measure.node_layers import layer_times
from lrexport.measure.runtimes.base import DEFAULT
from lrexport.measure.targets import MeasuringJob, Target, parse_target
from lrexport.metric import TOP1
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs import loading
from lrexport.runs.figures import ChosenRows, Quantisation, Result, Results
from lrexport.runs.open import torch_result, with_uncounted
from lrexport.runs.record import UNKNOWN_QUALITY, Record, StoredFile, load_record
from lrexport.runs.sources import exported_shapes, exported_signature
from lrexport.signature import Signature
from lrexport.tasks.scoring import score
from lrexport.training.engine import LASTING
from lrexport.training.stopping import heeding_signals
from lrexport.workflow.export_data import ExportData, load_export_data, output_like

_IN_INT8 = {DENSE_ONNX: DENSE_INT8, MODEL_ONNX: MODEL_INT8}
_IN_ORT: dict[str, dict[Platform, str]] = {
    MODEL_ONNX: {"amd64": MODEL_ORT, "arm": MODEL_ARM_ORT},
    MODEL_INT8: {"amd64": MODEL_INT8_ORT, "arm": MODEL_INT8_ARM_ORT},
}
_OPTIONAL = {*_IN_INT8.values(), *(name for names in _IN_ORT.values() for name in names.values()), *OF_FORMATS}


def export_run(run: Path, options: ExportOptions, on_event: OnEvent) -> Record:
    """Write model.onnx and dense.onnx of a run, on request also in int8, and their figures into its record.

    The run is locked meanwhile. Raises InputError if a graph differs from torch, scores differently, or is useless in int8;
    UsageError without images to calibrate on, or if another process uses the run. After an error no file is written.
    """
    target = parse_target(options.target, on_event)
    record = load_record(run)  # raises InputError before anything is written
    if record.model.is_file:
        check_untouched(options.batch, options.dynamic, options.opset, options.with_preprocessing)
    run_folder.check(run, (RECORD, HOLDER, *_written(options)))
    files.make_run_folder(run)
    with RunLock(run):
        run_folder.remove_leftovers(run)
        return _export_held(run, options, target, on_event)


def _written(options: ExportOptions) -> list[str]:
    """Names of the files to write."""
    written = [DENSE_ONNX, MODEL_ONNX, *(_IN_INT8.values() if options.int8 else ())]
    return [
        *written,
        *(name for source in _IN_ORT if options.ort and source in written for name in _IN_ORT[source].values()),
    ]


def _export_held(run: Path, options: ExportOptions, target: Target, on_event: OnEvent) -> Record:
    record = load_record(run)
    # The first contact with the target: an unreachable one must be noticed before minutes of work.
    machine = target.environment() if options.rounds else {}
    on_event(Working("loading the networks and the data"))
    networks = {DENSE_ONNX: loading.load_baseline(run, record), MODEL_ONNX: loading.load_compressed(run, record)}
    images = load_export_data(record, options, networks[DENSE_ONNX], run / RECORD)
    takes = exported_signature(record.model.signature, asdict(options))
    for text in images.warnings:
        on_event(Warned(text))
    results: dict[str, Result] = {}
    shapes = exported_shapes(record.model, asdict(options))
    with run_folder.scratch(run) as scratch:
        for name, network in networks.items():
            before = record.result_of(name)
            if before is None:
                before = torch_result(network, record.model.signature)
                record = record.model_copy(update={"notes": with_uncounted(record.notes, before)})
            results[name] = _export(network, scratch / name, before, run, record, options, images, on_event)
            if images.calibration is not None:
                int8 = _IN_INT8[name]
                results[int8] = _quantise(scratch / name, scratch / int8, network, results[name], images, shapes, on_event)
        in_ort = _write_ort(scratch, results, takes, networks[MODEL_ONNX], on_event) if options.ort else []
        if options.rounds:
            paths = {name: scratch / name for name in results}
            job = MeasuringJob((), options.rounds, options.threads, options.batch or 1, shapes=shapes)
            job = replace(job, profile=target.runtime == DEFAULT)  # only its nodes are known by layer
            measured = measure(paths, DENSE_ONNX, job, target, lambda facts: on_event(_measuring(target, facts)))
            results = {name: _timed(old, paths[name], measured, target.name) for name, old in results.items()}
        machines = {target.name: machine} if options.rounds and target.name != "local" else {}
        return _replace(run, _exported(record, options, results, machines), scratch, [*results, *in_ort], on_event)


def _measuring(target: Target, facts: Mapping[str, Any]) -> Measuring:
    return Measuring(target.name, facts.get("done"), facts.get("of"))


def _exported(
    record: Record, options: ExportOptions, results: dict[str, Result], targets: dict[str, dict[str, Any]]
) -> Record:
    """The record with the export's options, results and machines, still without files."""
    figures = Results(
        dense=results[DENSE_ONNX],
        compressed=results[MODEL_ONNX],
        dense_int8=results.get(DENSE_INT8),
        compressed_int8=results.get(MODEL_INT8),
    )
    training = {name: value for name, value in record.environment.items() if name in LASTING}
    here = environment() | training | ({"targets": targets} if targets else {})
    record = record.model_copy(update={"export": asdict(options), "results": figures, "environment": here, "formats": {}})
    if record.is_quality_unknown:
        return record
    return record.model_copy(update={"notes": [note for note in record.notes if note != UNKNOWN_QUALITY]})


def _replace(run: Path, record: Record, scratch: Path, written: list[str], on_event: OnEvent) -> Record:
    """Replace an earlier export's files by ``written``, then the record; returns it.

    Earlier optional files are removed: their weights, opset or batch may differ. If the process is killed in between, the
    run counts as not exported; its record never contradicts its files.
    """
    weights = {name: stored for name, stored in record.files.items() if name not in EXPORTED}
    before = load_record(run)
    record = record.model_copy(update={"files": weights}).sealed(scratch, *written)
    with heeding_signals():
        if before.files != weights:
            _unexported(before, weights).save(run)
        stale = run_folder.remove(run, *sorted(_OPTIONAL - {*written}))
        run_folder.move(run, written, scratch)
        record.save(run)
    if stale:
        on_event(FilesRemoved(tuple(stale)))
    return record


def _unexported(record: Record, weights: dict[str, StoredFile]) -> Record:
    """The record with these files and without figures of exported ones."""
    without: dict[str, Any] = {"bytes": None, "latency_ms": {}, "passes": {}, "added_macs": 0}
    dense, compressed = (
        each.model_copy(update=without) if each is not None else None
        for each in (record.results.dense, record.results.compressed)
    )
    results = Results(dense=dense, compressed=compressed)
    return record.model_copy(update={"files": weights, "export": {}, "results": results, "formats": {}})


def _export(
    network: nn.Module,
    path: Path,
    before: Result,
    run: Path,
    record: Record,
    options: ExportOptions,
    images: ExportData,
    on_event: OnEvent,
) -> Result:
    test = images.test
    samples = next(iter(test.batches(8, torch.device("cpu"))))[0] if test is not None else None
    on_event(Working(f"exporting {path.name} and comparing it with torch"))
    if isinstance(network, OnnxNetwork) and path.name == DENSE_ONNX and BASELINE not in record.files:
        done = as_it_was(network, record.check(run, SOURCE_ONNX), path, samples)
    else:
        done = export_onnx(
            network,
            path,
            record.model.signature,
            batch=options.batch,
            dynamic=options.dynamic,
            opset=options.opset,
            samples=samples,
            preprocessing=images.preprocessing,
            with_preprocessing=options.with_preprocessing,
            classes=images.classes,
            passes=options.passes,
        )
    update: dict[str, Any] = {"macs": done.cost.macs, "macs_counted_on": "onnx", "uncounted": done.cost.uncounted}
    update |= {"params": done.cost.params} if record.model.is_file else {}
    update |= {"bytes": done.bytes, "latency_ms": {}, "passes": {**done.passes}, "added_macs": done.added_macs}
    if test is not None and images.task is not None:
        # Nothing is chosen by the test images here: they verify that the file is the network.
        on_event(Working(f"scoring {path.name} on {len(test):,} test images, in ONNX Runtime and in torch"))
        like = output_like(network, samples)
        accuracy = score_onnx(path, test, "test", images.task, like, network)
        check_same_score(path, score(network, test, torch.device("cpu"), "test", task=images.task), accuracy)
        update["accuracy"] = accuracy
    rows = done.comparison.rows
    if rows is not None:
        update["chosen_rows"] = ChosenRows(of=rows.of, same=rows.same, all=rows.all)
    exported = FileExported(
        file=path.name,
        bytes=done.bytes,
        opset=done.opset,
        relative_error=done.comparison.relative_error,
        simplified=None if isinstance(network, OnnxNetwork) else done.simplified,
        blind=done.blind and test is None,
        rescored=test is not None and images.task is not None,
        uncounted=done.cost.uncounted,
        passes=done.passes,
        added_macs=done.added_macs,
        free=done.free.sizes,
        step=done.free.step,
        chosen_from=() if rows is None else rows.of,
        rows=0 if rows is None else rows.all,
        same_rows=0 if rows is None else rows.same,
    )
    on_event(exported)
    return before.model_copy(update=update)


def _quantise(
    source: Path,
    path: Path,
    network: nn.Module,
    float32: Result,
    images: ExportData,
    shapes: Mapping[str, tuple[int, ...]],
    on_event: OnEvent,
) -> Result:
    """Write the int8 file of a verified one and score it on the same test images."""
    assert images.source is not None
    assert images.calibration is not None
    on_event(Working(f"writing {path.name}, calibrated on {len(images.calibration)} images"))
    done = quantise_onnx(source, path, images.calibration, shapes or None, network)
    how = Quantisation(
        data=images.source,
        images=len(images.calibration),
        int8_macs=done.int8_macs,
        agreement=next(iter(done.agreement.same.values()), None),
        sqnr_db={**done.agreement.sqnr_db},
    )
    accuracy = None
    if images.test is not None and images.task is not None:
        on_event(Working(f"scoring {path.name}"))
        samples = next(iter(images.test.batches(1, torch.device("cpu"))))[0]
        accuracy = score_onnx(path, images.test, "test", images.task, output_like(network, samples), network)
    figures = {"precision": "int8", "quantisation": how, "accuracy": accuracy, "bytes": done.bytes, "macs": done.cost.macs}
    figures |= {"uncounted": done.cost.uncounted}
    figures |= {"heldout_accuracy": None}  # the float32 network's: int8 was calibrated on these images
    quantised = FileQuantised(
        file=path.name,
        source=source.name,
        bytes=done.bytes,
        macs=done.cost.macs,
        data=how.data,
        images=how.images,
        int8_macs=how.int8_macs,
        agreement=how.agreement,
        sqnr_db=how.sqnr_db,
        incomparable=done.agreement.incomparable,
        score=accuracy.primary if accuracy and float32.accuracy else None,
        float32_score=float32.accuracy.primary if accuracy and float32.accuracy else None,
        metric=accuracy.metric if accuracy else TOP1,
        in_float=done.in_float,
    )
    on_event(quantised)
    return float32.model_copy(update=figures)


def _timed(result: Result, path: Path, measured: Measurement, target: str) -> Result:
    """``result`` with the file's latency on the target, also by layer."""
    graph = onnx.load(path, load_external_data=False).graph
    nodes = measured.nodes_ms.get(path.name)
    spread = {"layers_ms": layer_times(graph, nodes) if nodes is not None else None}
    latency = measured.latencies[path.name].model_copy(update=spread)
    return result.model_copy(update={"latency_ms": {target: latency}})


def _write_ort(
    folder: Path, written: Iterable[str], signature: Signature, network: nn.Module, on_event: OnEvent
) -> list[str]:
    """Write the compressed ONNX files in ``folder`` in ONNX Runtime's own format; returns their names."""
    names = []
    for source in (name for name in _IN_ORT if name in written):
        for platform, name in _IN_ORT[source].items():
            on_event(Working(f"writing {name}"))
            done = write_ort(folder / source, folder / name, platform, signature, network)
            on_event(OrtWritten(name, source, platform, done.bytes, done.relative_error))
            names.append(name)
    return names
