"""``lrexport sweep``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from lrexport.cli.file_defaults import settle_training
from lrexport.cli.goal_options import given_goal, goal_options, pruning_options
from lrexport.cli.help import OUTPUT, SWEEP, Command, section
from lrexport.cli.notes import refuse_finished
from lrexport.cli.options import RUN, is_run, json_option
from lrexport.cli.training_options import train_config, training_options
from lrexport.config.compression import CompressConfig
from lrexport.errors import UsageError

VARY = (
    "Option that differs between trials, and its values: NAME=LOW..HIGH, with :log or :step=S, or NAME=A,B,C. Repeatable. "
    "[default: macs=0.2..0.8 unless a goal is given]"
)
STORAGE = "Optuna storage that several processes share: the URL of a database, or journal:FILE. [default: SQLite in SWEEP]"


@click.command("sweep", cls=Command, short_help="Many compressions: the Pareto front of accuracy and cost.")
@training_options()
@section(OUTPUT, click.option("-o", "--output", type=RUN, metavar="SWEEP", required=True, help="Folder of the sweep."))
@section(
    SWEEP,
    click.option(
        "--trials", type=click.IntRange(1), metavar="N", default=20, show_default=True, help="Trials, over all processes."
    ),
    click.option("--vary", multiple=True, metavar="NAME=VALUES", help=VARY),
    click.option(
        "--objective",
        type=click.Choice(("macs", "latency", "size")),
        default="macs",
        show_default=True,
        help="Cost to trade against accuracy; latency is measured on --target.",
    ),
    rare=(
        click.option("--storage", metavar="URL", help=STORAGE),
        click.option("--study", metavar="NAME", help="Name of the sweep in --storage. [default: name of the folder]"),
    ),
)
@goal_options()
@pruning_options()
@section(OUTPUT, json_option())
def command(
    output: Path, vary: tuple[str, ...], storage: str | None, study: str | None, json_to: str | None, **options: Any
) -> None:
    """Compress MODEL many times and find the Pareto front of accuracy and cost.

    Trials share dense training, and SVD training where its options are equal. They are ranked on held-out training images.
    Each trial is a run, SWEEP/trials/NNNN. Run the same command again to resume the sweep, or at the same time on other
    devices to share the work.

    \b
    lrexport sweep resnet20 --data cifar10:data --trials 30 -o sweep
    lrexport sweep resnet20 --data cifar10:data --vary macs=0.2..0.7 --vary scheme=spatial,channel -o sweep
    lrexport sweep run --objective latency --vary latency=0.3..0.9 --target ssh://pi@raspberrypi.local -o sweep
    """
    from lrexport.cli.console import note, print_result
    from lrexport.cli.preflight import check_sweep
    from lrexport.cli.progress import Progressing
    from lrexport.report.sweep_tables import front_table
    from lrexport.runs.sweep_record import is_sweep, load_sweep
    from lrexport.sweep.extras import need_optuna
    from lrexport.sweep.request import make_request
    from lrexport.text import shell_path

    source = Path(options["model"]) if is_run(options["model"]) else None
    if source is not None:
        refuse_finished(source)
    settle_training(options, source)
    goal, train = given_goal(options), train_config(options)
    objective, trials = options.pop("objective"), options.pop("trials")
    others = {field.name: options[field.name] for field in fields(CompressConfig) if field.name in options}
    request = make_request(train, goal, others, vary, objective, trials, source)
    check_sweep(train, source, output)
    need_optuna()
    if request.trial_count < trials:
        note(f"the search space has only {request.trial_count} points; running that many trials")

    from lrexport.cli.sweep_progress import SweepProgress
    from lrexport.sweep.run_sweep import Place, run_sweep

    try:
        with Progressing() as progress:
            sweep = run_sweep(request, Place(output, storage, study), SweepProgress(progress))
    except BaseException as error:
        if is_sweep(output) and not isinstance(error, UsageError):  # the trials so far
            print_result(load_sweep(output).model_dump(mode="json"), json_to, front_table(load_sweep(output)))
        raise
    for trial in sweep.trials:
        if trial.state in ("pruned", "failed"):
            note(f"trial {trial.number} {trial.state}: {trial.reason_line}")
        if trial.figures is not None and trial.figures.latency_warning:
            note(f"warning: latency of trial {trial.number} {trial.figures.latency_warning}")
    print_result(sweep.model_dump(mode="json"), json_to, front_table(sweep))
    if not sweep.front:
        note("no trial finished")
        click.get_current_context().exit(max((trial.exit_code or 2 for trial in sweep.trials), default=2))
    note(f"saved in {output}; next: lrexport onnx {shell_path(output / (sweep.on_front()[-1].run or ''))}")
