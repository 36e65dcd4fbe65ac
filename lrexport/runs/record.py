"""The run's record, run.json: inputs, choices and results. Fields: docs/record.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lrexport.artifacts import files, run_folder
from lrexport.artifacts.json_files import first_fault, read_json, unicode_names
from lrexport.artifacts.run_files import CHECKPOINTS, DENSE_INT8, DENSE_ONNX, MODEL_INT8, MODEL_ONNX, RECORD, STATE
from lrexport.errors import InputError, UsageError
from lrexport.plan import Pair, Plan, PlannedLatency
from lrexport.preprocessing import Channels, Crop, Interpolation, Origin, Preprocessing
from lrexport.runs.recorded_values import check_choices, check_environment, check_export
from lrexport.runs.scores import Score
from lrexport.signature import Signature
from lrexport.stored import Stored
from lrexport.text import is_onnx_name, shell_path

SCHEMA_VERSION = 1
RANDOM = "the network has random weights: MACs and latency are real, accuracy is not"  # one of the notes
UNKNOWN_QUALITY = (
    "quality unknown: the network was compressed without data, so its outputs were not compared with the dense "
    "network's; a few hundred inputs without labels, given with --data, are enough for that"
)  # one of the notes


class Latency(Stored):
    """Milliseconds for one inference; ``iqr`` is p75 − p25, ``ratio`` this network ÷ dense in the same rounds.

    If requested: ``load_ms``, ``first_run_ms`` and ``peak_bytes``, the memory that both added, in a fresh process;
    ``operators_ms``, the time by operator type; ``layers_ms``, the time by layer, "" for none, from the runtime's profiler.
    """

    p50: float
    p90: float
    p99: float
    iqr: float
    rounds: int
    threads: int
    batch: int
    ratio: float | None = None
    ratio_iqr: tuple[float, float] | None = None
    warning: str | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    peak_bytes: int | None = None
    operators_ms: dict[str, float] | None = None
    layers_ms: dict[str, float] | None = None


class Quantisation(Stored):
    """How a network was quantised: the ranges of activations are from ``images`` held-out training images of ``data``.

    ``int8_macs`` MACs are in int8, the rest in float32. ``agreement`` is the share of these images for which it predicts
    the same class as the float32 file, or of equal values of an output of integers, by the first such output; None without.
    ``sqnr_db`` is the SQNR of the other outputs, by name.
    """

    data: str
    images: int
    int8_macs: int
    agreement: float | None = None
    sqnr_db: dict[str, float] = Field(default={})


class ChosenRows(Stored):
    """How the export of a network that chooses rows by values, such as boxes, was compared with torch.

    What it chooses from, the outputs of the modules ``of``, was compared; of ``all`` rows that the file or torch chose from
    random values of these, the same ones for both, ``same`` were the same.
    """

    of: tuple[str, ...]
    same: int
    all: int


class Result(Stored):
    """One network's figures. ``bytes`` is the size of its ONNX file, ``epochs`` its training in this run.

    ``uncounted`` names operators that ``macs`` do not include; ``macs`` is then a lower bound. ``accuracy`` is the score on
    the test images; ``heldout_accuracy``, of the torch network, on the training images held out for choices. ``passes``
    counts by pass the places of the file that have another form than torch gave them; ``added_macs`` of ``macs`` are due to
    these.
    """

    macs: int
    macs_counted_on: Literal["torch", "onnx"]
    uncounted: tuple[str, ...] = ()
    chosen_rows: ChosenRows | None = None
    passes: dict[str, int] = Field(default={})
    added_macs: int = 0
    params: int
    precision: Literal["float32", "int8"] = "float32"
    quantisation: Quantisation | None = None
    bytes: int | None = None
    epochs: int = 0
    accuracy: Score | None = None
    heldout_accuracy: Score | None = None
    latency_ms: dict[str, Latency] = Field(default={})


class Results(Stored):
    """Both networks' figures in float32 and, if requested, in int8. Ratios are to ``dense``."""

    dense: Result | None = None
    compressed: Result | None = None
    dense_int8: Result | None = None
    compressed_int8: Result | None = None


class ModelSource(Stored):
    """How to build the network again: ``source`` is MODEL without its options, which are in ``kwargs``.

    ``input_shape`` is that of its only input, without the batch; ``inputs`` has several, or one of which more is known, as
    ``NAME=SHAPE[:DTYPE[:LOW..HIGH]]``. ``source`` may be the name of an .onnx file, for people: the network
    comes from the run's copy of it, whose inputs have the sizes ``file_shapes`` by their names in the file.
    """

    source: str
    kwargs: dict[str, Any] = Field(default={})
    input_shape: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    file_shapes: dict[str, tuple[int, ...]] = Field(default={})

    @model_validator(mode="after")
    def _has_inputs(self) -> ModelSource:
        try:
            assert self.signature is not None
        except UsageError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def signature(self) -> Signature:
        """What the network takes."""
        return Signature.parse(self.inputs) if self.inputs else Signature.of(self.input_shape)

    @property
    def is_file(self) -> bool:
        """Whether the network came from an .onnx file."""
        return is_onnx_name(self.source)

    @property
    def text(self) -> str:
        """MODEL as on the command line, with its options: different networks have different texts."""
        query = urlencode(
            {name: value if isinstance(value, str) else str(value).lower() for name, value in self.kwargs.items()}
        )
        return f"{self.source}?{query}" if query else self.source

    @classmethod
    def of(cls, source: str, kwargs: dict[str, Any], signature: Signature) -> ModelSource:
        """The shape alone says all of a single plain input."""
        if signature.is_plain:
            return cls(source=source, kwargs=kwargs, input_shape=signature.shape)
        return cls(source=source, kwargs=kwargs, inputs=signature.texts())


class RecordedPreprocessing(Stored):
    """The fields of :class:`lrexport.preprocessing.Preprocessing`."""

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: Crop = "center"
    channels: Channels = "rgb"
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    origin: Origin = "default"

    @model_validator(mode="after")
    def _makes_sense(self) -> RecordedPreprocessing:
        try:
            assert self.value is not None
        except UsageError as error:
            raise ValueError(error.message) from error
        return self

    @property
    def value(self) -> Preprocessing:
        """The preprocessing itself."""
        return Preprocessing(**self.model_dump())

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> RecordedPreprocessing:
        """What the record holds of it."""
        return cls(**preprocessing.to_plain())


class DataSource(Stored):
    """``source`` as given to --data, and the numbers of samples: choices are made on ``heldout``, never on ``test``.

    ``class_names`` are empty in records of older versions. ``skipped`` unreadable images were left out. ``preprocessing`` is
    that of pictures; without pictures it is None.
    """

    source: str
    classes: int
    class_names: tuple[str, ...] = ()
    train: int
    heldout: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: int = 0
    preprocessing: RecordedPreprocessing | None = None


class Fidelity(Stored):
    """How closely the folded network follows the one before pruning on held-out inputs, by metric: SQNR in dB, agreement.

    ``repaired`` is before healing. ``healed``, None without it, is after ``steps`` steps in ``seconds``, which made ``kept``
    of ``parts`` parts of the network better. ``complete``: no step was left out for lack of time. ``rates`` are the learning
    rates, relative to the size of a weight, of the last runs of pairs, blocks and the network.
    """

    repaired: dict[str, float]
    healed: dict[str, float] | None = None
    parts: int = 0
    kept: int = 0
    steps: int = 0
    seconds: float = 0.0
    complete: bool = True
    rates: dict[str, float] = Field(default={})


class StoredFile(Stored):
    """Hash and size of a file of the run."""

    sha256: str
    bytes: int


class FormatQuantisation(Stored):
    """How ``tool`` made a runtime's int8 files: by ``images`` held-out training images of ``data``.

    ``agreement`` and ``sqnr_db`` are those of :class:`Quantisation`, with the float32 ONNX file in ONNX Runtime.
    """

    tool: str
    data: str
    images: int
    agreement: float | None = None
    sqnr_db: dict[str, float] = Field(default={})


class FormatFiles(Stored):
    """One network in another format: names and bytes of its files, and how it compares with its ONNX file in the runtime.

    ``relative_error`` is the largest difference relative to the largest output, in int8 on the images of ``quantisation``;
    ``sizes`` are those of the first input at which it was compared. ``notes`` are those of the toolchain, such as operators
    that stay in slow kernels.
    """

    files: tuple[str, ...]
    bytes: int
    relative_error: float | None
    sizes: tuple[tuple[int, ...], ...]
    accuracy: Score | None = None
    notes: tuple[str, ...] = ()
    quantisation: FormatQuantisation | None = None


class Format(Stored):
    """Both networks in the format of ``runtime``, which computes in ``precision``; both in int8 too, if asked for."""

    runtime: str
    version: str
    precision: str
    dense: FormatFiles
    compressed: FormatFiles
    dense_int8: FormatFiles | None = None
    compressed_int8: FormatFiles | None = None


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


def exported_shapes(model: ModelSource, export: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The sizes, with the batch, at which files of an export with free heights, widths or lengths are counted and timed.

    They are the network's own; empty if nothing but the batch is free. Of a network from a file they are those of its
    inputs.
    """
    if model.file_shapes:
        return dict(model.file_shapes)
    if not {*export.get("dynamic", ())} - {"batch"}:
        return {}
    return {spec.name: (export.get("batch") or 1, *spec.shape) for spec in exported_signature(model.signature, export)}


def exported_signature(signature: Signature, export: Mapping[str, Any]) -> Signature:
    """What the files of an export take."""
    return signature.as_pixels() if export.get("with_preprocessing") and signature.takes_images else signature


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
