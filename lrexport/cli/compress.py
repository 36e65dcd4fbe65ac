"""``lrexport compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.cli.file_defaults import settle_training
from lrexport.cli.goal_options import compress_config, goal_options, pruning_options
from lrexport.cli.help import LAYERS, OUTPUT, TRAINING, section
from lrexport.cli.notes import note_callable_weights, note_changed_defaults, note_replaced, note_unused, refuse_finished
from lrexport.cli.option_types import EpochsOrSame
from lrexport.cli.options import RUN, field_option, is_run, json_option, resume_options, switch_option
from lrexport.cli.recipe_options import RecipeCommand, recipe_options
from lrexport.cli.training_options import training_options
from lrexport.config.compression import CompressConfig
from lrexport.errors import UsageError

if TYPE_CHECKING:
    from lrexport.plan import PlannedLatency

MISSED = 1  # the exit code where a goal is missed
BASELINE = "Epochs of further dense training for comparison; same: as many as the compressed network gets."
FOLDER = "Folder of the run. [default: MODEL if it is a run]"
FALLING = "Reduce ranks to --macs, --params or --latency during SVD training."


@click.command("compress", cls=RecipeCommand, short_help="Train in SVD form, prune, fold and fine-tune a network.")
@recipe_options()
@training_options()
@section(OUTPUT, click.option("-o", "--output", type=RUN, metavar="RUN", help=FOLDER))
@resume_options()
@goal_options()
@pruning_options()
@section(LAYERS, rare=(switch_option(CompressConfig, "falling_ranks", FALLING),))
@section(
    TRAINING,
    rare=(field_option(CompressConfig, "baseline_epochs", EpochsOrSame(), "N|same", BASELINE),),
)
@section(OUTPUT, click.option("--dry-run", is_flag=True, help="Print the plan and stop."), json_option())
def command(
    output: Path | None, dry_run: bool, json_to: str | None, resume: bool, allow_changes: bool, **options: Any
) -> None:
    """Train MODEL in SVD form, prune singular values to a goal, fold into plain layers and fine-tune.

    MODEL is resnet20|32|44|56|110 (CIFAR), torchvision:NAME[?num_classes=10], timm:NAME,
    package.module:callable, FILE.onnx, or a run.
    Without --data nothing is trained: ranks are chosen and folded within seconds.

    \b
    lrexport compress resnet20 --weights w.pt --data cifar10 --macs 0.5 -o run
    lrexport compress torchvision:resnet18 --weights w.pt --macs 0.6 -o run
    lrexport compress resnet20 --recipe paper-cifar10 -o run
    lrexport compress model.onnx --data images:pictures --macs 0.7 -o run
    lrexport compress run --macs 0.4 -o run-0.4
    """
    from lrexport.cli.console import note, note_dense, print_result, print_table, write_json
    from lrexport.cli.output import say
    from lrexport.cli.preflight import check_compress
    from lrexport.cli.progress import Progressing, latency_text, share_text
    from lrexport.plan import digest
    from lrexport.report.plan_tables import plan_table
    from lrexport.report.tables import results_table
    from lrexport.text import shell_path

    source = Path(options["model"]) if is_run(options["model"]) else None
    run = output or source
    if run is None and not dry_run:
        raise UsageError("-o RUN is required", "Give the folder that the run is written to.")
    if source is not None:
        refuse_finished(source)
    else:
        note_callable_weights(options)
    note_unused(options["data"], source)
    settle_training(options, source)
    config = compress_config(options)
    if source is not None:
        note_changed_defaults(source, config)
        if run is not None and not dry_run and run.resolve() == source.resolve():
            note_replaced(source)
    check_compress(config, source, None if dry_run else run, resume)

    from lrexport.lowrank.selection.costs import plan_macs
    from lrexport.runs.request import RunRequest
    from lrexport.training.engine import is_first
    from lrexport.workflow import pipeline

    if dry_run:
        with Progressing() as progress:
            svd, selection = pipeline.plan_only(config, progress, source)
        macs = plan_macs(svd, selection.plan)
        if json_to:
            sums: dict[str, Any] = {"threshold": selection.threshold, "macs": macs, "dense_macs": svd.dense_macs}
            entries = {name: layer.model_dump() for name, layer in selection.plan.items()}
            if selection.latency is not None:
                sums["latency"] = selection.latency.model_dump(mode="json")
            write_json({**sums, "digest": digest(selection.plan), "plan": entries}, json_to)
        for warning in selection.warnings:
            note(f"warning: {warning}")
        note_dense(selection.plan)
        if json_to != "-":
            print_table(plan_table(selection.plan))
            share = share_text(macs, svd.dense_macs)
            say(f"{macs:,} of {svd.dense_macs:,} MACs ({share}), counted on the torch network.")
            if selection.latency is not None:
                say(f"Measured: {latency_text(selection.latency)}.")
        _exit_if_missed(selection.latency)
        return
    assert run is not None
    with Progressing() as progress:
        record = pipeline.compress(RunRequest(config, run, progress, source, resume, allow_changes))
    if not is_first():
        return
    for warning in record.notes:
        if warning not in progress.noted:
            note(f"warning: {warning}")
    note_dense(record.plan)
    print_result(record.model_dump(mode="json"), json_to, results_table(record))
    if record.planned_latency is not None and json_to != "-":
        say(f"Measured after pruning: {latency_text(record.planned_latency)}.")
    note(f"saved in {run}; next: lrexport onnx {shell_path(run)}")
    _exit_if_missed(record.planned_latency)


def _exit_if_missed(latency: PlannedLatency | None) -> None:
    """End the command with the exit code of a missed goal; what was reached has been said and saved."""
    if latency is not None and latency.misses_goal:
        click.get_current_context().exit(MISSED)
