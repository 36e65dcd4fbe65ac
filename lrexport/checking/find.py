"""From paths and globs to the runs and .onnx files that they mean."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from lrexport.artifacts.run_files import RECORD
from lrexport.budget.limits import Budget
from lrexport.errors import InputError, UsageError


def find_models(pattern: str, root: Path) -> list[Path]:
    """Runs and .onnx files that ``pattern`` names, a path or a glob relative to ``root``, in the order of their names.

    Raises UsageError where it matches none, InputError where it names a file that is neither.
    """
    literal = root / pattern
    if literal.exists():  # a name may hold brackets
        if not is_model(literal):
            raise InputError(
                f"{literal} is neither a run nor an .onnx file", "A run is the folder given to lrexport compress with -o."
            )
        return [literal]
    found = sorted(glob.glob(pattern, root_dir=root, recursive=True))
    models = [root / name for name in found if is_model(root / name)]
    if not models:
        others = f"; what it matches is neither, {found[0]} for one" if found else ""
        raise UsageError(f"{pattern!r} matches no run and no .onnx file in {root.absolute()}{others}")
    return models


def is_model(path: Path) -> bool:
    """Whether ``path`` is a run or an .onnx file."""
    return (path / RECORD).is_file() or (path.suffix == ".onnx" and path.is_file())


def applies(budget: Budget, model: Path, root: Path) -> bool:
    """Whether a budget is about ``model``: one without paths is about any."""
    if not budget.paths:
        return True
    wanted = os.path.abspath(model)
    for pattern in budget.paths:
        names = [pattern, *glob.glob(pattern, root_dir=root, recursive=True)]
        if any(os.path.abspath(root / name) == wanted for name in names):
            return True
    return False


def name_of(model: Path, root: Path) -> str:
    """What outputs and the baseline call a model: its path from ``root`` where it is below, with forward slashes."""
    relative = os.path.relpath(model, root)
    path = model if relative.startswith(os.pardir) else Path(relative)
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")
