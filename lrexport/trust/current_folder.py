"""Import modules from the current folder, as `python -m` does, but only for code that the user named there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


class _Here:
    """Finds modules and packages in ``folder``, or plain folders with modules; finds nothing while ``folder`` is None.

    On sys.path every folder in it, even a run, would count as a package. Libraries try to import optional packages: a run
    called z3 would make torch fail.
    """

    folder: Path | None = None  # shared by both finders

    def __init__(self, plain_folders: bool) -> None:
        self.plain_folders = plain_folders

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or _Here.folder is None:  # a package knows where its modules are
            return None
        return _in(_Here.folder, fullname, self.plain_folders)


# A package anywhere takes precedence over a plain folder.
_FIRST, _LAST = _Here(plain_folders=False), _Here(plain_folders=True)


def import_here(name: str) -> ModuleType:
    """Import the module ``name``, preferably from the current folder.

    If it is there, the modules that it imports, now or later, are looked for there as well. A library's module does not
    open the folder to its imports.
    """
    importlib.invalidate_caches()  # the module may be newer than the caches
    here, top = Path.cwd(), name.partition(".")[0]
    if here != _Here.folder:
        _Here.folder = None
    if _Here.folder is None and top not in sys.modules and _find_top(top)[1]:
        _Here.folder = here
        if _FIRST not in sys.meta_path:
            sys.meta_path.insert(0, _FIRST)
            sys.meta_path.append(_LAST)
    return importlib.import_module(name)


def origin_of(name: str) -> str | None:
    """The file that :func:`import_here` would load the module from, with links resolved; None if it does not exist.

    For a module without a file it is Python's name, such as "built-in", or the folder of a package without code. Nothing is
    imported, not even the packages that contain the module.
    """
    importlib.invalidate_caches()
    top, *parts = name.split(".")
    if not all([top, *parts]):
        return None
    spec = _loaded(top) or _find_top(top)[0]
    for depth in range(1, len(parts) + 1):
        full = ".".join([top, *parts[:depth]])
        spec = _loaded(full) or (_find_below(spec, full) if spec is not None else None)
    if spec is None:
        return None
    if file := getattr(sys.modules.get(name), "__file__", None):  # the specs of Python's own modules say "frozen"
        return str(Path(file).resolve())
    if spec.has_location and spec.origin:
        return str(Path(spec.origin).resolve())
    return spec.origin or next((str(Path(folder).resolve()) for folder in _folders(spec)), "nowhere")


def _find_top(name: str) -> tuple[ModuleSpec | None, bool]:
    """The spec of a top-level module, and whether it comes from the current folder."""
    here = Path.cwd()
    if (own := _in(here, name, plain_folders=False)) is not None:
        return own, True
    if (other := _ask_finders(name, None)) is not None:
        return other, False
    plain = _in(here, name, plain_folders=True)
    return plain, plain is not None


def _find_below(parent: ModuleSpec, name: str) -> ModuleSpec | None:
    return _ask_finders(name, [*_folders(parent)])


def _ask_finders(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if isinstance(finder, _Here):
            continue
        find = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find(name, path) if find is not None else None
        if spec is not None:
            return spec
    return None


def _folders(package: ModuleSpec) -> list[str]:
    """The folders of a package's modules. Those of a nested package without code depend on its parent."""
    if package.submodule_search_locations is None:
        return []
    try:
        return [*package.submodule_search_locations]
    except KeyError:  # the parent is not imported; _path has the folders found so far
        return [*getattr(package.submodule_search_locations, "_path", ())]


def _loaded(name: str) -> ModuleSpec | None:
    module = sys.modules.get(name)
    if module is None:
        return None
    spec: ModuleSpec | None = getattr(module, "__spec__", None)
    if spec is not None and spec.name == name:
        return spec
    # __main__, os.path, or a module that the program made itself.
    made = ModuleSpec(
        name, None, origin=getattr(module, "__file__", None) or "built-in", is_package=hasattr(module, "__path__")
    )
    made.has_location = hasattr(module, "__file__")
    if made.submodule_search_locations is not None:
        made.submodule_search_locations = [*module.__path__]
    return made


def _in(folder: Path, name: str, plain_folders: bool) -> ModuleSpec | None:
    spec = PathFinder.find_spec(name, [str(folder)])
    if spec is None or (spec.loader is None) != plain_folders:
        return None
    return spec if spec.loader is not None or any((folder / name).rglob("*.py")) else None
