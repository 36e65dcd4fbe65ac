"""The data of an export: images to score and to calibrate on, their task, and how pictures become inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrexport.config.export_options import ExportOptions
from lrexport.data.datasets import check_fits, load_data
from lrexport.data.images import ImageData, ImageSet, draw, hold_out
from lrexport.data.sources import no_calibration
from lrexport.networks.building import from_record
from lrexport.networks.names import is_import_path
from lrexport.preprocessing import Preprocessing, asked_in
from lrexport.runs import loading
from lrexport.runs.record import Record
from lrexport.tasks.named import task_of
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch
from lrexport.torch_tools.memory_layout import run as run_network
from lrexport.torch_tools.modes import eval_mode
from lrexport.torch_tools.tracing import run_once


@dataclass(frozen=True)
class ExportData:
    """Test images to score on and held-out training images of ``source`` to calibrate on; None if not needed.

    ``preprocessing`` and the names of ``classes`` are for the files' metadata.
    """

    source: str | None = None
    test: ImageSet | None = None
    calibration: ImageSet | None = None
    warnings: tuple[str, ...] = ()
    task: Task | None = None  # of the test images; None: files are not scored by them
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] = ()


def load_export_data(record: Record, options: ExportOptions, network: nn.Module, recorded_in: Path) -> ExportData:
    """Test and calibration images, if needed; ``recorded_in`` is the record that names them and their
    task, if the user does not.

    Raises UsageError for int8 without data.
    """
    source = options.data or (record.data.source if record.data else None)
    if source is None and options.int8:
        raise no_calibration()
    if source is None or not (options.rescore or options.int8):
        return ExportData(preprocessing=_preprocessing(recorded_in, record, None))
    signature = record.model.signature
    # Other data than the run's may have no pictures, so nothing is asked of it.
    asked = asked_in(record.config) if not options.data else {}
    known = _preprocessing(recorded_in, record, None)
    given = {} if known is None else known.to_plain()
    with loading.naming_recorded_data(record, options.data):
        max_bad = int(record.config.get("max_bad", 0))
        named_in = None if options.data else recorded_in
        data = load_data(source, signature, max_bad=max_bad, named_in=named_in, asked=asked, given=given)
    check_fits(data, signature)
    output: object = run_once(network, signature)
    task = task_of(record.config.get("task"), data, network, recorded_in, output)
    if task is not None:
        task.check_output(output, data)
    calibration = _calibration_images(data, record, options.calibration_images) if options.int8 else None
    return ExportData(
        source,
        data.test if options.rescore else None,
        calibration,
        data.warnings,
        task,
        _preprocessing(recorded_in, record, data),
        tuple(data.classes),
    )


def _calibration_images(data: ImageData, record: Record, most: int) -> ImageSet:
    """At most ``most`` of the training images that the run holds out, drawn by its seed."""
    seed = int(record.config.get("seed", 0))
    heldout = hold_out(data, float(record.config.get("heldout", 0.1)), seed=seed).heldout
    return draw(heldout, most, seed)


def _preprocessing(recorded_in: Path, record: Record, data: ImageData | None) -> Preprocessing | None:
    """For the run of the record in the file ``recorded_in``; ``data`` is what the export loaded.

    None for a network that takes no picture, and where nobody says how pictures become its input.
    """
    signature = record.model.signature
    if not signature.takes_images:
        return None
    stored = record.data.preprocessing if record.data is not None else None
    if stored is not None:
        return stored.value
    if data is not None and data.preprocessing is not None:
        return data.preprocessing
    if record.data is not None and record.data.mean:  # of a run that an older version made
        return Preprocessing.of(signature.shape, {}, data={"mean": record.data.mean, "std": record.data.std})
    if is_import_path(record.model.source):
        return None
    said = from_record(record.model, recorded_in).preprocessing
    return Preprocessing.of(signature.shape, {}, given=said) if said else None


@torch.no_grad()
def output_like(network: nn.Module, samples: Batch | None) -> Any:
    """The network's output for the first of some samples, whose form the outputs of its file get."""
    if samples is None:
        return None
    with eval_mode(network):
        return run_network(network, samples[:1])
