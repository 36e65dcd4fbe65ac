"""``lrexport demo``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from lrexport.cli.help import OUTPUT, Command, section
from lrexport.cli.options import RUN, resume_options

MODEL, RECIPE = "resnet20", "demo"
DEFAULT = Path("lrexport-demo")


@click.command("demo", cls=Command, short_help="Every step on embedded data, in about three minutes.")
@section(
    OUTPUT,
    click.option("-o", "--output", type=RUN, metavar="RUN", default=DEFAULT, show_default=True, help="Folder of the run."),
)
@resume_options()
def command(output: Path, resume: bool, allow_changes: bool) -> None:
    """Train, compress, export, verify and measure a ResNet-20 on scikit-learn's handwritten digits."""
    from lrexport.artifacts.run_lock import remove_run
    from lrexport.cli.console import note, print_table
    from lrexport.cli.progress import Progressing
    from lrexport.cli.recipe_options import recipe_config
    from lrexport.config.export_options import ExportOptions
    from lrexport.errors import UsageError
    from lrexport.report.tables import results_table
    from lrexport.text import shell_path

    if output == DEFAULT and not resume:  # the default folder is replaced every time
        remove_run(output)
    elif output.exists() and not resume:
        raise UsageError(f"{output} already exists", "Choose another folder with -o, or resume this run with --resume.")
    config = recipe_config(MODEL, RECIPE)

    from lrexport.runs.request import RunRequest
    from lrexport.workflow import exporting, pipeline

    began = time.perf_counter()
    note(f"lrexport compress {MODEL} --recipe {RECIPE}: dense training, SVD training, pruning, fine-tuning")
    with Progressing() as progress:
        pipeline.compress(RunRequest(config, output, progress, None, resume, allow_changes))
        note("lrexport onnx: export, verify, score, measure")
        record = exporting.export_run(output, ExportOptions(), progress)
    print_table(results_table(record))
    note(f"{time.perf_counter() - began:.0f} s; the run is in {output}, next: lrexport report {shell_path(output)}")
