"""A request for a run that is already finished: nothing is left to do, or it was made with other options."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lrexport.artifacts.run_files import HOLDER, RECORD, SVD
from lrexport.artifacts.run_lock import RunLock
from lrexport.config.compression import CompressConfig
from lrexport.errors import LrexportError, UsageError
from lrexport.events import AlreadyFinished
from lrexport.runs.record import Record, load_record
from lrexport.runs.request import RunRequest
from lrexport.runs.resume import clear, is_clear, is_stopped, other_choices


def finished(request: RunRequest[Any], digests: Mapping[str, str]) -> Record | None:
    """The record of the run if it is to be resumed but is complete; otherwise None.

    Raises UsageError if its options differ from those of ``request``, its files from those of ``digests``, or its source.
    """
    run, source = request.run, request.source
    if not request.resume or run == source or is_stopped(run) or not (run / RECORD).is_file():
        return None
    record = load_record(run)
    is_compression = isinstance(request.config, CompressConfig)
    if (record.results.compressed if is_compression else record.files.get(SVD)) is None:
        return None
    others = other_choices(record, {**request.config.to_record(), **request.train.digests(), **digests}, request.of_source)
    before = next((earlier.run for earlier in reversed(record.earlier) if earlier.run is not None), None)
    if source is not None and not request.in_place and before != str(source):
        others.append(f"it started from {before}" if before else "it did not start from a run")
    if others:
        raise UsageError(f"{run} is finished, with other choices: {'; '.join(others)}", "Choose another folder with -o.")
    if not is_clear(run) or (run / HOLDER).exists():
        # Leftovers of a job that was killed at its very end, unless another job works here.
        with suppress(LrexportError, OSError), RunLock(run):
            clear(run)
    request.on_event(AlreadyFinished(str(run)))
    return record
