"""At the same measured speed and with the same epochs: ranks chosen by latency against ranks chosen by MACs.

Each network is compressed with `--latency 0.5`, and with the `--macs` whose plan is measured to be as fast; both are
fine-tuned for --epochs from the weights in --weights, without SVD training, on one seed. Test images are looked at once.

    python benchmarks/latency_accuracy.py --data folder:CIFAR --weights ../shared/weights --model resnet20 [--epochs 3]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from common import machine, write_markdown

import lrexport
from lrexport.config.compression import CompressConfig, TrainConfig
from lrexport.config.goals import Goal, Latency, Macs
from lrexport.events import ignore_events
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import own_schemes_of
from lrexport.lowrank.selection.select import select
from lrexport.measure.layer_times import LayerTimes
from lrexport.measure.targets.local import Local
from lrexport.runs.record import Record
from lrexport.runs.request import RunRequest
from lrexport.runs.starting_point import load_for_planning
from lrexport.workflow import pipeline
from lrexport.workflow.target_speed import measure_speed


def config(options: argparse.Namespace, goal: Goal, target: str | None) -> CompressConfig:
    weights = options.weights / f"cifar10_{options.model}.safetensors"
    plain = {"dense_epochs": 0, "svd_epochs": 0, "distill": 0.0}  # labels alone, as in the results that are there
    train = TrainConfig(options.model, options.data, weights, seed=options.seed, **plain)
    return CompressConfig(train, goal, target=target, fine_tune_epochs=options.epochs)


def share_of_macs(options: argparse.Namespace, ratio: float) -> tuple[float, float]:
    """The share of MACs whose plan by MACs alone is measured nearest to ``ratio`` of the dense latency, and that."""
    made = config(options, Macs(0.5), None)
    start = load_for_planning(made.train)
    svd = start.svd
    speed = measure_speed(svd, own_schemes_of(svd), LayerTimes(Local()), ignore_events)
    low, high, best = 0.05, 1.0, (1.0, 1.0)
    for _ in range(7):
        share = (low + high) / 2
        plan = select(svd, Macs(share)).plan  # ranks differ a little from those weighted by data, latency hardly
        found = speed.confirm(plan, fold(svd, plan)).ratio
        best = min(best, (share, found), key=lambda each: abs(each[1] - ratio))
        low, high = (low, share) if found > ratio else (share, high)
    return best


def figures(record: Record) -> dict[str, Any]:
    small, dense, latency = record.results.compressed, record.results.dense, record.planned_latency
    assert small is not None
    assert dense is not None
    assert latency is not None
    assert small.accuracy is not None
    assert dense.accuracy is not None
    return {
        "macs": small.macs / dense.macs,
        "ratio": latency.ratio,
        "ratio_iqr": latency.ratio_iqr,
        "top1": small.accuracy.top1,
        "dense_top1": dense.accuracy.top1,
        "n": small.accuracy.n,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "latency_accuracy.json")
    options = parser.parse_args()
    rows = json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}

    with tempfile.TemporaryDirectory() as folder:
        fast = pipeline.compress(RunRequest(config(options, Latency(0.5), "local"), Path(folder) / "fast", print))
        assert fast.planned_latency is not None
        share, _ = share_of_macs(options, fast.planned_latency.ratio)
        plain = pipeline.compress(RunRequest(config(options, Macs(share), None), Path(folder) / "plain", print))
        start = load_for_planning(config(options, Macs(share), None).train)
        svd = start.svd
        speed = measure_speed(svd, own_schemes_of(svd), LayerTimes(Local()), ignore_events)

        plain.planned_latency = speed.confirm(plain.plan, lrexport.load(Path(folder) / "plain"))
    rows[options.model] = {"epochs": options.epochs, "latency": figures(fast), "macs": figures(plain)}
    options.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")

    lines = [
        "One thread, batch 1. Latency is that of the folded network ÷ dense in interleaved rounds. One seed; the weights "
        "that training starts from have seen other pixels of the same images.",
        "",
        "| network | epochs | ranks by | MACs | latency (IQR) | top-1 | of test images |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for model, row in rows.items():
        for kind, goal in (("latency", "`--latency 0.5`"), ("macs", f"`--macs {row['macs']['macs']:.3f}`")):
            each = row[kind]
            low, high = each["ratio_iqr"]
            latency = f"{each['ratio']:.3f} ({low:.3f} to {high:.3f})"
            cells = (model, row["epochs"], goal, f"{each['macs']:.3f}", latency, f"{100 * each['top1']:.2f} %", each["n"])
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    write_markdown(
        Path("latency_accuracy.md"), "Ranks by latency against ranks by MACs, at the same speed", lines, machine()
    )


if __name__ == "__main__":
    main()
