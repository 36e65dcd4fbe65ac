"""Latency of a network on a target: layer by layer before ranks are chosen, the whole folded network after."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lrexport.artifacts.run_files import DENSE_ONNX, MODEL_ONNX
from lrexport.events import DenseTimed, LayersTimed, OnEvent, Warned, Working
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import Schemes
from lrexport.lowrank.selection.predicted_latency import LayerLatency, NetworkLatency
from lrexport.measure.latency import measure_latency
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import MeasuringJob, Target
from lrexport.plan import Plan, PlannedLatency
from lrexport.signature import Signature

_ROUNDS = 100
_BUSY = (
    "latencies of layers were measured while the machine was busy: plans may be slower than predicted. The next command "
    "measures them again"
)


@dataclass(frozen=True)
class Speed:
    """A network's latencies on ``target``, and the dense network's ONNX file, as bytes, to compare others with.

    ``remeasure`` measures again what a plan uses, and returns the latencies with it.
    """

    target: Target
    threads: int
    environment: dict[str, Any]
    latency: NetworkLatency
    signature: Signature
    dense_onnx: bytes
    remeasure: Callable[[Plan], NetworkLatency] | None = None

    def confirm(self, plan: Plan, network: nn.Module) -> PlannedLatency:
        """Export the folded ``network`` and measure it with the dense one. Raises DeviceError and as :func:`export_onnx`."""
        with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
            paths = {name: Path(folder) / name for name in (DENSE_ONNX, MODEL_ONNX)}
            paths[DENSE_ONNX].write_bytes(self.dense_onnx)
            export_onnx(network, paths[MODEL_ONNX], self.signature)
            latencies = measure_latency(paths, DENSE_ONNX, MeasuringJob((), _ROUNDS, self.threads), self.target)
        dense, mine = latencies[DENSE_ONNX], latencies[MODEL_ONNX]
        assert mine.ratio is not None
        assert mine.ratio_iqr is not None
        return PlannedLatency(
            target=self.target.name,
            threads=self.threads,
            dense_ms=dense.p50,
            # The machine's speed may have changed since the table was measured: the prediction is the ratio.
            predicted_ms=self.latency.of_plan(plan) / self.latency.dense_ms * dense.p50,
            measured_ms=mine.p50,
            ratio=mine.ratio,
            ratio_iqr=mine.ratio_iqr,
            environment=self.environment,
            warning=mine.warning or dense.warning,
        )


def measure_speed(
    svd: SVDNetwork,
    schemes: Schemes,
    times: LayerTimes,
    on_event: OnEvent,
) -> Speed:
    """Measure the dense network and, unless the table of ``times`` has them, its layers and their pairs.

    Latency depends on shapes, not on weights, so this works before any training. Raises DeviceError.
    """
    target, threads = times.target, times.threads

    def on_table(done: int, of: int) -> None:
        on_event(LayersTimed(done, of, target.name))

    with tempfile.TemporaryDirectory(prefix="lrexport-") as folder:
        path = Path(folder) / DENSE_ONNX
        export_onnx(fold(svd, Plan()), path, svd.signature)
        if "runtime" in times.environment:
            on_event(Working(f"converting the network and its layers for {target.name}"))
            times.check(path)
        layers = times.of(svd, schemes, on_table)
        if times.unsaved is not None:
            on_event(Warned(f"the latency table could not be saved for later runs: {times.unsaved}"))
        busy, known = times.busy_of(svd, schemes)
        if busy:
            on_event(Warned(f"{busy} of {known} {_BUSY}"))
        on_event(Working(f"measuring the dense network on {target.name}"))
        dense, now = times.whole(svd, path)
        content = path.read_bytes()
    table = str(times.path) if times.unsaved is None else None
    on_event(DenseTimed(now.p50, target.name, table))

    def network_latency(layers: Mapping[str, LayerLatency]) -> NetworkLatency:
        """Predictions are in today's milliseconds, whatever the machine's speed was when the table was started."""
        return NetworkLatency(now.p50, {name: layer.scaled(now.p50 / dense) for name, layer in layers.items()})

    def remeasure(plan: Plan) -> NetworkLatency:
        on_event(Working(f"measuring the plan's layers again on {target.name}"))
        return network_latency(times.again(svd, schemes, plan))

    return Speed(target, threads, times.environment, network_latency(layers), svd.signature, content, remeasure)
