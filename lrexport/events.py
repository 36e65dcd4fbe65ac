"""Events of a running command: an ``on_event`` callback receives each one as it happens.

Shares are in [0, 1]; ``stage`` is a key of lrexport.config.compression.STAGES. Events of sweeps: lrexport.sweep.events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import singledispatch
from typing import Any, ClassVar

from lrexport.metric import TOP1, Metric, heldout_key
from lrexport.plan import PlannedLatency

_LATENCY = {"target", "dense", "predicted", "measured", "ratio"}  # fields in log.jsonl; run.json has all


@dataclass(frozen=True)
class Event:
    """Base of all events. ``kind`` is the event's name in JSON.

    ``logged``: training writes the event into log.jsonl; the others only show progress, or belong to other commands.
    """

    kind: ClassVar[str]
    logged: ClassVar[bool] = False


OnEvent = Callable[[Event], None]


def ignore_events(_event: Event) -> None:
    """An OnEvent for callers that do not watch."""


@dataclass(frozen=True)
class Noted(Event):
    """Information; nothing needs to be done."""

    kind = "note"
    logged = True
    text: str


@dataclass(frozen=True)
class Warned(Event):
    """Something the user should look at; work continues."""

    kind = "warning"
    logged = True
    text: str


@dataclass(frozen=True)
class Working(Event):
    """What is being done now, until the next event says otherwise: ``done`` of ``of`` parts, if it has any."""

    kind = "working"
    text: str
    done: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class AlreadyFinished(Event):
    """The resumed ``run`` is already finished."""

    kind = "finished"
    run: str


@dataclass(frozen=True)
class DataLoaded(Event):
    """The data of the command: numbers of samples, and in words how pictures become inputs; None without pictures."""

    kind = "data"
    source: str
    train: int
    heldout: int
    test: int
    preprocessing: str | None = None


@dataclass(frozen=True)
class ExportChecked(Event):
    """Before any training: the dense network can be exported to ONNX. The check took ``seconds``."""

    kind = "export check"
    logged = True
    seconds: float


@dataclass(frozen=True)
class LayersTimed(Event):
    """``done`` of the ``of`` layers and pairs that are missing in the table of ``target`` are timed."""

    kind = "table"
    done: int
    of: int
    target: str


@dataclass(frozen=True)
class DenseTimed(Event):
    """The dense network takes ``dense`` milliseconds on ``target``; ``table`` is the file of layer times, if saved."""

    kind = "speed"
    dense: float
    target: str
    table: str | None


@dataclass(frozen=True)
class Measuring(Event):
    """A latency measurement on ``target`` has finished ``done`` of ``of`` rounds; None before the first."""

    kind = "measuring"
    target: str
    done: int | None = None
    of: int | None = None


@dataclass(frozen=True)
class StepDone(Event):
    """One optimiser step: ``step`` of the epoch's ``steps``; epoch and step count from 0. ``loss`` includes all terms."""

    kind = "step"
    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True)
class Steering:
    """The weakest and strongest λ_s of steered SVD training; pruning would now drop at most ``energy_dropped`` of each."""

    weakest: float
    strongest: float
    energy_dropped: float


@dataclass(frozen=True)
class EpochDone(Event):
    """One epoch of a stage is done; epochs count from 1, and a full one has ``steps`` optimiser steps.

    ``loss`` is the mean task loss, ``heldout_score`` the value of ``metric``, ``lr`` the last step's. ``seconds`` are
    those of this process, with scoring. ``step_ms`` is the median time of a step, ``step_over_dense`` its ratio to a step
    of the dense network (SVD training).
    """

    kind = "epoch"
    logged = True
    stage: str
    epoch: int
    epochs: int
    steps: int
    loss: float
    heldout_score: float
    lr: float
    seconds: float
    images_per_second: float
    step_ms: float
    step_over_dense: float | None = None
    steered: Steering | None = None
    metric: Metric = TOP1


@dataclass(frozen=True)
class RanksCut(Event):
    """Falling ranks, at the start of ``epoch`` (from 1): ``layers`` layers were cut, ``macs_share`` of the MACs is left."""

    kind = "cut"
    logged = True
    epoch: int
    layers: int
    macs_share: float


@dataclass(frozen=True)
class ChoosingRanks(Event):
    """Ranks are being chosen, with ``images`` training images; their labels are not used."""

    kind = "pruning"
    images: int


@dataclass(frozen=True, kw_only=True)
class PlanChosen(Event):
    """Ranks are chosen and the network is folded: ``macs`` of ``dense_macs`` are left.

    ``threshold`` is the largest share of a layer's energy that is dropped, if the goal sets one for all layers. ``scores``
    are held-out values of ``metric`` of the folded network: KEY, and ``KEY_after_REPAIR`` after each repair, with the KEY of
    :func:`lrexport.metric.heldout_key`. ``heldout_before`` is that of the network before pruning, if the goal needed it.
    """

    kind = "plan"
    logged = True
    threshold: float | None
    scores: Mapping[str, float] = field(default_factory=dict)
    heldout_before: float | None = None
    metric: Metric = TOP1
    latency: PlannedLatency | None = None
    macs: int
    dense_macs: int


@dataclass(frozen=True)
class HealingPart(Event):
    """Part ``done`` (from 0) of ``of`` parts of the folded network, the ``kind_of_part`` ``name``, is healed next."""

    kind = "healing"
    done: int
    of: int
    kind_of_part: str
    name: str


@dataclass(frozen=True, kw_only=True)
class FidelityMeasured(Event):
    """How closely the compressed network follows the one before pruning; fields as in lrexport.runs.figures.Fidelity."""

    kind = "fidelity"
    logged = True
    repaired: Mapping[str, float]
    healed: Mapping[str, float] | None = None
    parts: int = 0
    kept: int = 0
    steps: int = 0
    seconds: float = 0.0
    complete: bool = True
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileExported(Event):
    """An ONNX file is written and agrees with torch within ``relative_error`` of the largest output.

    ``blind``: the output hardly depends on the input, so agreement proves little. ``rescored``: the file has the same test
    accuracy as the torch network. ``uncounted``: operators whose MACs are not counted. The sizes ``free`` may be any that
    differ from the network's own by multiples of ``step``. If the network chooses rows by values, as detectors do, the
    error is that of the outputs of its modules ``chosen_from``, and of ``rows`` chosen from random values ``same_rows`` were
    the same as torch's. ``passes`` counts by pass the places with another form than torch gave them, which adds
    ``added_macs``.
    """

    kind = "export"
    file: str
    bytes: int
    opset: int
    relative_error: float
    simplified: bool | None
    blind: bool
    rescored: bool
    uncounted: tuple[str, ...]
    free: tuple[str, ...] = ()
    step: int = 1
    chosen_from: tuple[str, ...] = ()
    rows: int = 0
    same_rows: int = 0
    passes: Mapping[str, int] = field(default_factory=dict)
    added_macs: int = 0


@dataclass(frozen=True, kw_only=True)
class FileQuantised(Event):
    """The int8 ``file`` of ``source`` is written: ``int8_macs`` of ``macs`` are in int8; the nodes ``in_float`` are not.

    It was calibrated on ``images`` held-out images of ``data`` and predicts the same class as ``source`` for the share
    ``agreement`` of them; outputs that are no class scores have their SQNR in ``sqnr_db``. ``incomparable`` outputs have
    neither. ``score`` and ``float32_score`` are values of ``metric`` on the test images.
    """

    kind = "int8"
    file: str
    source: str
    bytes: int
    macs: int
    data: str
    images: int
    int8_macs: int
    agreement: float | None = None
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    incomparable: tuple[str, ...] = ()
    score: float | None = None
    float32_score: float | None = None
    metric: Metric = TOP1
    in_float: tuple[str, ...]


@dataclass(frozen=True)
class OrtWritten(Event):
    """``source`` is written as an .ort file for ``platform``, within ``relative_error`` of its largest output."""

    kind = "ort"
    file: str
    source: str
    platform: str
    bytes: int
    relative_error: float


@dataclass(frozen=True)
class FormatWritten(Event):
    """``source`` is written as ``files`` for ``runtime``, there within ``relative_error`` of its largest output.

    ``relative_error`` is None for files that were converted, not run.

    ``score`` in ``metric`` is that of the test images in the runtime; None without them. ``notes`` are those of its
    toolchain, such as operators that stay in slow kernels.
    """

    kind = "format"
    files: tuple[str, ...]
    source: str
    runtime: str
    bytes: int
    relative_error: float | None
    precision: str
    score: float | None = None
    metric: Metric = TOP1
    notes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class FormatQuantised(Event):
    """``tool`` has written ``files`` in int8 for ``runtime``, calibrated on ``images`` held-out images of ``data``.

    ``agreement``, ``sqnr_db`` and ``incomparable`` compare them with ``source`` as those of :class:`FileQuantised` do,
    ``relative_error`` is that of the largest output; None without an output that can be compared. ``score`` and
    ``float32_score`` are values of ``metric`` on the test images, both in the runtime.
    """

    kind = "format int8"
    files: tuple[str, ...]
    source: str
    runtime: str
    tool: str
    bytes: int
    data: str
    images: int
    agreement: float | None = None
    sqnr_db: Mapping[str, float] = field(default_factory=dict)
    incomparable: tuple[str, ...] = ()
    relative_error: float | None = None
    score: float | None = None
    float32_score: float | None = None
    metric: Metric = TOP1
    notes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class FilesRemoved(Event):
    """Optional ``files`` of an earlier export are removed, because this export did not write them."""

    kind = "removed"
    files: tuple[str, ...]


@singledispatch
def event_to_json(event: Event) -> dict[str, Any]:
    """The event as in log.jsonl: its kind, then its fields, without optional ones that are None."""
    return {"event": event.kind, **_fields(event)}


@event_to_json.register
def _(event: EpochDone) -> dict[str, Any]:
    key = heldout_key(event.metric)
    values = {key if name == "heldout_score" else name: value for name, value in _fields(event).items()}
    return {"event": event.kind, **values, **_other_metric(event.metric)}


@event_to_json.register
def _(event: PlanChosen) -> dict[str, Any]:
    values = _fields(event)
    threshold, scores = values.pop("threshold"), values.pop("scores")
    if event.heldout_before is not None:
        before = f"{heldout_key(event.metric)}_before"
        values = {before if name == "heldout_before" else name: value for name, value in values.items()}
    if event.latency is not None:
        values["latency"] = {key: value for key, value in event.latency.model_dump().items() if key in _LATENCY}
    return {"event": event.kind, "threshold": threshold, **scores, **values, **_other_metric(event.metric)}


@event_to_json.register(FileQuantised)
@event_to_json.register(FormatQuantised)
def _(event: FileQuantised | FormatQuantised) -> dict[str, Any]:
    names = {"score": "top1", "float32_score": "float32_top1"} if event.metric == TOP1 else {}
    values = {names.get(name, name): value for name, value in _fields(event).items()}
    return {"event": event.kind, **values, **_other_metric(event.metric)}


@event_to_json.register
def _(event: FormatWritten) -> dict[str, Any]:
    return {"event": event.kind, **_fields(event), **_other_metric(event.metric)}


def _other_metric(metric: Metric) -> dict[str, Any]:
    """The metric of a task other than classification."""
    return {} if metric == TOP1 else {"metric": asdict(metric)}


def _fields(value: Event | Steering) -> dict[str, Any]:
    values = {each.name: getattr(value, each.name) for each in fields(value) if each.name != "metric"}
    optional = {each.name for each in fields(value) if each.default is None}
    return {
        name: _fields(item) if isinstance(item, Steering) else item
        for name, item in values.items()
        if item is not None or name not in optional
    }
