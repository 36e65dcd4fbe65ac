"""What is known of one model, whether it comes from a run, an .onnx file or a baseline. All that limits look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

# For the baseline, which pydantic reads into these classes.
_STRICT = {"extra": "forbid", "allow_inf_nan": False}
# What tells one machine from another, of a record's environment.
_MACHINE = ("cpu", "cores", "isa", "system")


@dataclass(frozen=True)
class Layer:
    """A layer of the exported graph, both convolutions of a pair together. MACs of one input, bytes as stored."""

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
    """None is what was not measured. ``bytes`` are those of the ONNX file with its external data.

    ``uncounted`` names operators that multiply but are not in ``macs``, which are a lower bound then; ``layers`` are named
    by their weights. ``graph`` is a digest of the graph without its weights, the same after more training.
    ``kind`` names the format of a file that no graph can be read from, ``".tflite"`` say.
    """

    __pydantic_config__: ClassVar = _STRICT

    bytes: int | None = None
    gzip_bytes: int | None = None
    macs: int | None = None
    params: int | None = None
    opset: int | None = None
    operators: tuple[str, ...] | None = None
    uncounted: tuple[str, ...] = ()
    accuracy: AccuracyFacts | None = None
    latency_ms: Mapping[str, LatencyFacts] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)
    graph: str | None = None
    kind: str | None = None

    @property
    def exact_macs(self) -> int | None:
        """MACs where all of them were counted."""
        return None if self.uncounted else self.macs

    def to_json(self) -> dict[str, Any]:
        """All figures; a lower bound of MACs goes by the name ``macs_at_least``, and ``macs`` is None then."""
        return {**asdict(self), "macs": self.exact_macs, "macs_at_least": self.macs if self.uncounted else None}


@dataclass(frozen=True)
class Unreadable:
    """Stands for figures that a damaged file should have had: ``why`` they cannot be read, and what to do.

    ``entry`` is what a baseline has in their place, to be written back as it was.
    """

    why: str
    entry: Any = None


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record's environment that says which machine it was."""
    return {key: environment[key] for key in _MACHINE if key in environment}


def machine_text(machine: Mapping[str, Any]) -> str:
    """One line for people."""
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"{machine.get('cpu', 'an unknown processor')}{cores}"
