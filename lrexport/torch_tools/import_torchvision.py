"""Import torchvision, even if its compiled operators cannot be loaded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
_schemas: list[Any] = []


def torchvision(submodule: str = "") -> ModuleType:
    """``torchvision``, or a submodule: ``torchvision("models")``."""
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    return with_operators(lambda: importlib.import_module(name))


def with_operators(importing: Callable[[], T]) -> T:
    """The result of ``importing``, which may import torchvision somewhere; a second attempt if that fails.

    PyPI's torchvision is linked against CUDA. With a CPU build of torch its library does not load, and its import fails
    when it registers fake kernels for undefined operators. With only the schemas defined, models, datasets and transforms
    work; the operators (nms) do not. Only an attempt shows whether the library loads.
    """
    try:
        return importing()
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _schemas:
            raise
    import torch

    for loaded in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        del sys.modules[loaded]
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.append(library)  # the definitions exist only as long as this object
    return importing()
