"""The current folder as a place of modules, as with `python -m`, but for folders without any Python in them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Here(MetaPathFinder):
    """Finds what is in the current folder, whichever that is by then: modules and packages, or plain folders with modules.

    On sys.path any folder there would be a package, a run's too: libraries ask for others that may be missing, and torch,
    which takes z3 where it finds it, ends in an error where a run is called that.
    """

    def __init__(self, plain_folders: bool) -> None:
        self.plain_folders = plain_folders

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # a package knows where its modules are
            return None
        spec = PathFinder.find_spec(fullname, [str(Path.cwd())])
        if spec is None or (spec.loader is None) != self.plain_folders:
            return None
        return spec if spec.loader is not None or any((Path.cwd() / fullname).rglob("*.py")) else None


# A package anywhere goes before a plain folder.
_FIRST, _LAST = _Here(plain_folders=False), _Here(plain_folders=True)


def import_here(name: str) -> ModuleType:
    """Import the module ``name``, of the current folder before a library's; so what it imports, now or later."""
    if _FIRST not in sys.meta_path:
        sys.meta_path.insert(0, _FIRST)
        sys.meta_path.append(_LAST)
    importlib.invalidate_caches()  # it may have been written a moment ago
    return importlib.import_module(name)
