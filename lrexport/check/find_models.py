"""Runs, .onnx files and other files by paths and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from lrexport.artifacts.run_files import RECORD
from lrexport.budget.limits import Budget
from lrexport.errors import InputError, UsageError

_WILD = frozenset("*?[]")


def find_models(pattern: str, root: Path) -> list[Path]:
    """The models that ``pattern``, a path or a glob relative to ``root``, names, sorted by name.

    A path may name a run or any file. A glob matches runs and .onnx files; with a suffix, as in ``*.tflite``, also files of
    other kinds. Raises UsageError if it matches none, InputError if a path is neither a run nor a file.
    """
    literal = root / pattern
    if literal.exists():  # a name may contain brackets
        if not (is_model(literal) or literal.is_file()):
            raise InputError(
                f"{literal} is neither a run nor a file", "A run is the folder given to lrexport compress with -o."
            )
        return [literal]
    names = sorted(glob.glob(pattern, root_dir=root, recursive=True))
    matches = is_file if _names_a_kind(pattern) else is_model
    models = [root / name for name in names if matches(root / name)]
    if not models:
        others = f"; its matches are neither, such as {names[0]}" if names else ""
        raise UsageError(f"{pattern!r} matches no run and no .onnx file in {root.absolute()}{others}")
    return models


def is_model(path: Path) -> bool:
    """Whether ``path`` is a run or an .onnx file."""
    return (path / RECORD).is_file() or (path.suffix == ".onnx" and path.is_file())


def is_file(path: Path) -> bool:
    """Whether ``path`` is a run or any file."""
    return is_model(path) or path.is_file()


def is_other(path: Path) -> bool:
    """Whether only the size of ``path`` can be known."""
    return path.is_file() and not is_model(path)


def _names_a_kind(pattern: str) -> bool:
    """Whether a glob ends in a suffix without wildcards."""
    suffix = Path(pattern).suffix
    return bool(suffix) and not _WILD & set(suffix)


def models_of(budget: Budget, root: Path) -> list[Path]:
    """The models that a budget's paths name, without those it excludes. Raises UsageError if none is left."""
    models: dict[str, Path] = {}
    excluded = _matched(budget.exclude, root)
    for pattern in budget.paths:
        try:
            every = find_models(pattern, root)
        except UsageError as error:
            raise UsageError(f"{budget.place}: the budget {budget.name!r}: {error.message}", error.hint) from error
        models |= {os.path.abspath(path): path for path in every if not _is_in(path, excluded)}
    if not models:
        raise UsageError(
            f"{budget.place}: the budget {budget.name!r} excludes every model that its path matches",
            f"Excluded: {', '.join(budget.exclude)}.",
        )
    return list(models.values())


def applies(budget: Budget, model: Path, root: Path) -> bool:
    """Whether a budget applies to ``model``; a budget without paths applies to all that it does not exclude."""
    if _is_in(model, _matched(budget.exclude, root)):
        return False
    return not budget.paths or os.path.abspath(model) in _matched(budget.paths, root)


def _matched(patterns: Sequence[str], root: Path) -> set[str]:
    """Absolute paths that patterns name literally or match as globs."""
    names = (name for pattern in patterns for name in (pattern, *glob.glob(pattern, root_dir=root, recursive=True)))
    return {os.path.abspath(root / name) for name in names}


def _is_in(model: Path, places: Collection[str]) -> bool:
    """Whether a model is one of ``places`` or lies in a folder that is."""
    path = Path(os.path.abspath(model))
    return any(str(place) in places for place in (path, *path.parents))


def name_of(model: Path, root: Path) -> str:
    """A model's name in outputs and the baseline: its path, relative to ``root`` if below it, with forward slashes."""
    relative = os.path.relpath(model, root)
    path = model if relative.startswith(os.pardir) else Path(relative)
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")
