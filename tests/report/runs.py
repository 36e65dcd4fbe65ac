"""Small finished runs, written without torch: record, spectra.json and log.jsonl, with whatever names a test likes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lrexport.artifacts.run_files import LOG, SPECTRA
from lrexport.plan import Dense, Pair
from lrexport.runs.figures import Latency, Result, Results
from lrexport.runs.record import Record
from lrexport.runs.scores import Accuracy
from lrexport.runs.sources import DataSource, ModelSource

MACHINE = {"cpu": "Sample CPU @ 2 GHz", "cores": 4, "isa": ["avx2"], "system": "Linux x86_64", "onnxruntime": "1.31.1"}
NAMES = ("stem", "layer1.conv", "layer2.conv", "head")
# Each is markup to somebody: a browser, plotly, Markdown, a shell, YAML.
HOSTILE = (
    "</script><script>window.owned = 1</script>",
    "<img src=x onerror='window.owned = 2'>",
    '<b>bold</b><a href="javascript:window.owned=3">link</a>%{y}',
    "[x](javascript:alert(1)) **bold** | cell `code` @team #1",
    "\u202enoitceridni\nsecond line: {{ 7 * 7 }} ${7*7} $(touch owned) &lt;i&gt;",
)


def write_run(
    run: Path,
    names: Iterable[str] = NAMES,
    *,
    model: str = "samples:network",
    share: float = 0.5,
    top1: float = 0.95,
    dense_top1: float = 0.96,
    data: str | None = "digits",
    milliseconds: float | None = 0.6,
    environment: dict[str, Any] | None = None,
    trained: bool = True,
    goal: dict[str, Any] | None = None,
) -> Record:
    """Of the layers every first one of four stays whole, the others keep a quarter of their rank."""
    run.mkdir(parents=True)
    names = list(names)
    plan: dict[str, Pair | Dense] = {}
    for number, name in enumerate(names):
        if number % 4 == 0:
            plan[name] = Dense(kind="kept", reason="kept as asked", dense_macs=50_000, dense_params=500, shape=(8, 3, 3, 3))
            continue
        plan[name] = Pair(
            scheme="spatial", rank=6, full_rank=24, energy_kept=0.9, dense_macs=100_000, macs=40_000, dense_params=1000,
            params=400, shape=(8, 8, 3, 3),
        )  # fmt: skip
    dense_macs = sum(layer.dense_macs for layer in plan.values()) + 1000
    record = Record(
        model=ModelSource(source=model, input_shape=(3, 8, 8)),
        data=DataSource(source=data, classes=10, train=900, heldout=100, test=200, mean=(0.5,), std=(0.5,))
        if data
        else None,
        config={"model": model, "data": data, "goal": goal or {"macs": share}, "dense_epochs": 2, "svd_epochs": 2},
        environment=environment or MACHINE,
        plan=plan,
        results=Results(
            dense=_result(dense_macs, dense_top1 if data else None, milliseconds and 1.0, None, names),
            compressed=_result(round(share * dense_macs), top1 if data else None, milliseconds, milliseconds, names),
        ),
    )
    values = {name: [0.8**i for i in range(24)] for name in plan}
    layers = {
        name: {"scheme": "spatial", "dense": found, "trained": [v**2 for v in found] if trained else None}
        for name, found in values.items()
    }
    (run / SPECTRA).write_text(json.dumps({"schema_version": 1, "layers": layers}))
    record = record.sealed(run, SPECTRA)
    events: list[dict[str, Any]] = []
    for stage in ("dense", "svd", "plan", "fine-tune", "baseline") if trained else ():
        if stage == "plan":
            events.append({"event": "plan", "macs": 1})
        else:
            epochs = ({"epoch": epoch, "loss": 1 / epoch, "heldout_top1": 0.4 + epoch / 4} for epoch in (1, 2))
            events += [{"event": "epoch", "stage": stage, **epoch} for epoch in epochs]
    (run / LOG).write_text("".join(json.dumps(event) + "\n" for event in events))
    record.save(run)
    return record


def _result(macs: int, top1: float | None, p50: float | None, ratio: float | None, names: list[str]) -> Result:
    latency = {}
    if p50 is not None:
        times = {name: p50 / (len(names) + 1) for name in [*names, ""]}
        iqr = (ratio - 0.02, ratio + 0.02) if ratio is not None else None
        common = {"p90": p50 * 1.1, "p99": p50 * 1.2, "iqr": p50 / 20, "rounds": 100, "threads": 1, "batch": 1}
        latency["local"] = Latency(p50=p50, ratio=ratio, ratio_iqr=iqr, layers_ms=times, **common)
    accuracy = Accuracy(top1=top1, top5=1.0, n=200, split="test") if top1 is not None else None
    counted = "onnx" if p50 is not None else "torch"
    return Result(
        macs=macs, macs_counted_on=counted, params=macs // 100, bytes=macs // 20 if p50 is not None else None, epochs=4,
        accuracy=accuracy, latency_ms=latency,
    )  # fmt: skip
