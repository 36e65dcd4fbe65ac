"""``lrexport demo``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lrexport.cli.options import RUN

# The demo trains ResNet-20 on the embedded digits; the dense network gets as many epochs as the compressed one.
_MACS = 0.5
DEFAULT = Path("lrexport-demo")


@click.command("demo", short_help="All of it on embedded data, in about three minutes.")
@click.option("-o", "--output", type=RUN, default=DEFAULT, show_default=True, help="Folder of the run.")
def command(output: Path) -> None:
    """Train, compress, export, verify and measure a ResNet-20 on scikit-learn's handwritten digits."""
    import shutil

    from lrexport.cli.console import Progressing, note, print_table
    from lrexport.config import CompressConfig, Goal, TrainConfig
    from lrexport.errors import UsageError
    from lrexport.report.tables import results_table

    if output == DEFAULT:  # its own folder, made again every time
        shutil.rmtree(output, ignore_errors=True)
    elif output.exists():
        raise UsageError(f"{output} exists already", "Choose another folder with -o.")
    train = TrainConfig(
        "resnet20",
        data="digits",
        dense_epochs=5,
        svd_epochs=3,
        sparsity_strength=0.1,
        batch_size=32,
        lr=0.05,
        warmup_epochs=1.0,
        distill=0.5,
    )
    config = CompressConfig(train, Goal(macs=_MACS), fine_tune_epochs=8, baseline_epochs="same")

    from lrexport import pipeline, shipping

    began = time.perf_counter()
    note(f"lrexport compress resnet20 --data digits --macs {_MACS}: dense training, SVD training, pruning, fine-tuning")
    with Progressing() as progress:
        pipeline.compress(config, output, progress)
        note("lrexport onnx: export, verify, score, measure")
        record = shipping.export_run(output, shipping.ExportOptions(), progress)
    print_table(results_table(record))
    note(f"{time.perf_counter() - began:.0f} s; the run is in {output}, next: lrexport report {output}")
