"""Recipes: options of ``compress`` and ``train`` in TOML files; those that come with lrexport have names."""

from __future__ import annotations

from pathlib import Path

from lrexport.errors import UsageError
from lrexport.text import nearest

_FOLDER = Path(__file__).parent
_SUFFIX = ".toml"


def names() -> list[str]:
    """The recipes that come with lrexport."""
    return sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}"))


def find(recipe: str) -> Path:
    """The file of a recipe: one of :func:`names`, or a file of the user's. Raises UsageError with the nearest name."""
    if recipe in names():
        return _FOLDER / f"{recipe}{_SUFFIX}"
    path = Path(recipe)
    if path.is_file():
        return path
    close = nearest(recipe, names())
    meant = f"Did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"unknown recipe {recipe!r}", f"{meant}Known: {', '.join(names())}, or a TOML file.")
