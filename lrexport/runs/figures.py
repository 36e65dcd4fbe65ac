"""What a record holds of networks' figures: MACs, bytes, scores, latencies, files of other formats, fidelity."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lrexport.runs.scores import Score
from lrexport.stored import Stored


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
