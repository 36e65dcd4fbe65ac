"""What `lrexport sweep` finds on the embedded digits: the front of held-out accuracy against MACs for a ResNet-20."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from common import machine, write_markdown

from lrexport.report.sweep_tables import front_table
from lrexport.report.tables import Table
from lrexport.runs.figures import Results
from lrexport.runs.record import load_record
from lrexport.runs.sweep_record import Sweep, load_sweep
from lrexport.units import format_percent

SWEEP = ["resnet20", "--data", "digits", "--dense-epochs", "5", "--svd-epochs", "3", "--fine-tune-epochs", "4"]
SWEEP += ["--batch-size", "32", "--lr", "0.05", "--distill", "0.5", "--precision", "float32", "--trials", "14"]
SWEEP += ["--vary", "macs=0.1..0.7", "--vary", "scheme=spatial,channel,auto", "--vary", "sparsity-strength=0.03,0.2"]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "sweep"
        subprocess.run([sys.executable, "-m", "lrexport", "sweep", *SWEEP, "-o", str(place)], check=True)
        sweep = load_sweep(place)
        stages = sorted(path.name.split("-")[0] for path in (place / "stages").iterdir())
        results = load_record(sweep.runs(place)[0]).results
    lines = [
        f"    lrexport sweep {' '.join(SWEEP)} -o sweep",
        "",
        f"{len(sweep.finished())} trials share one dense training and {stages.count('svd')} SVD trainings.",
        "",
        *markdown(front_table(sweep)),
        "",
        few_images(results),
        "",
        "Every trial:",
        "",
        *markdown(every_trial(sweep)),
    ]
    where = f"{machine()}, optuna {version('optuna')}"
    write_markdown(Path("sweep_digits.md"), "A sweep of ResNet-20 on digits", lines, where)


def few_images(results: Results) -> str:
    dense, small = results.dense, results.compressed
    assert dense is not None
    assert small is not None
    assert small.heldout_accuracy is not None
    images = small.heldout_accuracy.n
    return (
        f"Held-out figures are of {images} images, one of which is {100 / images:.1f} points. The dense network has had "
        f"{dense.epochs} epochs, the compressed ones {small.epochs}: trials are compared with each other here, not with it."
    )


def every_trial(sweep: Sweep) -> Table:
    dense = sweep.dense.macs if sweep.dense else 0
    rows = [
        (
            f"{trial.number:04d}",
            *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in trial.parameters.values()),
            f"{trial.figures.macs / dense:.3f}",
            format_percent(trial.figures.heldout_score),
            "front" if trial.number in sweep.front else "",
        )
        for trial in sweep.finished()
        if trial.figures is not None
    ]
    return Table(("trial", *sweep.trials[0].parameters, "MACs ÷ dense", "held-out top-1", ""), tuple(rows))


def markdown(table: Table) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (table.columns, ("---",) * len(table.columns), *table.rows)]
    return [*lines, "", table.caption] if table.caption else lines


if __name__ == "__main__":
    main()
