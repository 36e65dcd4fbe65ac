"""Facts about one model, from a run, an .onnx file or a baseline: the input of all limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

# For the baseline, which pydantic reads into these classes.
_STRICT = {"extra": "forbid", "allow_inf_nan": False}
# Entries of a record's environment that identify a machine.
_MACHINE = ("cpu", "cores", "isa", "system")


@dataclass(frozen=True)
class Layer:
    """A layer of the exported graph; the convolutions of a pair are one layer. MACs are for one input, bytes as stored."""

    __pydantic_config__: ClassVar = _STRICT

    macs: int
    params: int
    bytes: int


@dataclass(frozen=True)
class AccuracyFacts:
    """Shares in [0, 1] over ``n`` images."""

    __pydantic_config__: ClassVar = _STRICT

    top1: float
    top5: float
    n: int


@dataclass(frozen=True)
class ScoreFacts:
    """The ``value`` of the first metric of a ``task`` over ``n`` samples, a share in [0, 1] if its unit is %."""

    __pydantic_config__: ClassVar = _STRICT

    task: str
    metric: str
    unit: str
    value: float
    n: int
    higher_is_better: bool = True


@dataclass(frozen=True)
class LatencyFacts:
    """Milliseconds as in a run's record; ``machine`` is what it was measured on."""

    __pydantic_config__: ClassVar = _STRICT

    p50: float
    p90: float
    iqr: float
    threads: int
    batch: int
    ratio: float | None = None
    ratio_iqr: tuple[float, float] | None = None
    warning: str | None = None
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """Figures of a model; None: not measured. ``bytes`` is the size of the ONNX file with its external data.

    ``uncounted`` names operators that multiply but are not in ``macs``, which is then a lower bound; ``layers`` are named
    by their weights. ``graph`` is a digest of the graph without weights, unchanged by more training.
    ``kind`` describes a file whose graph cannot be read, such as ``a .tflite file``.
    """

    __pydantic_config__: ClassVar = _STRICT

    bytes: int | None = None
    gzip_bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    opset: int | None = None
    operators: tuple[str, ...] | None = None
    uncounted: tuple[str, ...] = ()
    accuracy: AccuracyFacts | ScoreFacts | None = None
    latency_ms: Mapping[str, LatencyFacts] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    graph: str | None = None
    kind: str | None = None

    @property
    def exact_macs(self) -> int | None:
        """MACs if all of them were counted, else None."""
        return None if self.uncounted else self.macs

    def to_json(self) -> dict[str, Any]:
        """All figures; a lower bound of MACs is named ``macs_at_least``, and ``macs`` is then None."""
        return {**asdict(self), "macs": self.exact_macs, "macs_at_least": self.macs if self.uncounted else None}


@dataclass(frozen=True)
class Unreadable:
    """In place of figures from a damaged file: ``why`` they cannot be read, and what to do.

    ``entry`` is a baseline's invalid entry, written back as it was.
    """

    why: str
    entry: Any = None


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record's environment that identifies the machine."""
    return {key: environment[key] for key in _MACHINE if key in environment}


def machine_text(machine: Mapping[str, Any]) -> str:
    """The machine in one line."""
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"{machine.get('cpu', 'an unknown processor')}{cores}"
