"""What ``lrexport onnx`` is asked to do: every choice with its default."""

from __future__ import annotations

from dataclasses import dataclass

# The oldest opset that torch's exporter has operators for: every network can be written in it.
FIRST_OPSET = 18


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export. ``batch`` None: dynamic; ``rounds`` 0: no latency; ``data`` replaces the record's.

    ``int8`` also writes both files in int8, calibrated on at most ``calibration_images`` images; ``ort`` also writes the
    compressed files in ONNX Runtime's own format.
    """

    batch: int | None = 1
    opset: int = FIRST_OPSET
    rounds: int = 100
    threads: int = 1
    target: str = "local"
    data: str | None = None
    rescore: bool = True
    int8: bool = False
    calibration_images: int = 512
    ort: bool = False
