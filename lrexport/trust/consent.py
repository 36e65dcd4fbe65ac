"""Import paths that stand in files are followed only with the user's consent; what the user typed is consent.

What was agreed to is remembered (:mod:`lrexport.trust.store`): the import path with its keyword arguments and the file that
the module is loaded from, so that a module of the same name in another folder is another matter.
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

_MOST_SHOWN = 300  # characters of keyword arguments in an error

_agreed: ContextVar[frozenset[str]] = ContextVar("agreed", default=frozenset())
_trusts_all: ContextVar[bool] = ContextVar("trusts_all", default=False)


@dataclass(frozen=True)
class Code:
    """What would run: the callable at ``path``, ``package.module:callable``, with ``kwargs``, out of ``file``.

    ``what`` says what it is for, MODEL or --data.
    """

    what: str
    path: str
    file: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def call(self) -> str:
        """As Python would write it."""
        return f"{self.path}({', '.join(f'{name}={value!r}' for name, value in self.kwargs.items())})"

    @property
    def key(self) -> str:
        """A hash of all that is agreed to. The number of classes is the data's, and only ever makes a layer wider."""
        import hashlib  # only here: --help must not wait for it

        kwargs = {name: value for name, value in self.kwargs.items() if name != "num_classes" or type(value) is not int}
        text = json.dumps([self.path, kwargs, self.file], sort_keys=True, default=repr)
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()


Ask = Callable[[Code, Path], bool]


@contextmanager
def session() -> Iterator[None]:
    """What is agreed to inside the block holds there; beyond it only what can be remembered does."""
    agreed, trusts = _agreed.set(frozenset()), _trusts_all.set(False)
    try:
        yield
    finally:
        _agreed.reset(agreed)
        _trusts_all.reset(trusts)


@contextmanager
def trusting(all_code: bool = True) -> Iterator[None]:
    """Inside the block whatever code a file names is agreed to, as ``--trust-code`` and ``trust_code=True`` say."""
    token = _trusts_all.set(all_code or _trusts_all.get())
    try:
        yield
    finally:
        _trusts_all.reset(token)


def code_at(path: str, what: str, kwargs: Mapping[str, Any] | None = None) -> Code | None:
    """The code that an import path names; None where there is no such module."""
    file = origin_of(path.partition(":")[0])
    return Code(what, path, file, kwargs or {}) if file is not None else None


def agree(code: Code) -> None:
    """Note that the user wants this code: it was typed, or somebody was asked."""
    _agreed.set(_agreed.get() | {code.key})
    store.remember(code.key, code.path, code.file)


def require(code: Code, said_in: Path, ask: Ask | None = None) -> None:
    """Raise InputError unless the user agreed to run ``code``, which the file ``said_in`` names, or does so when asked."""
    if code.key in _agreed.get():
        return
    if not (_trusts_all.get() or store.knows(code.key) or (ask is not None and ask(code, said_in))):
        call = code.call if len(code.call) <= _MOST_SHOWN else f"{code.call[:_MOST_SHOWN]}…"
        raise InputError(
            f"{said_in} names code that would run as {code.what}: {call}, from {code.file}",
            "Nothing of it was run. If you know who made this and trust that code, give --trust-code "
            "(in Python: trust_code=True).",
        )
    agree(code)
