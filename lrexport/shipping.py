"""A run becomes files: both networks exported, verified, re-scored and measured; then both appear at once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport import runs
from lrexport.artifacts import files
from lrexport.data.images import ImageSet
from lrexport.data.resolve import check_fits, load_data
from lrexport.export.onnx_export import FIRST_OPSET, Exported, export_onnx
from lrexport.export.verify import check_same_accuracy, score_onnx
from lrexport.job import torch_result
from lrexport.lowrank.decompose import run_once
from lrexport.measure.environment import environment
from lrexport.measure.latency import measure_latency
from lrexport.measure.targets import Job
from lrexport.record import DENSE_ONNX, MODEL_ONNX, Record, Result, Results, load_record
from lrexport.training.scoring import score


@dataclass(frozen=True)
class ExportOptions:
    """``batch`` None is a dynamic one; ``rounds`` 0 measures no latency; ``data`` overrides the record's."""

    batch: int | None = 1
    opset: int = FIRST_OPSET
    rounds: int = 100
    threads: int = 1
    data: str | None = None
    rescore: bool = True


def export_run(run: Path, options: ExportOptions, on_event: Callable[[dict[str, Any]], None]) -> Record:
    """Write model.onnx and dense.onnx of a run and their figures into its record.

    Raises InputError where a graph differs from torch or scores differently; then neither file is written.
    """
    record = load_record(run)
    networks = {DENSE_ONNX: runs.load_baseline(run, record), MODEL_ONNX: runs.load_compressed(run, record)}
    files.make_run_folder(run)
    test = _test_images(record, options, networks[DENSE_ONNX])
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(dir=run, prefix=".export-") as scratch:
        paths = {name: Path(scratch) / name for name in networks}
        for name, network in networks.items():
            before = record.results.dense if name == DENSE_ONNX else record.results.compressed
            before = before or torch_result(network, record.model.input_shape, record.notes)
            done, results[name] = _export(network, paths[name], before, record, options, test)
            event = {"event": "export", "file": name, "bytes": done.bytes, "opset": done.opset}
            event |= {"relative_error": done.comparison.relative_error, "simplified": done.simplified}
            event["blind"] = done.blind and test is None
            on_event({**event, "rescored": test is not None, "uncounted": done.cost.uncounted})
        if options.rounds:
            batch = options.batch or 1
            measured = measure_latency(paths, DENSE_ONNX, Job((), options.rounds, options.threads, batch))
            results = {
                name: old.model_copy(update={"latency_ms": {"local": measured[name]}}) for name, old in results.items()
            }
        for name, path in paths.items():
            path.replace(run / name)
    if test is not None and options.data and record.data is not None:
        record.data = record.data.model_copy(update={"source": options.data, "test": len(test)})
    record.results = Results(dense=results[DENSE_ONNX], compressed=results[MODEL_ONNX])
    record.seal(run, *networks)
    training = {name: value for name, value in record.environment.items() if name in ("device", "precision")}
    record.environment = environment() | training
    record.save(run)
    return record


def _export(
    network: nn.Module, path: Path, before: Result, record: Record, options: ExportOptions, test: ImageSet | None
) -> tuple[Exported, Result]:
    samples = next(iter(test.batches(8, torch.device("cpu"))))[0] if test is not None else None
    shape = record.model.input_shape
    done = export_onnx(network, path, shape, batch=options.batch, opset=options.opset, samples=samples)
    update: dict[str, Any] = {"macs": done.cost.macs, "macs_counted_on": "onnx", "bytes": done.bytes, "latency_ms": {}}
    if test is not None:
        # The test images serve no choice here: the same ones tell whether the file is the network.
        found = score_onnx(path, test, "test")
        check_same_accuracy(path, score(network, test, torch.device("cpu"), "test"), found)
        update["accuracy"] = found
    return done, before.model_copy(update=update)


def _test_images(record: Record, options: ExportOptions, network: nn.Module) -> ImageSet | None:
    source = options.data or (record.data.source if record.data else None)
    if source is None or not options.rescore:
        return None
    data = load_data(source, record.model.input_shape)
    check_fits(data, record.model.input_shape, tuple(run_once(network, record.model.input_shape).shape))
    return data.test
