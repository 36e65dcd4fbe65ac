"""The run's record, run.json: inputs, choices and results. Fields: docs/record.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.json_files import first_fault, read_json, unicode_names
from lrexport.artifacts.run_files import CHECKPOINTS, DENSE_INT8, DENSE_ONNX, MODEL_INT8, MODEL_ONNX, RECORD, STATE
from lrexport.errors import InputError
from lrexport.plan import Pair, Plan, PlannedLatency
from lrexport.runs.figures import Fidelity, Format, Result, Results
from lrexport.runs.recorded_values import check_choices, check_environment, check_export
from lrexport.runs.sources import DataSource, ModelSource
from lrexport.stored import Stored
from lrexport.text import shell_path

SCHEMA_VERSION = 1
RANDOM = "the network has random weights: MACs and latency are real, accuracy is not"  # one of the notes
UNKNOWN_QUALITY = (
    "quality unknown: the network was compressed without data, so its outputs were not compared with the dense "
    "network's; a few hundred inputs without labels, given with --data, are enough for that"
)  # one of the notes


class StoredFile(Stored):
    """Hash and size of a file of the run."""

    sha256: str
    bytes: int


class Earlier(Stored):
    """A run that this one started from: its folder as given, None for the same folder, and its choices."""

    run: str | None
    config: dict[str, Any]


class Record(BaseModel):
    """run.json. Ratios are derived from ``results``, never stored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = 1
    model: ModelSource
    data: DataSource | None = None
    config: dict[str, Any] = {}
    digests: dict[str, str] = {}
    earlier: list[Earlier] = []
    export: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    plan: Plan = Field(default_factory=Plan)
    planned_latency: PlannedLatency | None = None
    fidelity: Fidelity | None = None
    notes: list[str] = []
    results: Results = Results()
    formats: dict[str, Format] = {}
    files: dict[str, StoredFile] = {}

    @field_validator("files")
    @classmethod
    def _stay_in_the_run(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        """Accept only names without folders, so nothing outside of the run's folder is read, replaced or removed."""
        for name in files:
            if not name or name in (".", "..") or any(char in name for char in "/\\:\0"):
                raise ValueError(f"{name!r} is not the name of a file in the run's folder")
        return files

    def result_of(self, name: str) -> Result | None:
        """Figures of an exported file by its name in the run."""
        measured = self.results
        results = {DENSE_ONNX: measured.dense, MODEL_ONNX: measured.compressed}
        results |= {DENSE_INT8: measured.dense_int8, MODEL_INT8: measured.compressed_int8}
        return results.get(name)

    @property
    def is_quality_unknown(self) -> bool:
        """Whether layers became pairs, and nothing says what that did to the outputs."""
        small = self.results.compressed
        if self.data is not None or small is None or small.accuracy is not None:
            return False
        return any(isinstance(entry, Pair) for entry in self.plan.values())

    def environment_of(self, target: str) -> dict[str, Any]:
        """The machine of latencies on ``target``, by default the machine of the run."""
        targets = self.environment.get("targets")
        own = targets.get(target) if isinstance(targets, dict) else None
        return own if isinstance(own, dict) else self.environment

    def save(self, run: Path) -> None:
        """Write ``run/run.json`` atomically."""
        run_folder.write_json(run, RECORD, self.model_dump(mode="json"))

    def sealed(self, run: Path, *names: str) -> Record:
        """The record with hash and size of files of the run that were just written."""
        new = {name: StoredFile(sha256=files.sha256(run / name), bytes=(run / name).stat().st_size) for name in names}
        return self.model_copy(update={"files": {**self.files, **new}})

    def check(self, run: Path, name: str) -> Path:
        """Path of a file of the run. Raises InputError if it is missing or differs from the record."""
        path, stored = run_folder.plain(run, name), self.files.get(name)
        if stored is None or not path.is_file():
            raise InputError(f"{run} has no {name}", "Check whether this run is finished.")
        size = path.stat().st_size
        if size == 0:
            raise InputError(f"empty file: {path}", "Copying it was probably interrupted: copy it again.")
        checkpoints = sorted((run / CHECKPOINTS).glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        hint = f"The last checkpoint is {checkpoints[-1]}." if checkpoints else "Copy it again, or make the run again."
        if size != stored.bytes:
            state = "truncated" if size < stored.bytes else "changed"
            raise InputError(f"{path} is {state}: it has {size:,} bytes; expected {stored.bytes:,}", hint)
        digest = files.sha256(path)
        if digest != stored.sha256:
            raise InputError(
                f"{path} was damaged or changed: its sha256 is {digest[:12]}…; expected {stored.sha256[:12]}…", hint
            )
        return path


def uncompressed(run: Path) -> InputError:
    """The error for a run without a compressed network, with the command that makes one."""
    if (run / CHECKPOINTS / STATE).is_file():
        return InputError(
            f"the run {run} is unfinished",
            "Wait until it is finished; if it was interrupted, repeat its command with --resume.",
        )
    return InputError(
        f"{run} has no compressed network yet", f"Compress it, for example: lrexport compress {shell_path(run)} --macs 0.5"
    )


def load_record(run: Path) -> Record:
    """The record of a run. Raises InputError if it is missing, malformed or from a newer lrexport."""
    path = run_folder.plain(run, RECORD)
    if not path.is_file() and (run / CHECKPOINTS / STATE).is_file():
        raise uncompressed(run)
    if not path.is_file():
        raise InputError(f"invalid run {run}: it has no {RECORD}", "Give the folder that compress or train wrote with -o.")
    try:
        value = read_json(path, pairs=unicode_names)
        if isinstance(value, dict) and value.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {value.get('schema_version')!r}; expected {SCHEMA_VERSION}",
                "Use the version of lrexport that wrote it, or a newer one.",
            )
        record = Record.model_validate(value)
        for config in (record.config, *(earlier.config for earlier in record.earlier)):
            check_choices(config)
        check_export(record.export)
        check_environment(record.environment)
    except ValidationError as error:
        raise InputError(f"invalid record {path}: {first_fault(error)}", "Copy it again, or make the run again.") from error
    return record
