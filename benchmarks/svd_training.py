"""Six ways to the same budget in the same number of epochs, over seeds: pruned at once, and five kinds of SVD training.

    python benchmarks/svd_training.py run --data folder:DIR --weights-dir DIR --work DIR [--epochs 7 30] [--seeds 0 1 2]
    python benchmarks/svd_training.py table

--data holds the first 1,000 training images of each class of CIFAR-10 (JPEG), of which lrexport holds a tenth out, and all
test images; `--weights-dir` holds cifar10_resnet20.safetensors and cifar10_resnet56.safetensors. Each row is one
`lrexport compress` in a process of its own. SVD training has four sevenths of the epochs, fine-tuning the rest; pruning at
once fine-tunes for all of them. Test images are scored once for each network, by the command itself. Rows that are in the
results already are left out, so an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
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

from common import RESULTS, keep_rows, machine, read_rows, write_markdown

ROWS = RESULTS / "svd_training.json"
METHODS = {
    "pruned at once": (),
    "explicit, λ_s fixed at 0.03": ("--sparsity-strength", "0.03"),
    "explicit, λ_s steered": ("--sparsity-strength", "auto"),
    "explicit, falling ranks": ("--falling-ranks",),
    "implicit, λ_s steered": ("--svd-form", "implicit", "--sparsity-strength", "auto"),
    "implicit, energy along a path": ("--svd-form", "implicit", "--sparsity", "path"),
}
CASES = (("resnet20", 3.3), ("resnet20", 5.0), ("resnet56", 5.0))


@dataclass(frozen=True)
class Case:
    """One command: a network with the reduction of its MACs, all epochs after the start, the way there, the seed."""

    network: str
    reduction: float
    epochs: int
    method: str
    seed: int

    @property
    def options(self) -> list[str]:
        """The options of `lrexport compress` that differ between cases, without the seed."""
        svd = 0 if self.method == "pruned at once" else round(self.epochs * 4 / 7)
        stages = ["--svd-epochs", str(svd), "--fine-tune-epochs", str(self.epochs - svd)]
        return ["--macs", f"{1 / self.reduction:.4f}", *stages, *METHODS[self.method]]


def measure(case: Case, data: str, weights: Path, work: Path) -> dict[str, Any]:
    """Run one command and read its record. Raises RuntimeError if the command fails."""
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    start = ["--weights", str(weights / f"cifar10_{case.network}.safetensors"), "--data", data, "--seed", str(case.seed)]
    same = ["--distill", "0.5", "--lr", "0.03", "--device", "cpu", "--examples", "0", "--no-export-check"]
    program = Path(sys.executable).with_name("lrexport")
    began = time.monotonic()
    done = subprocess.run(
        [program, "compress", case.network, *start, *same, *case.options, "-o", run], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-600:]}")
    hours = (time.monotonic() - began) / 3600
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    compressed = record["results"]["compressed"]
    return {
        "top1": compressed["accuracy"]["top1"],
        "heldout": compressed["heldout_accuracy"]["top1"],
        "dense": record["results"]["dense"]["accuracy"]["top1"],
        "macs": compressed["macs"],
        "hours": round(hours, 4),
        "precision": record["environment"]["precision"],
        "load": round(os.getloadavg()[0], 1),
        "machine": machine(),
    }


def table(results: dict[Case, dict[str, Any]]) -> Iterator[str]:
    """The results as Markdown: a table for each network, reduction and number of epochs."""
    yield "The first 1,000 training images of each class of CIFAR-10 (JPEG), a tenth held out; all 10,000 test images."
    yield ""
    kinds = sorted({(case.network, case.reduction, case.epochs) for case in results})
    for network, reduction, epochs in kinds:
        here = {
            case: entry
            for case, entry in results.items()
            if (case.network, case.reduction, case.epochs) == (network, reduction, epochs)
        }
        dense = next(iter(here.values()))["dense"]
        yield f"## {network}, {reduction:g} times fewer MACs, {epochs} epochs"
        yield ""
        precision = ", ".join(sorted({entry["precision"] for entry in here.values()}))
        yield f"Dense, before any of these epochs: {100 * dense:.2f} %. Precision of training: {precision}."
        yield ""
        yield "| | test top-1, mean | spread | seeds | each | held-out, mean | hours, mean |"
        yield "|---|---:|---:|---|---|---:|---:|"
        for method in METHODS:
            rows = sorted(
                ((case.seed, entry) for case, entry in here.items() if case.method == method), key=lambda row: row[0]
            )
            if rows:
                yield _row(method, dict(rows))
        yield ""


def _row(method: str, rows: dict[int, dict[str, Any]]) -> str:
    top1, heldout, hours = ([entry[key] for entry in rows.values()] for key in ("top1", "heldout", "hours"))
    spread = f"{100 * (max(top1) - min(top1)):.2f}" if len(top1) > 1 else ""
    each = ", ".join(f"{100 * value:.2f}" for value in top1)
    means = [statistics.mean(values) for values in (top1, heldout, hours)]
    seeds = ", ".join(map(str, rows))
    return f"| {method} | {100 * means[0]:.2f} % | {spread} | {seeds} | {each} | {100 * means[1]:.1f} % | {means[2]:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "table"))
    parser.add_argument("--data")
    parser.add_argument("--weights-dir", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--cases", nargs="+", type=int, choices=range(len(CASES)), default=list(range(len(CASES))))
    parser.add_argument("--epochs", nargs="+", type=int, default=[7])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    results = read_rows(ROWS, Case)
    if arguments.do == "table":
        machines = sorted({entry["machine"] for entry in results.values()})
        write_markdown(Path("svd_training.md"), "SVD training over seeds", list(table(results)), " / ".join(machines))
        return
    if not (arguments.data and arguments.weights_dir and arguments.work):
        parser.error("run needs --data, --weights-dir and --work")
    arguments.work.mkdir(parents=True, exist_ok=True)
    for epochs in arguments.epochs:
        for number in arguments.cases:
            for seed in arguments.seeds:
                for method in METHODS:
                    case = Case(*CASES[number], epochs, method, seed)
                    if case in results:
                        continue
                    results[case] = measure(case, arguments.data, arguments.weights_dir, arguments.work)
                    print(case, results[case], flush=True)
                    keep_rows(ROWS, results)


if __name__ == "__main__":
    main()
