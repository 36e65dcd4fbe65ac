"""Import torchvision, also where its compiled operators cannot load."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
_schemas: list[Any] = []


def torchvision(submodule: str = "") -> ModuleType:
    """``torchvision`` or one of its submodules, as in ``torchvision("models")``."""
    name = f"torchvision.{submodule}" if submodule else "torchvision"
    return with_operators(lambda: importlib.import_module(name))


def with_operators(importing: Callable[[], T]) -> T:
    """What ``importing`` gives, which imports torchvision perhaps, somewhere; where that fails, once more.

    The registry's torchvision is linked against CUDA. Beside a CPU build of torch its library does not load, and its
    import then fails at registering fake kernels for operators that nobody defined. Defining just their schemas lets
    models, datasets and transforms work; the operators themselves (nms) stay absent. Whether the library loads only the
    import tells.
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
    _schemas.append(library)  # the definitions last as long as the object
    return importing()
