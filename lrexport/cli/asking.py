"""Consent to code that a run's record names, before torch is loaded: typed by the user, remembered, or asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lrexport.artifacts.run_files import RECORD
from lrexport.cli import output
from lrexport.config.task_names import is_own_task
from lrexport.data import sources
from lrexport.networks import names
from lrexport.networks.names import parse_model
from lrexport.runs.record import Record
from lrexport.trust import consent
from lrexport.trust.consent import Code

TASK = "--task"
_MOST_SHOWN = 4000  # characters of a call: nobody can review a longer one at a prompt
_OF_SEVERAL = ("LOCAL_RANK", "RANK", "SLURM_PROCID")


def agree_to_typed(model: str | None, data: str | None, task: str | None = None) -> None:
    """Agree to code that the user names on the command line: the run made from it names it as well."""
    if model is not None:
        name, kwargs = parse_model(model)
        if names.is_import_path(name) and (code := consent.code_at(name, "MODEL", kwargs)) is not None:
            consent.agree(code)
    if data is not None and sources.is_import_path(data) and (code := consent.code_at(data, "--data")) is not None:
        consent.agree(code)
    if task is not None and is_own_task(task) and (code := consent.code_at(task, TASK)) is not None:
        consent.agree(code)


def settle_record(run: Path, record: Record, with_data: bool, with_task: bool = False) -> None:
    """Ask for consent to code that the record of ``run`` names, unless it was given before.

    ``with_data``: the run's data is loaded as well, ``with_task``: its task. Raises InputError if the answer is no, or
    nobody can be asked.
    """
    named: list[tuple[str, str, dict[str, Any]]] = []
    if names.is_import_path(record.model.source):
        named.append((record.model.source, "MODEL", record.model.kwargs))
    if with_data and record.data is not None and sources.is_import_path(record.data.source):
        named.append((record.data.source, "--data", {}))
    task = record.config.get("task")
    if with_task and task is not None and is_own_task(task):
        named.append((task, TASK, {}))
    for path, what, kwargs in named:
        code = consent.code_at(path, what, kwargs)
        if code is not None:  # otherwise loading reports the missing module
            consent.require(code, run / RECORD, _ask)


def one_of_several() -> bool:
    """Whether torchrun or SLURM started this process as one of several for one run."""
    return any(name in os.environ for name in _OF_SEVERAL)


def _ask(code: Code, named_in: Path) -> bool:
    asks = output.is_interactive() and not one_of_several()  # several processes share one terminal
    if not asks or len(code.call) > _MOST_SHOWN:
        return False
    output.note(f"{named_in} names code to run as {code.what}:")
    output.note(f"  {code.call}")
    output.note(f"  from {code.file}, and everything it imports")
    return output.confirm("Run it now, and whenever a run on this machine names it?")
