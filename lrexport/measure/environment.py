"""The environment of a measurement: machine and versions."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lrexport.measure import machine

_PACKAGES = ("lrexport", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxsim", "numpy")


def environment() -> dict[str, Any]:
    """Processor, cores usable by this process, system, Python and package versions."""
    facts = machine.environment()
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
