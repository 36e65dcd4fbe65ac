"""``lrexport compress``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrexport.cli.options import (
    FILE,
    RUN,
    EpochsOrSame,
    LatencyType,
    ShareType,
    SizeType,
    choice_option,
    count_option,
    is_run,
    json_option,
    switch_option,
    target_option,
    train_config,
    training_options,
)
from lrexport.config import BY_SVD_TRAINING, FINISHED, TRAINING, CompressConfig, Goal
from lrexport.errors import UsageError

BASELINE = "Epochs the dense network is trained on for comparison; 'same' for as many as the compressed one gets."


@click.command("compress", short_help="Train in SVD form, prune, fold and fine-tune a network.")
@training_options()
@click.option("-o", "--output", type=RUN, help="Folder of the run [default: RUN itself, when MODEL is a run].")
@click.option(
    "--energy", type=click.FloatRange(0, 1), metavar="X", help="Largest share of a layer's energy to drop, as 1e-2."
)
@click.option("--macs", type=ShareType(), help="MACs to reach, as a share of the dense network's: 0.5 or 50%.")
@click.option("--params", type=ShareType(), help="Parameters to reach, as a share of the dense network's.")
@click.option("--size", type=SizeType(), help="Bytes of model.onnx to reach: 500KB, 1.5MB, 64KiB.")
@click.option(
    "--latency",
    type=LatencyType(),
    help="Latency to reach on the target, as a share of the dense network's, 0.6, or a time, 5ms. Any scheme is considered.",
)
@click.option(
    "--accuracy-drop",
    type=click.FloatRange(0, 100),
    metavar="POINTS",
    help="Fewest MACs at which pruning, before fine-tuning, costs at most these points of held-out top-1.",
)
@click.option("--plan", type=FILE, help="Ranks from a plan file, edited by hand perhaps, or from another run.")
@target_option(
    "Where speed is measured: for --latency [default: local]; with any other goal ranks are then on its grain.", default=None
)
@count_option(CompressConfig, "threads", "Threads of inference on the target.", least=1)
@choice_option(CompressConfig, "rule", ("global", "threshold"), "All layers weighed together, or the paper's one threshold.")
@switch_option(CompressConfig, "weighting", "Weight the energy by the second moment of each layer's input.")
@switch_option(CompressConfig, "reconstruct", "Refit the pairs to the dense layers' outputs by least squares.")
@count_option(CompressConfig, "calibration_images", "Training images for weighting and refitting; labels are not used.")
@count_option(CompressConfig, "fine_tune_epochs", "Epochs after folding.")
@click.option("--baseline-epochs", type=EpochsOrSame(), metavar="N|same", default="0", show_default=True, help=BASELINE)
@count_option(CompressConfig, "batchnorm_images", "Training images for BatchNorm's statistics after pruning.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@json_option()
def command(output: Path | None, dry_run: bool, json_to: str | None, **options: Any) -> None:
    """Train MODEL in SVD form, prune singular values to a goal, fold into plain layers and fine-tune.

    MODEL is resnet20|32|44|56|110 (CIFAR), torchvision:NAME[?num_classes=10], package.module:callable, or a run.
    Without --data nothing is trained: ranks are chosen and folded, in seconds.

    \b
    lrexport compress resnet20 --weights w.safetensors --data cifar10:data --macs 0.5 -o run
    lrexport compress torchvision:resnet18 --energy 0.05 -o run
    lrexport compress run --macs 0.4 -o run-0.4
    """
    from lrexport.cli.console import Progressing, latency_text, note, note_dense, print_result, print_table, write_json
    from lrexport.plans import digest
    from lrexport.report.plans import plan_table
    from lrexport.report.tables import results_table

    source = Path(options["model"]) if is_run(options["model"]) else None
    run = output or source
    if run is None and not dry_run:
        raise UsageError("no folder for the run", "Give one with -o RUN.")
    if source is not None:
        _refuse_finished(source)
    _say_unused(options["data"], source)
    goal = _goal(options)
    config = CompressConfig(train=train_config(options), goal=goal, **options)

    from lrexport import pipeline
    from lrexport.lowrank.costs import plan_macs

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
            click.echo(f"{macs:,} of {svd.dense_macs:,} MACs ({macs / svd.dense_macs:.3f}), counted on the torch network.")
            if selection.latency is not None:
                click.echo(f"Measured: {latency_text(selection.latency.model_dump())}.")
        return
    assert run is not None
    with Progressing() as progress:
        record = pipeline.compress(config, run, progress, source)
    for warning in record.notes:
        note(f"warning: {warning}")
    note_dense(record.plan)
    print_result(record.model_dump(mode="json"), json_to, results_table(record))
    if record.planned_latency is not None and json_to != "-":
        click.echo(f"Measured after pruning: {latency_text(record.planned_latency.model_dump())}.")
    note(f"saved in {run}; next: lrexport onnx {run}")


def _goal(options: dict[str, Any]) -> Goal:
    """The goal that was given nearest to the user: on the command line before the environment before a file."""
    context = click.get_current_context()
    given = {field.name: options.pop(field.name) for field in fields(Goal) if field.name in options}
    order = [ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP]
    for place in order:
        here = {name: value for name, value in given.items() if context.get_parameter_source(name) is place}
        if here:
            value, is_ms = here.get("latency", (None, False))
            if is_ms:
                here["latency_ms"] = here.pop("latency")[0]
            elif value is not None:
                here["latency"] = value
            return Goal(**here)
    return Goal()


def _say_unused(data: str | None, source: Path | None) -> None:
    """Options of training would do nothing without data; say so."""
    from lrexport.cli.console import note
    from lrexport.record import load_record

    if data is not None or (source is not None and load_record(source).data is not None):
        return
    context = click.get_current_context()
    unused = ["--" + n.replace("_", "-") for n in TRAINING if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if unused:
        note(f"note: without --data nothing is trained; these do nothing: {', '.join(unused)}")


def _refuse_finished(source: Path) -> None:
    """Options of stages that a run has behind it would do nothing; say so."""
    from lrexport.record import SVD

    context = click.get_current_context()
    trained = (source / SVD).is_file()
    for name in FINISHED:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and (trained or name not in BY_SVD_TRAINING):
            flag = "--" + name.replace("_", "-")
            raise UsageError(
                f"{flag} belongs to a stage that {source} has behind it", "Compress the model anew to change it."
            )
