"""The whole sweep on one screen: shared dense training → trials, each a run → the front."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrexport.artifacts import files, mark, run_folder
from lrexport.artifacts.run_files import DATABASE, DENSE_ONNX, MODEL_ONNX, OF_A_SWEEP, RECORD
from lrexport.errors import DeviceError, Stopped, UsageError
from lrexport.events import OnEvent
from lrexport.runs import loading
from lrexport.runs.figures import Result
from lrexport.runs.record import Record
from lrexport.runs.request import RunRequest
from lrexport.runs.resume import is_stopped
from lrexport.runs.sweep_record import Figures, Sweep
from lrexport.sweep.events import TrialBegun, TrialsSaved, WaitingForTrials
from lrexport.sweep.extras import need_optuna
from lrexport.sweep.locks import Process
from lrexport.sweep.request import SweepRequest
from lrexport.sweep.shared_stages import dense_stage, svd_stage
from lrexport.sweep.space import Point
from lrexport.sweep.storage import database_lock, open_storage
from lrexport.sweep.study import Book, Made
from lrexport.text import first_line
from lrexport.workflow import pipeline
from lrexport.workflow.pruning import written_bytes

_BESIDE = ("-journal", "-wal", "-shm")  # files that SQLite writes next to a database, even through a link


@dataclass(frozen=True)
class Place:
    """A sweep's folder, and its study in an Optuna storage (None: SQLite in the folder)."""

    folder: Path
    storage: str | None = None
    study: str | None = None


def run_sweep(request: SweepRequest, place: Place, on_event: OnEvent) -> Sweep:
    """Run trials until ``request.trials`` are done, together with other processes on the same study; returns the sweep.

    A resumed sweep runs the missing trials. Raises UsageError if it was made with other options, and errors of dense
    training; errors of trials are recorded in their place.
    """
    optuna = need_optuna()
    if (place.folder / RECORD).exists():
        raise UsageError(f"{place.folder} holds a run, not a sweep", "Choose another folder with -o.")
    run_folder.check(place.folder, OF_A_SWEEP)
    for beside in _BESIDE:
        run_folder.refuse_link(place.folder / f"{DATABASE}{beside}")
    folder = files.make_run_folder(place.folder)
    mark.note(folder, OF_A_SWEEP)
    try:
        with Process(folder, database_lock(place.storage)) as process:
            with process.claimed():  # only one process creates a new database's tables
                storage = open_storage(place.storage, folder)
                book = Book(request, folder, storage, place.study or folder.resolve().name, process)
            if not book.has_work():
                return book.save()
            dense = dense_stage(request, folder, on_event)
            book.bind()
            while book.begin(lambda running: on_event(WaitingForTrials(running))):
                book.make(lambda number, point, run: _trial(request, number, point, run, dense, folder, on_event))
                on_event(TrialsSaved(book.save()))
            return book.save()
    except Stopped as stopped:  # its hint is about the shared run
        raise Stopped(stopped.number, stopped.message, "Run the same command again to resume the sweep.") from stopped
    except optuna.exceptions.StorageInternalError as error:
        cause = first_line(error.__cause__ or error)
        raise DeviceError(f"the storage failed: {cause}", "Finished trials are kept; run the same command again.") from error


def _trial(
    request: SweepRequest, number: int, point: Point, run: Path, dense: Path, folder: Path, on_event: OnEvent
) -> Made:
    """One compression after the shared stages; returns figures of its network and of the dense one."""
    run_folder.refuse_link(run)
    on_event(TrialBegun(number, request.trial_count, point))
    config = request.config(point)
    start = svd_stage(request, config.train, dense, folder, on_event)
    record = pipeline.compress(RunRequest(config, run, on_event, start, is_stopped(run), allow_changes=True))
    assert record.results.dense is not None
    assert record.results.compressed is not None
    sizes: dict[str, int | None] = {DENSE_ONNX: None, MODEL_ONNX: None}
    if request.objective == "size":
        sizes |= _sizes(run, record)
    latency = record.planned_latency
    own: dict[str, float | str | None] = {}
    other: dict[str, float | str | None] = {}
    if latency is not None:
        own |= {"latency_ratio": latency.ratio, "latency_ms": latency.measured_ms, "latency_warning": latency.warning}
        own |= {"target": latency.target}
        other |= {"latency_ratio": 1.0, "latency_ms": latency.dense_ms, "target": latency.target}
    return (
        _figures(record.results.compressed, bytes=sizes[MODEL_ONNX], **own),
        _figures(record.results.dense, bytes=sizes[DENSE_ONNX], **other),
    )


def _figures(result: Result, **more: float | int | str | None) -> Figures:
    assert result.heldout_accuracy is not None  # a sweep has data
    assert result.accuracy is not None
    scores = {"heldout_score": result.heldout_accuracy.primary, "test_score": result.accuracy.primary}
    return Figures.model_validate(
        {**scores, "metric": result.accuracy.metric, "macs": result.macs, "params": result.params, **more}
    )


def _sizes(run: Path, record: Record) -> dict[str, int]:
    """Bytes of both ONNX files, which are not kept: ``lrexport onnx`` writes verified ones."""
    networks = {DENSE_ONNX: loading.load_start(run, record), MODEL_ONNX: loading.load_compressed(run, record)}
    done = record.data.preprocessing if record.data else None
    metadata: dict[str, Any] = {"preprocessing": None if done is None else done.value}
    metadata |= {"classes": record.data.class_names if record.data else ()}
    return {name: written_bytes(network, record.model.signature, metadata) for name, network in networks.items()}
