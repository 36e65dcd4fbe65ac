"""--task → Task: a name, or the user's own at ``package.module:object``; by default the task of the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lrexport.config.task_names import check_task, is_own_task
from lrexport.data.images import ImageData
from lrexport.errors import InputError, LrexportError, UsageError, signal_of
from lrexport.networks.building import import_object
from lrexport.tasks.classification import CLASSIFICATION, Classification
from lrexport.tasks.detection import Detection
from lrexport.tasks.fidelity import Fidelity
from lrexport.tasks.image import ImageToImage
from lrexport.tasks.segmentation import Segmentation
from lrexport.tasks.task import Task, checked_task
from lrexport.torch_tools.outputs import flat_tensors

_MAKERS: dict[str, Callable[[], Task]] = {
    CLASSIFICATION.name: lambda: CLASSIFICATION,
    Segmentation.name: Segmentation,
    ImageToImage.name: ImageToImage,
    Detection.name: Detection,
    Fidelity.name: Fidelity,
}


def task_of(
    asked: str | None, data: ImageData, dense: nn.Module, named_in: Path | None = None, output: Any = None
) -> Task | None:
    """The task that is ``asked`` for, by default that of the data, for a network that ``dense`` is the start of.

    ``output`` is the network's for one sample, if known: classes of the data are not used for maps, unless asked for.
    None if the targets of the data are for no known task, or if it has none and the outputs no fixed shape. ``named_in`` is
    the file that names it, None if the user does. Raises UsageError for an unknown name and for an object that is not a
    task, InputError for code that the user did not agree to run, DeviceError if a package is missing.
    """
    name = asked or data.default_task
    if asked is None and name == Classification.name and _returns_maps(output):
        name = Fidelity.name
    if name is None or (asked is None and name not in _MAKERS):
        return None
    task = _imported(name, named_in) if is_own_task(name) else _named(name)
    task = task.with_dense(dense)
    if isinstance(task, Fidelity) and not task.fits(data):
        if asked is None:
            return None
        raise InputError(
            "the task 'fidelity' compares outputs, and the network has none whose shape is the same for all inputs",
            "Leave out --task: layers are then repaired and healed without a score. Or give data with targets.",
        )
    return task


def _returns_maps(output: Any) -> bool:
    """Whether no output can be scores of classes, because all have further axes."""
    tensors = list(flat_tensors(output))
    return bool(tensors) and all(each.ndim > 2 for each in tensors)


def _named(name: str) -> Task:
    check_task(name)
    return _MAKERS[name]()


def _imported(path: str, named_in: Path | None) -> Task:
    """The task at ``package.module:object``: an instance, its class, or a function that returns it."""
    made = import_object(path, "--task", named_in=named_in)
    if not isinstance(made, Task) and callable(made):
        try:
            made = made()
        except LrexportError:
            raise
        except (Exception, SystemExit) as error:
            if signal_of(error) is not None:
                raise
            raise UsageError(f"--task {path!r} raised {type(error).__name__}: {error}") from error
    return checked_task(made, path)
