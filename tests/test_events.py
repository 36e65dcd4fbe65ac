"""Events as values, and the lines of log.jsonl that they become: other programs read those, so they stay as they are."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from lrexport import events
from lrexport.events import Event, event_to_json
from lrexport.plan import PlannedLatency

EPOCH = events.EpochDone("svd", 1, 2, 30, 0.5, 0.25, 0.1, 1.5, images_per_second=640.0, step_ms=12.0)
EPOCH_LINE = (
    '{"event": "epoch", "stage": "svd", "epoch": 1, "epochs": 2, "steps": 30, "loss": 0.5, "heldout_top1": 0.25, "lr": 0.1, '
    '"seconds": 1.5, "images_per_second": 640.0, "step_ms": 12.0'
)
TIMES = {"dense_ms": 4.0, "predicted_ms": 2.0, "measured_ms": 2.5, "ratio": 0.625}
LATENCY = PlannedLatency(target="local", threads=1, ratio_iqr=(0.6, 0.7), **TIMES)
LINES: list[tuple[Event, str]] = [
    (events.Noted("a"), '{"event": "note", "text": "a"}'),
    (events.Warned("a"), '{"event": "warning", "text": "a"}'),
    (events.Working("a"), '{"event": "working", "text": "a"}'),
    (events.Working("a", 1, 2), '{"event": "working", "text": "a", "done": 1, "of": 2}'),
    (events.AlreadyFinished("run"), '{"event": "finished", "run": "run"}'),
    (
        events.DataLoaded("arrays:a.npz", 8, 1, 2),
        '{"event": "data", "source": "arrays:a.npz", "train": 8, "heldout": 1, "test": 2}',
    ),
    (events.ExportChecked(0.5), '{"event": "export check", "seconds": 0.5}'),
    (events.LayersTimed(1, 2, "local"), '{"event": "table", "done": 1, "of": 2, "target": "local"}'),
    (events.DenseTimed(2.5, "local", None), '{"event": "speed", "dense": 2.5, "target": "local", "table": null}'),
    (events.Measuring("local"), '{"event": "measuring", "target": "local"}'),
    (events.Measuring("local", 3, 9), '{"event": "measuring", "target": "local", "done": 3, "of": 9}'),
    (
        events.StepDone("dense", 0, 2, 4, 30, 1.5),
        '{"event": "step", "stage": "dense", "epoch": 0, "epochs": 2, "step": 4, "steps": 30, "loss": 1.5}',
    ),
    (EPOCH, EPOCH_LINE + "}"),
    (
        events.EpochDone(**{**vars(EPOCH), "step_over_dense": 1.25, "steered": events.Steering(0.1, 0.2, 0.3)}),
        EPOCH_LINE + ', "step_over_dense": 1.25, "steered": {"weakest": 0.1, "strongest": 0.2, "energy_dropped": 0.3}}',
    ),
    (events.RanksCut(2, 7, 0.5), '{"event": "cut", "epoch": 2, "layers": 7, "macs_share": 0.5}'),
    (events.ChoosingRanks(512), '{"event": "pruning", "images": 512}'),
    (
        events.PlanChosen(threshold=None, macs=400, dense_macs=1000),
        '{"event": "plan", "threshold": null, "macs": 400, "dense_macs": 1000}',
    ),
    (
        events.PlanChosen(
            threshold=0.1,
            scores={"heldout_top1": 0.5, "heldout_top1_after_reconstruction": 0.75},
            heldout_before=1.0,
            latency=LATENCY,
            macs=400,
            dense_macs=1000,
        ),
        '{"event": "plan", "threshold": 0.1, "heldout_top1": 0.5, "heldout_top1_after_reconstruction": 0.75, '
        '"heldout_top1_before": 1.0, "latency": {"target": "local", "dense": 4.0, "predicted": 2.0, "measured": 2.5, '
        '"ratio": 0.625}, "macs": 400, "dense_macs": 1000}',
    ),
    (
        events.HealingPart(2, 7, "block", "layer1.0"),
        '{"event": "healing", "done": 2, "of": 7, "kind_of_part": "block", "name": "layer1.0"}',
    ),
    (
        events.FidelityMeasured(repaired={"SQNR": 12.5, "agreement": 0.75}),
        '{"event": "fidelity", "repaired": {"SQNR": 12.5, "agreement": 0.75}, "parts": 0, "kept": 0, "steps": 0, '
        '"seconds": 0.0, "complete": true, "rates": {}}',
    ),
    (
        events.FidelityMeasured(
            repaired={"SQNR": 12.5},
            healed={"SQNR": 20.5},
            parts=7,
            kept=6,
            steps=90,
            seconds=2.5,
            complete=False,
            rates={"network": 0.01},
        ),
        '{"event": "fidelity", "repaired": {"SQNR": 12.5}, "healed": {"SQNR": 20.5}, "parts": 7, "kept": 6, "steps": 90, '
        '"seconds": 2.5, "complete": false, "rates": {"network": 0.01}}',
    ),
    (
        events.FileExported("model.onnx", 9, 17, 0.25, True, False, True, ("Foo",)),
        '{"event": "export", "file": "model.onnx", "bytes": 9, "opset": 17, "relative_error": 0.25, "simplified": true, '
        '"blind": false, "rescored": true, "uncounted": ["Foo"], "free": [], "step": 1, "chosen_from": [], "rows": 0, '
        '"same_rows": 0, "passes": {}, "added_macs": 0}',
    ),
    (
        events.FileQuantised(
            file="model.int8.onnx",
            source="model.onnx",
            bytes=9,
            macs=8,
            data="digits",
            images=7,
            int8_macs=6,
            agreement=1.0,
            score=0.5,
            float32_score=0.75,
            in_float=(),
        ),
        '{"event": "int8", "file": "model.int8.onnx", "source": "model.onnx", "bytes": 9, "macs": 8, "data": "digits", '
        '"images": 7, "int8_macs": 6, "agreement": 1.0, "sqnr_db": {}, "incomparable": [], "top1": 0.5, '
        '"float32_top1": 0.75, "in_float": []}',
    ),
    (
        events.OrtWritten("m.ort", "m.onnx", "arm", 9, 0.5),
        '{"event": "ort", "file": "m.ort", "source": "m.onnx", "platform": "arm", "bytes": 9, "relative_error": 0.5}',
    ),
    (
        events.FormatWritten(("m.mnn",), "m.onnx", "mnn", 9, 0.5, "float32"),
        '{"event": "format", "files": ["m.mnn"], "source": "m.onnx", "runtime": "mnn", "bytes": 9, "relative_error": 0.5, '
        '"precision": "float32"}',
    ),
    (
        events.FormatQuantised(
            files=("m.int8.mnn",),
            source="m.onnx",
            runtime="MNN",
            tool="MNN 3",
            bytes=9,
            data="digits",
            images=7,
            agreement=1.0,
            relative_error=0.5,
            score=0.5,
            float32_score=0.75,
        ),
        '{"event": "format int8", "files": ["m.int8.mnn"], "source": "m.onnx", "runtime": "MNN", "tool": "MNN 3", '
        '"bytes": 9, "data": "digits", "images": 7, "agreement": 1.0, "sqnr_db": {}, "incomparable": [], '
        '"relative_error": 0.5, "top1": 0.5, "float32_top1": 0.75}',
    ),
    (events.FilesRemoved(("model.ort",)), '{"event": "removed", "files": ["model.ort"]}'),
]


@pytest.mark.parametrize(("event", "line"), LINES, ids=lambda each: each.kind if isinstance(each, Event) else "")
def test_the_line_of_each_event_stays_as_it_is(event: Event, line: str) -> None:
    assert json.dumps(event_to_json(event)) == line


def test_every_event_of_a_run_has_its_line_pinned_here_and_a_kind_that_no_other_has() -> None:
    mine = {kind for kind in Event.__subclasses__() if kind.__module__ == events.__name__}
    assert mine == {type(event) for event, _ in LINES}
    assert len({kind.kind for kind in Event.__subclasses__()}) == len(Event.__subclasses__())


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        EPOCH.loss = 0.0  # type: ignore[misc]


def test_the_class_of_an_event_says_whether_a_run_logs_it() -> None:
    logged = {type(event).kind for event, _ in LINES if event.logged}
    assert logged == {"note", "warning", "export check", "epoch", "cut", "plan", "fidelity"}
