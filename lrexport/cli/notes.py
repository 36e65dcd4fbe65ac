"""Notes and errors about options without effect, before any work starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrexport.artifacts.run_files import BASELINE, EXPORTED
from lrexport.cli.recipe_options import RECIPE
from lrexport.config.comparison import NEED_DATA, decide_again, differences, in_words, settled
from lrexport.config.compression import CompressConfig
from lrexport.errors import UsageError
from lrexport.text import option_name, plain


def refuse_finished(source: Path) -> None:
    """Raise UsageError for options of stages that the run has already finished."""
    from lrexport.artifacts.run_files import SVD

    context = click.get_current_context()
    for name in settled(svd_trained=(source / SVD).is_file()):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{_flag(name)} belongs to a stage that {source} has already finished",
                "Compress the model itself to change it.",
            )


def note_unused(data: str | None, source: Path | None) -> None:
    """Note training options that have no effect without data."""
    from lrexport.cli.console import note
    from lrexport.runs.record import load_record

    if data is not None or (source is not None and load_record(source).data is not None):
        return
    context = click.get_current_context()
    unused = [_flag(n) for n in NEED_DATA if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if context.meta.get(RECIPE) and any(
        context.get_parameter_source(name) is ParameterSource.DEFAULT_MAP for name in NEED_DATA
    ):
        unused.append(f"the training options of recipe {context.meta[RECIPE]}")
    if unused:
        note(f"note: without --data nothing is trained; these options have no effect: {', '.join(unused)}")


def note_callable_weights(options: dict[str, Any]) -> None:
    """Note that a user's callable determines the weights, trained or not."""
    from lrexport.cli.console import note
    from lrexport.networks.names import is_import_path

    name = options["model"].partition("?")[0]
    if is_import_path(name) and options["weights"] is None and not (options["data"] and options["dense_epochs"]):
        note(f"note: no --weights: starting from the weights that {plain(name)} returns")


def note_changed_defaults(source: Path, config: CompressConfig) -> None:
    """Note options whose defaults differ from the values that the run was made with."""
    from lrexport.artifacts.run_files import SVD
    from lrexport.cli.console import note
    from lrexport.runs.record import load_record

    record = load_record(source)
    with_data = record.data is not None or config.train.data is not None
    names = {*decide_again(SVD in record.files, with_data)} & record.config.keys()
    now, context = json.loads(json.dumps(config.to_record())), click.get_current_context()
    differ = [
        f"{_flag(name)} {in_words(each.now)} (the run had {in_words(each.before)})"
        for name, each in differences(record.config, now).items()
        if name in names and context.get_parameter_source(name) is ParameterSource.DEFAULT
    ]
    if differ:
        note(plain(f"note: options that differ from those of {source}: {', '.join(differ)}"))


def note_replaced(run: Path) -> None:
    """Note what is lost when a run is compressed again in its own folder."""
    from lrexport.artifacts import mark
    from lrexport.cli.console import note
    from lrexport.runs.record import load_record

    if load_record(run).results.compressed is None:
        return
    made = mark.known(run) or mark.Mark()
    gone = [name for name in (*EXPORTED, BASELINE) if name in made.names and (run / name).exists()]
    files = f" and removes {', '.join(gone)}" if gone else ""
    note(plain(f"note: this replaces the compressed network in {run}{files}; use -o RUN to keep it"))


def _flag(name: str) -> str:
    return f"--{option_name(name)}"
