"""What ``lrexport onnx`` is asked to do: every choice with its default."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrexport.errors import UsageError

BATCH = "batch"
# Axes that a file may leave free.
DYNAMIC = (BATCH, "height", "width", "length")
# The oldest opset that torch's exporter has operators for: every network can be written in it.
FIRST_OPSET = 18


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. ``batch`` None: dynamic; ``rounds`` 0: no latency; ``data`` replaces the record's.

    ``dynamic`` names the axes that the files leave free, the batch among them if ``batch`` is None.
    ``with_preprocessing`` puts the normalisation of pictures into the graphs. ``passes`` writes parts of the graphs in a
    form that computes the same faster.
    ``int8`` also writes both files in int8, calibrated on at most ``calibration_images`` images; ``ort`` also writes the
    compressed files in ONNX Runtime's own format.
    """

    batch: int | None = 1
    dynamic: tuple[str, ...] = ()
    opset: int = FIRST_OPSET
    rounds: int = 100
    threads: int = 1
    target: str = "local"
    data: str | None = None
    rescore: bool = True
    with_preprocessing: bool = False
    int8: bool = False
    calibration_images: int = 512
    ort: bool = False
    passes: bool = True


def check_dynamic(names: Sequence[str]) -> tuple[str, ...]:
    """Axes by name, each once, in the order of DYNAMIC; a single text has commas. Raises UsageError for other names."""
    given = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    for name in given:
        if name not in DYNAMIC:
            raise UsageError(f"invalid axis {name!r}: expected one or more of {', '.join(DYNAMIC)}")
    return tuple(name for name in DYNAMIC if name in given)
