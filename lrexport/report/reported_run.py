"""The subject of a report: a finished run, with its record and the contents of other files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from lrexport.artifacts.json_files import first_fault, read_json
from lrexport.artifacts.run_files import RECORD, SPECTRA
from lrexport.errors import InputError, UsageError
from lrexport.plan import Scheme
from lrexport.runs.examples import Examples, read_examples
from lrexport.runs.figures import Result
from lrexport.runs.log import LoggedEpoch, LoggedPlan, read_log
from lrexport.runs.record import Record, load_record, uncompressed
from lrexport.runs.sweep_record import is_sweep, load_sweep


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a layer's matrix by ``scheme``, descending; ``trained`` is None without SVD training."""

    scheme: Scheme
    dense: list[FiniteFloat]
    trained: list[FiniteFloat] | None

    @property
    def last(self) -> list[float]:
        """The values that the rank cuts."""
        return self.dense if self.trained is None else self.trained


@dataclass(frozen=True)
class ReportedRun:
    """A run: its folder as given, and its contents.

    ``spectra``, by layer, is None for a run of an older version, which did not store them; ``curves`` are the epochs of
    each trained stage; ``unread`` counts lines of the log that cannot be read. ``examples`` are None if the run has none, or
    they are not asked for.
    """

    path: Path
    record: Record
    dense: Result
    compressed: Result
    spectra: dict[str, Spectrum] | None
    curves: dict[str, list[LoggedEpoch]]
    unread: int = 0
    examples: Examples | None = None

    @property
    def name(self) -> str:
        """The folder as given."""
        return str(self.path)


_Spectra: TypeAdapter[dict[str, Spectrum]] = TypeAdapter(dict[str, Spectrum])


def read_subjects(paths: Sequence[Path], with_examples: bool = True) -> list[ReportedRun]:
    """The runs, each once; for a sweep, those on its front. ``with_examples`` also reads their pictures.

    Raises UsageError for a missing folder and for a sweep without a finished run; InputError as :func:`read_subject`, and
    for a damaged sweep.
    """
    runs = [run for path in paths for run in (_of_front(path) if is_sweep(path) else [path])]
    return [read_subject(path, with_examples) for path in dict.fromkeys(runs)]


def _of_front(folder: Path) -> list[Path]:
    sweep = load_sweep(folder)
    runs = sweep.runs(folder, sweep.on_front())
    if not runs:
        raise UsageError(f"the sweep {folder} has no finished run yet", "Resume it with lrexport sweep first.")
    return runs


def read_subject(path: Path, with_examples: bool = True) -> ReportedRun:
    """A finished run. Raises InputError if it is not a run, is unfinished, or has a damaged file."""
    if not path.exists():
        raise UsageError(f"the run {path} does not exist", "Make one with lrexport compress MODEL -o RUN.")
    if not path.is_dir():
        raise UsageError(f"{path} is a file; expected a run", f"A run is a folder with a {RECORD}.")
    record = load_record(path)
    dense, compressed = record.results.dense, record.results.compressed
    if dense is None or compressed is None:
        raise uncompressed(path)
    curves, unread = _curves(path)
    examples = read_examples(path, record) if with_examples else None
    return ReportedRun(path, record, dense, compressed, _read_spectra(path, record), curves, unread, examples)


def _read_spectra(run: Path, record: Record) -> dict[str, Spectrum] | None:
    if SPECTRA not in record.files:
        return None
    path = record.check(run, SPECTRA)
    try:
        return _Spectra.validate_python(read_json(path)["layers"])
    except ValidationError as error:
        raise InputError(f"{path} does not contain singular values: {first_fault(error)}") from error
    except (LookupError, TypeError) as error:
        raise InputError(f'{path} does not contain singular values: expected {{"layers": …}}') from error


def _curves(run: Path) -> tuple[dict[str, list[LoggedEpoch]], int]:
    """The epochs of the last training of each stage, and how many lines of the log cannot be read."""
    curves: dict[str, list[LoggedEpoch]] = {}
    logged, unread = read_log(run)
    for one in logged:
        if isinstance(one, LoggedPlan):  # epochs after an earlier plan belong to another network
            curves = {stage: epochs for stage, epochs in curves.items() if stage in ("dense", "svd")}
            continue
        before = curves.get(one.stage, [])
        if not 1 <= one.number <= len(before) + 1:  # an epoch between is missing
            unread += 1
        else:  # replaces that epoch and all later ones: the stage started again, or was resumed from an earlier epoch
            curves[one.stage] = [*before[: one.number - 1], one]
    return curves, unread
