"""Latency of every network of a study beside the dense one: ONNX Runtime, one thread, the two interleaved in one process.

Two at a time, as `lrexport onnx` measures them: the more networks take turns, the less of each is still in the caches.
Measured apart from training, on a machine that does nothing else; tables show it once it is there.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.paper.study import OUT, SHAPE, Row, Study, read_kept, result_file
from benchmarks.paper.training import start_network
from lrexport.artifacts import files
from lrexport.artifacts.run_files import MODEL_ONNX
from lrexport.formats.onnx import export_onnx
from lrexport.measure.latency import measure_latency
from lrexport.measure.targets import MeasuringJob
from lrexport.runs import loading

ROUNDS = 200
DENSE = "dense"
_EXPORTED = "onnx"  # under WORK: not in the runs, whose records know of no such file


def measure(study: Study) -> None:
    """Time the networks of all rows that are in tables of the study, and write their figures beside these."""
    (study.work / _EXPORTED).mkdir(parents=True, exist_ok=True)
    dense = study.work / _EXPORTED / f"{DENSE}.onnx"
    export_onnx(start_network(study), dense, SHAPE)
    every = measured(study.label)
    where = {"machine": machine(), "date": datetime.date.today().isoformat(), "networks": 2}
    for name in dict.fromkeys(row["name"] for row in _rows(study.label) if "reference" not in row):
        if not (study.work / name).is_dir():
            print(f"{name} is not under {study.work}: not measured", file=sys.stderr)
            continue
        found = measure_latency({DENSE: dense, name: _onnx(study, name)}, DENSE, MeasuringJob((), rounds=ROUNDS))
        every[name] = {**found[name].model_dump(mode="json"), **where, "dense_p50": found[DENSE].p50}
        files.write_json(_path(study.label), every)
        print(f"{name}: {found[name].ratio:.2f} of the dense latency", flush=True)


def measured(label: str) -> dict[str, Any]:
    """By a row's name the figures of :class:`lrexport.runs.figures.Latency`, and how they were measured: the ``machine``,
    the ``date``, how many ``networks`` were interleaved, the dense one included, and ``dense_p50``, milliseconds of the
    dense network in the same measurement, which ratios are to.

    Those of networks that are not here any more stay.
    """
    return read_kept(_path(label))


def _rows(label: str) -> list[Row]:
    tables = [path for path in sorted(OUT.glob(f"*-{label}.json")) if path != _path(label)]
    return [row for path in tables for row in read_kept(path)["rows"]]


def _onnx(study: Study, name: str) -> Path:
    """The ONNX file of a row's network; that of other tools was written when it was trained."""
    other, own = study.work / name / MODEL_ONNX, study.work / _EXPORTED / f"{name}.onnx"
    if other.is_file():
        return other
    export_onnx(loading.load(study.work / name), own, SHAPE)
    return own


def _path(label: str) -> Path:
    return result_file("latency", label)
