"""Packages that some tasks need for their metrics."""

from __future__ import annotations

import importlib
from typing import Any

from lrexport.errors import DeviceError
from lrexport.torch_tools.import_torchvision import with_operators


def need(task: str, *modules: str) -> tuple[Any, ...]:
    """The modules that a task needs. Raises DeviceError with the pip command if one is not installed."""
    try:
        # torchmetrics imports torchvision.
        return with_operators(lambda: tuple(map(importlib.import_module, modules)))
    except ImportError as error:
        missing = (error.name or modules[0]).partition(".")[0]
        raise DeviceError(
            f"the task {task!r} needs {missing} for its metrics", "Install it with: pip install 'lrexport[tasks]'"
        ) from error
