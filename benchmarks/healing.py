"""Minutes without labels: published ResNets, repaired and healed with pictures that have no classes.

    python benchmarks/healing.py run --pictures DIR --test folder:DIR --weights-dir DIR --work DIR
    python benchmarks/healing.py table    # writes benchmarks/results/healing.md

Each row is one `lrexport compress` in a process of its own, `OMP_NUM_THREADS` decides on how many cores. DIR of the
pictures holds 5,000 training pictures of CIFAR-10 (JPEG), --test all test pictures by class, looked at once for each
network; DIR of the weights holds cifar10_resnet20.safetensors and cifar10_resnet56.safetensors. Rows that are in
results/healing.json already are left out, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, keep_rows, machine, read_rows, write_markdown

import lrexport
from lrexport.data.datasets import load_data
from lrexport.runs import loading
from lrexport.runs.record import load_record
from lrexport.tasks.scoring import score

ROWS = RESULTS / "healing.json"
SHAPE = (3, 32, 32)
NETWORKS, REDUCTIONS = ("resnet20", "resnet56"), (3, 4)
REPAIRED, HEALED = 0.0, 2.0  # the most minutes of healing


@dataclass(frozen=True)
class Case:
    """One command: a network, the reduction of its MACs, the most minutes of healing, the seed."""

    network: str
    reduction: int
    minutes: float
    seed: int


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Compress and score both networks. Raises subprocess.CalledProcessError if the command fails."""
    run = options.work / f"{case.network}-{case.reduction}-{case.minutes:g}-{case.seed}"
    shutil.rmtree(run, ignore_errors=True)
    weights = options.weights_dir / f"cifar10_{case.network}.safetensors"
    goal = ["--macs", f"{1 / case.reduction:.4f}", "--heal-minutes", f"{case.minutes:g}", "--seed", str(case.seed)]
    same = ["--fine-tune-epochs", "0", "--device", "cpu", "--no-export-check"]
    program, data = Path(sys.executable).with_name("lrexport"), f"images:{options.pictures}"
    command = [program, "compress", case.network, "--weights", weights, "--data", data, *goal, *same, "-o", run]
    began, load = time.monotonic(), os.getloadavg()[0]
    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - began
    test, device = load_data(options.test, SHAPE).test, torch.device("cpu")
    record = load_record(run)
    fidelity = record.fidelity
    return {
        "top1": score(lrexport.load(run), test, device, "test").primary,
        "dense": score(loading.load_start(run, record), test, device, "test").primary,
        "fidelity": fidelity and fidelity.model_dump(),
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "load": round(load, 1),
        "machine": machine(),
    }


def table(results: dict[Case, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown: means over seeds, with all single values."""
    yield "| | MACs | seeds | dense | repaired | healed, at most 2 minutes | each | seconds of the whole command |"
    yield "|---|---|---|---:|---:|---:|---|---:|"
    for network, reduction in sorted({(case.network, case.reduction) for case in results}):
        repaired, healed = (_rows(results, network, reduction, minutes) for minutes in (REPAIRED, HEALED))
        if not healed:
            continue
        columns = [(healed, "dense"), (repaired, "top1"), (healed, "top1")]
        means = [f"{100 * statistics.mean(row[key] for row in rows.values()):.2f} %" for rows, key in columns]
        each = ", ".join(f"{100 * row['top1']:.2f}" for row in healed.values())
        seconds = [row["seconds"] for row in healed.values()]
        took, seeds = f"{min(seconds):.0f} to {max(seconds):.0f}", ", ".join(map(str, healed))
        yield f"| {network} | {reduction} times fewer | {seeds} | {' | '.join(means)} | {each} | {took} |"
    threads = " or ".join(sorted({str(entry["threads"]) for entry in results.values()}))
    loads = [entry["load"] for entry in results.values()]
    yield ""
    yield f"Threads: {threads}. Load of the machine before a command: {min(loads)} to {max(loads)}. All 10,000 test images."


def _rows(results: dict[Case, dict[str, Any]], network: str, reduction: int, minutes: float) -> dict[int, dict[str, Any]]:
    """The results of all seeds, by seed."""
    seeds = sorted(case.seed for case in results if case == Case(network, reduction, minutes, case.seed))
    return {seed: results[Case(network, reduction, minutes, seed)] for seed in seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--test")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--reductions", nargs="+", type=int, default=list(REDUCTIONS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    results = read_rows(ROWS, Case)
    if options.do == "table":
        machines = sorted({entry["machine"] for entry in results.values()})
        write_markdown(Path("healing.md"), "Minutes without labels", list(table(results)), " / ".join(machines))
        return
    if not (options.pictures and options.test and options.weights_dir and options.work):
        parser.error("run needs --pictures, --test, --weights-dir and --work")
    cases = (
        Case(network, reduction, minutes, seed)
        for seed in options.seeds
        for network in options.networks
        for reduction in options.reductions
        for minutes in (REPAIRED, HEALED)
    )
    for case in cases:
        if case not in results:
            results[case] = measure(case, options)
            print(case, results[case], flush=True)
            keep_rows(ROWS, results)


if __name__ == "__main__":
    main()
