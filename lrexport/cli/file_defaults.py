"""What compressing a network from an .onnx file does unless options say otherwise: repair and healing, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lrexport.config.compression import UNLABELLED_MINUTES
from lrexport.text import is_onnx_name

_TRAINING = ("svd_epochs", "fine_tune_epochs")


def settle_training(options: dict[str, Any], source: Path | None) -> None:
    """Set epochs and healing that nobody chose, in place; ``source`` is the run that MODEL is, if it is one.

    Files of networks mostly have BatchNorm folded into their layers, and nobody knows how they were trained: the usual
    epochs at the usual learning rate would harm many of them.
    """
    if source is None and not is_onnx_name(options["model"]):
        return
    if source is not None and not _is_of_file(source):
        return
    chosen = [name for name in (*_TRAINING, "falling_ranks") if _is_chosen(name)]
    if not chosen:
        for name in _TRAINING:
            options[name] = 0
    if "heal_minutes" in options and options["heal_minutes"] is None and not chosen and _has_data(options, source):
        options["heal_minutes"] = UNLABELLED_MINUTES
        from lrexport.cli.console import note

        note("note: a network from an .onnx file is repaired and healed; --fine-tune-epochs N also trains it")


def _is_of_file(run: Path) -> bool:
    from lrexport.runs.record import load_record

    return load_record(run).model.is_file


def _has_data(options: dict[str, Any], source: Path | None) -> bool:
    from lrexport.runs.record import load_record

    return options["data"] is not None or (source is not None and load_record(source).data is not None)


def _is_chosen(name: str) -> bool:
    return click.get_current_context().get_parameter_source(name) not in (None, ParameterSource.DEFAULT)
