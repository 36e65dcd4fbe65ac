"""Latency of every network of a study beside the dense one: ONNX Runtime, one thread, all interleaved in one process.

Measured apart from training, on a machine that does nothing else; tables show it once it is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.paper.study import OUT, Study
from benchmarks.paper.training import SHAPE, start_network
from lrexport import runs
from lrexport.artifacts import files
from lrexport.export.onnx_export import export_onnx
from lrexport.measure.latency import measure_latency
from lrexport.measure.targets import Job
from lrexport.record import MODEL_ONNX

ROUNDS = 200
DENSE = "dense"
_EXPORTED = "onnx"  # under WORK: not in the runs, whose records know of no such file


def measure(study: Study) -> None:
    """Time the networks of all rows that are in tables of the study, and write their figures beside these."""
    (study.work / _EXPORTED).mkdir(exist_ok=True)
    networks = {name: _onnx(study, name) for name in sorted(_rows(study.label)) if not name.startswith(DENSE)}
    dense = study.work / _EXPORTED / f"{DENSE}.onnx"
    if not dense.is_file():
        export_onnx(start_network(study), dense, SHAPE)
    found = measure_latency({DENSE: dense, **networks}, DENSE, Job((), rounds=ROUNDS))
    figures = {name: latency.model_dump(mode="json") for name, latency in found.items()}
    files.write_json(_path(study.label), {"machine": machine(), "rounds": ROUNDS, "latency": figures})


def latencies(label: str) -> dict[str, Any]:
    """Figures by the name of a row, as :class:`lrexport.record.Latency`; none where nothing was measured."""
    path = _path(label)
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["latency"]
    return found


def _rows(label: str) -> set[str]:
    tables = [path for path in OUT.glob(f"*-{label}.json") if path != _path(label)]
    return {row["name"] for path in tables for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def _onnx(study: Study, name: str) -> Path:
    """The ONNX file of a row's network; that of other tools was written when it was trained."""
    other, own = study.work / name / MODEL_ONNX, study.work / _EXPORTED / f"{name}.onnx"
    if other.is_file():
        return other
    if not own.is_file():
        export_onnx(runs.load(study.work / name), own, SHAPE)
    return own


def _path(label: str) -> Path:
    return OUT / f"latency-{label}.json"
