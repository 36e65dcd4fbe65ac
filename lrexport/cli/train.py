"""``lrexport train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lrexport.cli.help import OUTPUT, section
from lrexport.cli.notes import note_callable_weights
from lrexport.cli.options import RUN, is_run, json_option, resume_options
from lrexport.cli.recipe_options import RecipeCommand, recipe_options
from lrexport.cli.training_options import train_config, training_options
from lrexport.errors import UsageError


@click.command("train", cls=RecipeCommand, short_help="Train in SVD form only; compress RUN then continues from it.")
@recipe_options()
@training_options()
@section(OUTPUT, click.option("-o", "--output", type=RUN, metavar="RUN", help="Folder of the run."))
@resume_options()
@section(OUTPUT, json_option())
def command(output: Path | None, json_to: str | None, resume: bool, allow_changes: bool, **options: Any) -> None:
    """Train MODEL in SVD form at full rank; lrexport compress RUN then prunes it to any goal.

    MODEL is resnet20|32|44|56|110 (CIFAR), torchvision:NAME[?num_classes=10], timm:NAME,
    package.module:callable or FILE.onnx.

    \b
    lrexport train resnet20 --weights w.pt --data cifar10 -o run
    lrexport compress run --macs 0.5
    """
    from lrexport.cli.console import note, write_json
    from lrexport.cli.preflight import check_train
    from lrexport.cli.progress import Progressing
    from lrexport.text import shell_path

    if output is None:
        raise UsageError("-o RUN is required", "Give the folder that the run is written to.")
    if is_run(options["model"]):
        raise UsageError(f"{options['model']} is a run; expected a model", "To prune the run, use lrexport compress.")
    note_callable_weights(options)
    config = train_config(options)
    check_train(config, output, resume)

    from lrexport.runs.request import RunRequest
    from lrexport.training.engine import is_first
    from lrexport.workflow import pipeline

    with Progressing() as progress:
        record = pipeline.train(RunRequest(config, output, progress, None, resume, allow_changes))
    if not is_first():
        return
    if json_to:
        write_json(record.model_dump(mode="json"), json_to)
    note(f"saved in {output}; next: lrexport compress {shell_path(output)} --macs 0.5")
