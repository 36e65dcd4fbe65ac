"""Checks that need no torch, and consent to code that a run's record names, before any work."""

from __future__ import annotations

from pathlib import Path

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.plan_file import choices_in
from lrexport.artifacts.run_files import MODEL, OF_A_SWEEP, RECORD
from lrexport.cli.asking import agree_to_typed, one_of_several, settle_record
from lrexport.config.compression import CompressConfig, TrainConfig, check_source, check_trainable, several_need_data
from lrexport.config.goals import FromPlan
from lrexport.config.task_names import check_task
from lrexport.data import sources
from lrexport.errors import InputError, UsageError
from lrexport.networks.names import GIVE_WEIGHTS, check_name, is_import_path, no_weights_for, parse_model, random_teacher
from lrexport.runs.record import Record, load_record, uncompressed
from lrexport.runs.resume import check_folder, check_free, is_stopped, stopped
from lrexport.text import is_onnx_name


def check_compress(config: CompressConfig, source: Path | None, run: Path | None, resume: bool) -> None:
    """Check a compression of a MODEL or of the run ``source`` into the folder ``run``; None: nothing is written.

    Raises UsageError for unknown or contradictory options, InputError for missing files or missing consent.
    """
    check_source(config, source)
    if isinstance(config.goal, FromPlan):
        choices_in(config.goal.plan)
    record = check_start(config.train, source)
    if (
        config.train.devices * config.train.nodes > 1
        and config.train.data is None
        and (record is None or record.data is None)
    ):
        raise several_need_data()
    if run is not None and (source is None or run.resolve() != source.resolve()):
        _check_output(run, resume, config.train.log_to)
    elif run is not None:
        check_folder(run, config.train.log_to)


def check_train(config: TrainConfig, run: Path, resume: bool) -> None:
    """Check SVD training alone. Raises as :func:`check_compress`."""
    check_trainable(config)
    check_start(config, None)
    _check_output(run, resume, config.log_to)


def check_start(config: TrainConfig, source: Path | None) -> Record | None:
    """Check MODEL, or the run ``source``, with data, weights and teacher; returns the record of ``source``."""
    if config.log_to:
        from lrexport.training.loggers import check_installed

        check_installed(config.log_to)
    agree_to_typed(None if source else config.model, config.data, config.task)
    record = load_record(source) if source is not None else None
    if record is not None and source is not None:
        uses_data = config.data is not None or record.data is not None
        settle_record(source, record, with_data=config.data is None, with_task=uses_data and config.task is None)
    else:
        check_name(parse_model(config.model)[0])
        if config.weights is not None and is_onnx_name(config.model):
            raise no_weights_for(config.model, "--weights")
        if config.weights is not None:
            files.check_readable(config.weights)
    if config.data is not None:
        sources.check_source(config.data, config.download)
    if config.task is not None:
        check_task(config.task)
    if config.teacher is not None and (config.data or (record and record.data)):
        try:
            _check_teacher(config.teacher, config.teacher_weights)
        except (InputError, UsageError) as error:
            raise type(error)(f"the teacher {config.teacher}: {error.message}", error.hint) from error
    return record


def _check_teacher(teacher: str, weights: Path | None) -> None:
    """Check a teacher: for a run the code of its dense network, for a MODEL its name and weights."""
    run = Path(teacher)
    if (run / RECORD).is_file():
        settle_record(run, load_record(run), with_data=False)
        return
    agree_to_typed(teacher, None)
    name, options = parse_model(teacher)
    check_name(name)
    if is_onnx_name(name):
        if weights is not None:
            raise no_weights_for(name, "--teacher-weights")
    elif weights is not None:
        files.check_readable(weights)
    elif not is_import_path(name) and not any(map(options.get, GIVE_WEIGHTS)):
        raise random_teacher()


def _check_output(run: Path, resume: bool, log_to: tuple[str, ...]) -> None:
    if one_of_several():
        return  # the first process checks for all once they are connected: an error in one now leaves the others waiting
    check_folder(run, log_to)
    if is_stopped(run) and not resume:
        raise stopped(run)
    if not resume:  # with --resume the run may be finished
        check_free(run, resume)


def check_export(run: Path, data: str | None, uses_data: bool, int8: bool) -> None:
    """Check an export of a run, with ``data`` instead of the run's own if given. Raises as :func:`check_compress`."""
    record = load_record(run)
    if MODEL not in record.files:
        raise uncompressed(run)
    files.check_writable(run)
    agree_to_typed(None, data)
    settle_record(run, record, with_data=uses_data and data is None, with_task=uses_data)
    if data is not None and uses_data:
        sources.check_source(data)
    if int8 and data is None and record.data is None:
        raise sources.no_calibration()


def check_sweep(config: TrainConfig, source: Path | None, folder: Path) -> None:
    """Check a sweep in ``folder``. Raises as :func:`check_compress`."""
    if (folder / RECORD).exists():
        raise UsageError(f"{folder} holds a run, not a sweep", "Choose another folder with -o.")
    run_folder.check(folder, OF_A_SWEEP)
    check_start(config, source)
