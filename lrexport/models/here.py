"""The current folder as a place of modules, without hiding a library by what else is in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Here(MetaPathFinder):
    """Finds what nothing else finds in the current folder, whichever that is by then.

    It comes last, so no library is hidden. Nor is a folder without any Python in it a package, as it would be on sys.path:
    libraries ask for others that may be missing, and a run's folder may have the name of one.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # a package knows where its modules are
            return None
        spec = _spec_here(fullname)
        if spec is None or spec.loader is not None or any((Path.cwd() / fullname).rglob("*.py")):
            return spec
        return None


class _Named(MetaPathFinder):
    """Finds one module or package in the current folder, the one that the user named."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = _spec_here(fullname) if fullname == self.name else None
        return spec if spec is not None and spec.loader is not None else None


_HERE = _Here()


def import_here(name: str) -> ModuleType:
    """Import the module ``name``, of the current folder rather than a library's; what it imports, now or later, is a
    library's rather than the current folder's."""
    if _HERE not in sys.meta_path:
        sys.meta_path.append(_HERE)
    named = _Named(name.partition(".")[0])
    sys.meta_path.insert(0, named)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(named)


def _spec_here(name: str) -> ModuleSpec | None:
    return PathFinder.find_spec(name, [str(Path.cwd())])
