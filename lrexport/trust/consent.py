"""Import paths in files are followed only with the user's consent. An import path that the user types is consent.

Consent is remembered (:mod:`lrexport.trust.store`) for the import path, its keyword arguments and the module's file, so it
does not cover a module of the same name in another folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrexport.errors import InputError
from lrexport.trust import store
from lrexport.trust.current_folder import origin_of

_MOST_SHOWN = 300  # characters of a call in an error

_agreed: ContextVar[frozenset[str]] = ContextVar("agreed", default=frozenset())
_trusts_all: ContextVar[bool] = ContextVar("trusts_all", default=False)


@dataclass(frozen=True)
class Code:
    """Code that would run: the callable ``path``, ``package.module:callable``, with ``kwargs``, from ``file``.

    ``what`` is the option that uses it: MODEL or --data.
    """

    what: str
    path: str
    file: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        """The call as Python code."""
        return f"{self.path}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    @property
    def key(self) -> str:
        """A hash of what the user agrees to. It excludes the number of classes, which only sets the size of a layer."""
        import hashlib  # slow to import, and --help does not need it

        kwargs = {name: value for name, value in self.kwargs.items() if name != "num_classes" or type(value) is not int}
        text = json.dumps([self.path, kwargs, self.file], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


Ask = Callable[[Code, Path], bool]


@contextmanager
def session() -> Iterator[None]:
    """Consent given inside the block ends with it, unless it could be stored."""
    agreed, trusts = _agreed.set(frozenset()), _trusts_all.set(False)
    try:
        yield
    finally:
        _agreed.reset(agreed)
        _trusts_all.reset(trusts)


@contextmanager
def trusting(all_code: bool = True) -> Iterator[None]:
    """Agree to all code that files name inside the block: ``--trust-code`` and ``trust_code=True``."""
    token = _trusts_all.set(all_code or _trusts_all.get())
    try:
        yield
    finally:
        _trusts_all.reset(token)


def code_at(path: str, what: str, kwargs: Mapping[str, Any] | None = None) -> Code | None:
    """The code that an import path names; None if the module does not exist."""
    file = origin_of(path.partition(":")[0])
    return Code(what, path, file, kwargs or {}) if file is not None else None


def agree(code: Code) -> None:
    """Store that the user agreed to run this code, by typing its path or when asked."""
    _agreed.set(_agreed.get() | {code.key})
    store.remember(code.key, code.path, code.file)


def require(code: Code, named_in: Path, ask: Ask | None = None) -> None:
    """Raise InputError unless the user agreed to run ``code``, which the file ``named_in`` names, or agrees when asked."""
    if code.key in _agreed.get():
        return
    if not (_trusts_all.get() or store.knows(code.key) or (ask is not None and ask(code, named_in))):
        call = code.call if len(code.call) <= _MOST_SHOWN else f"{code.call[:_MOST_SHOWN]}…"
        raise InputError(
            f"{named_in} names code that would run as {code.what}: {call}, from {code.file}",
            "It was not run. If you know who made this and trust the code, give --trust-code (in Python: trust_code=True).",
        )
    agree(code)
