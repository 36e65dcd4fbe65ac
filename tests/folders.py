"""Folders that tests work in, with modules as users have them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def folder_with(factory: pytest.TempPathFactory, **sources: str) -> Path:
    """A new folder with modules in it, by their names, as a user has a network of their own."""
    folder = factory.mktemp(next(iter(sources)))
    for module, source in sources.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
    return folder


@contextmanager
def inside_folder(folder: Path) -> Iterator[None]:
    """Be in ``folder``, whose modules can be imported."""
    with pytest.MonkeyPatch.context() as patch, forgetting_modules_of(folder):
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield


@contextmanager
def forgetting_modules_of(folder: Path) -> Iterator[None]:
    """Afterwards ``sys.path`` is as it was, and what the block imported from ``folder`` can be imported again."""
    path, known = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(folder)):
                del sys.modules[name]
        importlib.invalidate_caches()
