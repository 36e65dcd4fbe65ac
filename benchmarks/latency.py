"""Latency saved compared with MACs saved, and predicted compared with measured latency, in ONNX Runtime on one thread.

For each network: the table of its layers' times is built from nothing, plans are made from it, and each folded network is
timed beside the dense one (dense ÷ compressed, interleaved). Realised is the speed-up ÷ the ratio of MACs. ResNet-20 and
-56 have the weights in --weights, ResNet-18 random ones: speed depends on ranks alone.

    python benchmarks/latency.py [--weights ../shared/weights] [--threads 1] [--models resnet20 resnet56 …]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import machine, write_markdown

from lrexport.config.goals import Macs
from lrexport.events import ignore_events
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import every_scheme_of
from lrexport.lowrank.factors.truncation import Selection, Truncations, truncations
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.selection.by_latency import within_latency
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.lowrank.selection.select import select
from lrexport.lowrank.selection.threshold import at_threshold, first_true
from lrexport.lowrank.selection.within_budget import within
from lrexport.measure.latency import measure_latency
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets import MeasuringJob
from lrexport.measure.targets.local import Local
from lrexport.networks.building import resolve
from lrexport.networks.weights import load_weights
from lrexport.plan import Pair
from lrexport.workflow.target_speed import Speed, measure_speed

NAIVE_MACS = 0.69  # at which the naive pairs of ResNet-20 are compared by the energy they keep


def open_network(model: str, weights: Path) -> tuple[SVDNetwork, tuple[int, ...]]:
    recipe = resolve(model, None)
    torch.manual_seed(0)
    network = recipe.build().eval()
    file = weights / f"cifar10_{model}.safetensors"
    if file.exists():
        load_weights(network, file)
    total = count_torch_macs(network, recipe.signature).total
    return decompose(network, recipe.signature, total_macs=total), recipe.signature


def plans(svd: SVDNetwork, speed: Speed) -> Iterator[tuple[str, Selection]]:
    """What `--latency`, `--macs --target` and `--energy --target` give, with every scheme."""
    found, latency = truncations(svd, schemes=every_scheme_of(svd)), speed.latency
    for share in (0.8, 0.7, 0.6, 0.5):
        if latency.least_ms <= share * latency.dense_ms:
            yield f"latency {share}", within_latency(svd, found, latency, share * latency.dense_ms)
    yield "latency, half the MACs", half_the_macs(svd, found, speed)
    for share in (0.5, 0.35):
        yield f"macs {share}", within(svd, found, "macs", share * svd.dense_macs, latency=latency)
    for energy in (0.05, 0.3):
        yield f"energy {energy}", at_threshold(svd, found, energy, latency)


def half_the_macs(svd: SVDNetwork, found: Truncations, speed: Speed) -> Selection:
    """The slowest plan by latency that has at most half of the MACs, by steps of a hundredth of the dense latency."""

    def plan(step: int) -> Selection:
        return within_latency(svd, found, speed.latency, max(1 - step / 100, 0) * speed.latency.dense_ms)

    last = int(100 * (1 - speed.latency.least_ms / speed.latency.dense_ms))
    return plan(first_true(last, lambda step: plan_macs(svd, plan(step).plan) <= 0.5 * svd.dense_macs))


def row(svd: SVDNetwork, speed: Speed, name: str, selection: Selection) -> dict[str, Any]:
    confirmed = speed.confirm(selection.plan, fold(svd, selection))
    macs = plan_macs(svd, selection.plan) / svd.dense_macs
    pairs = [layer for layer in selection.plan.values() if isinstance(layer, Pair)]
    worst = max((1 - layer.energy_kept for layer in pairs), default=0.0)
    return {
        "plan": name,
        "macs": macs,
        "pairs": len(pairs),
        "dropped": dropped(selection),
        "worst": worst,
        "latency": confirmed,
    }


def dropped(selection: Selection) -> float:
    """Shares of energy dropped, summed over the layers."""
    return sum(1 - layer.energy_kept for layer in selection.plan.values() if isinstance(layer, Pair))


def fastest_keeping(svd: SVDNetwork, found: Truncations, speed: Speed, most: float) -> Selection:
    """The fastest plan that drops at most ``most`` in all, by steps of a hundredth of the dense network's latency."""
    latency = speed.latency

    def plan(hundredths: int) -> Selection:
        return within_latency(svd, found, latency, max(hundredths / 100 * latency.dense_ms, latency.least_ms))

    return plan(first_true(100, lambda hundredths: dropped(plan(hundredths)) <= most))


def measure(model: str, weights: Path, threads: int) -> dict[str, Any]:
    svd, shape = open_network(model, weights)
    target = Local()
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        times = LayerTimes(target, threads, folder=Path(cache))
        times.of(svd, every_scheme_of(svd))
        table_s, options = time.perf_counter() - began, len(times.times)
        speed = measure_speed(svd, every_scheme_of(svd), times, ignore_events)
    rows = [row(svd, speed, name, selection) for name, selection in plans(svd, speed)]
    naive = select(svd, Macs(0.5), rule="threshold")
    rows.append(row(svd, speed, "naive spatial, macs 0.5", naive))
    keeping: list[dict[str, Any]] = []
    if model == "resnet20":
        plain = select(svd, Macs(NAIVE_MACS), rule="threshold")
        assert plain.threshold is not None
        found = truncations(svd, schemes=every_scheme_of(svd))
        keeping = [
            row(svd, speed, f"naive spatial, e = {plain.threshold:.4f}", plain),
            row(svd, speed, "the same e, on the target", at_threshold(svd, found, plain.threshold, speed.latency)),
            row(svd, speed, "the same energy in all, on the target", fastest_keeping(svd, found, speed, dropped(plain))),
        ]
    return {
        "model": model,
        "table_s": table_s,
        "options": options,
        "dense_ms": speed.latency.dense_ms,
        "other": speed.latency.other_ms / speed.latency.dense_ms,
        "rows": rows,
        "keeping": keeping,
        "repeat": repeated(svd, shape, threads),
    }


def repeated(svd: SVDNetwork, shape: tuple[int, ...], threads: int) -> list[float]:
    """Ratios of one pair of files from the same measurement made three times."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "model")}
        export_onnx(fold(svd, {}), paths["dense"], shape)
        export_onnx(fold(svd, select(svd, Macs(0.5), rule="threshold").plan), paths["model"], shape)
        measured = (measure_latency(paths, "dense", MeasuringJob((), 100, threads))["model"].ratio for _ in range(3))
        return [ratio for ratio in measured if ratio is not None]


def report(result: dict[str, Any]) -> list[str]:
    off = [100 * (each["latency"].predicted_ms / each["latency"].measured_ms - 1) for each in result["rows"][:-1]]
    repeat = result["repeat"]
    lines = [
        f"## {result['model']}",
        "",
        f"Dense: {result['dense_ms']:.3f} ms. Table of {result['options']} options in {result['table_s']:.0f} s; what no "
        f"layer of it accounts for is {100 * result['other']:.1f} % of the dense network.",
        f"Predicted against measured, {len(off)} plans from the table: median error "
        f"{statistics.median(map(abs, off)):.1f} %, worst {max(map(abs, off)):.1f} %.",
        f"The same measurement three times: ratios {', '.join(f'{ratio:.4f}' for ratio in repeat)}, "
        f"{100 * (max(repeat) / min(repeat) - 1):.1f} % apart.",
        "",
        "| plan | pairs | MACs | speed-up | IQR | realised | predicted ms | measured ms | error | dropped: sum, worst |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for each in result["rows"] + result["keeping"]:
        latency, macs = each["latency"], each["macs"]
        low, high = latency.ratio_iqr
        cells = [
            each["plan"],
            str(each["pairs"]),
            f"{macs:.3f}",
            f"{1 / latency.ratio:.2f}",
            f"{1 / high:.2f} to {1 / low:.2f}",
            f"{macs / latency.ratio:.2f}",
            f"{latency.predicted_ms:.3f}",
            f"{latency.measured_ms:.3f}",
            f"{100 * (latency.predicted_ms / latency.measured_ms - 1):+.1f} %",
            f"{each['dropped']:.2f}, {each['worst']:.3f}" + (f" ({latency.warning})" if latency.warning else ""),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("../shared/weights"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56", "torchvision:resnet18"])
    options = parser.parse_args()
    lines = [
        f"{options.threads} thread, batch 1, 100 interleaved rounds. Realised is speed-up ÷ (dense MACs ÷ MACs); "
        "dropped are shares of energy, not weighted by data. The last "
        "row of each table is the paper's one threshold in spatial pairs, chosen by MACs alone; its prediction is "
        "interpolated between ranks on the grain and is not among the errors above.",
        "",
    ]
    for model in options.models:
        lines += report(measure(model, options.weights, options.threads))
        print("\n".join(lines), flush=True)
    write_markdown(Path("latency.md"), "Latency: realised, predicted, repeated", lines, machine())


if __name__ == "__main__":
    main()
