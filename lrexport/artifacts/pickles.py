"""The cost of unpickling a checkpoint, computed from its opcodes before anything is unpickled.

A pickle of a few hundred bytes can be a tuple of two references to a tuple of two references …: harmless until something
hashes, compares or prints it, which then never ends. So everything that is hashed or passed to a function is measured here
as a tree. The opcodes are those of torch's weights-only unpickler, which refuses all others.
"""

from __future__ import annotations

import io
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from lrexport.errors import InputError
from lrexport.units import format_bytes

# Largest tree of a dictionary's key and of all arguments of one call, in items. Keys are names and numbers; a call by
# torch.save has about twenty items, the state of a whole network some thousands.
_MOST_IN_KEY = 1_000
_MOST_IN_CALL = 200_000
# Items of all measured trees together.
_MOST_STEPS = 5_000_000
_MOST_OPCODES = 20_000_000
_MOST_KEY_LENGTH = 10_000
# Magic number, version, system, content, keys of storages.
_OLD_FORMAT_PICKLES = 5
# Size of an archive's list of records, which have about 80 bytes each.
_MAX_DIRECTORY_BYTES = 16_000_000
# Bytes at the end of an archive: 98, then a comment of up to 65,535.
_ARCHIVE_END = (1 << 16) + 98


class TooCostly(ValueError):
    """The pickle needs far more time or memory than its size explains."""


class _Many:
    """A container; ``items`` are containers, lengths of texts, or None for values without parts."""

    __slots__ = ("items",)

    def __init__(self, items: list[Any]) -> None:
        self.items = items


class _Global:
    """A class or a function."""


class _Mark:
    """The place on the stack where the items of a container begin."""


_GLOBAL, _MARK = _Global(), _Mark()
_ATOMS = {"NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
_TEXTS = {"BINUNICODE", "SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def check_directory(path: Path) -> None:
    """Raise InputError if an archive lists more records than any state dict has (PKWARE APPNOTE, 4.3.14 and 4.3.16)."""
    with open(path, "rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _ARCHIVE_END))
        end = stream.read(_ARCHIVE_END)
    place, place64 = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    size = int.from_bytes(end[place + 12 : place + 16], "little") if place >= 0 else 0
    size64 = int.from_bytes(end[place64 + 40 : place64 + 48], "little") if place64 >= 0 else 0
    directory = max(size64, 0 if size == 0xFFFFFFFF else size)
    if directory > _MAX_DIRECTORY_BYTES:
        raise InputError(
            f"{path} has a list of records of {format_bytes(directory)}; "
            f"expected at most {format_bytes(_MAX_DIRECTORY_BYTES)}",
            "A state dict has one record for each tensor. Save only the weights, for example as safetensors.",
        )


def check_cost(path: Path) -> None:
    """Raise InputError if unpickling a checkpoint would take more time or memory than its size explains.

    Malformed files are left for the unpickler to report.
    """
    import torch

    try:
        with open(path, "rb") as stream:
            if zipfile.is_zipfile(stream):
                stream.seek(0)
                # With torch's reader, because another reader of archives might find another pickle.
                check_pickle(io.BytesIO(torch._C.PyTorchFileReader(stream).get_record("data.pkl")))
            else:
                stream.seek(0)
                bounded = _Bounded(stream)
                for _ in range(_OLD_FORMAT_PICKLES):
                    check_pickle(bounded)
    except TooCostly as error:
        raise InputError(
            f"refused to read {path}: its pickle has {error}",
            "No state dict of tensors needs that. Save only the weights, for example as safetensors.",
        ) from error
    except (RuntimeError, OSError, OverflowError, UnicodeError):  # torch.load fails too, with a better message
        pass


class _Bounded:
    """A file that limits reads to its size, because lengths in a pickle can be arbitrarily large."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._size = os.fstat(stream.fileno()).st_size

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, self._size))

    def readline(self) -> bytes:
        return self._stream.readline(_MOST_KEY_LENGTH)

    def tell(self) -> int:
        return self._stream.tell()


def check_pickle(stream: Any) -> None:
    """Read one pickle to its end. Raises TooCostly; a malformed pickle is left for the unpickler to report."""
    try:
        _Machine().run(pickletools.genops(stream))
    except TooCostly:
        raise
    except (ValueError, LookupError, AttributeError):
        # The pickle ends early or uses an opcode that torch's unpickler refuses too.
        return


class _Machine:
    """Pickle's stack machine with references only: no values, no objects, no code."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def run(self, opcodes: Iterable[tuple[Any, Any, Any]]) -> None:
        """Follow the opcodes. Raises ValueError, IndexError, KeyError or AttributeError if they are malformed."""
        steps: dict[str, Callable[[Any], None]] = {
            "PROTO": lambda _: None,
            "STOP": lambda _: None,
            "MARK": lambda _: self.stack.append(_MARK),
            "GLOBAL": lambda _: self.stack.append(_GLOBAL),
            "EMPTY_TUPLE": lambda _: self.stack.append(None),
            "TUPLE": lambda _: self.stack.append(_Many(self._pop_mark())),
            **dict.fromkeys(_ATOMS, lambda _: self.stack.append(None)),
            **dict.fromkeys(_TEXTS, lambda text: self.stack.append(len(text))),
            **dict.fromkeys(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"), lambda _: self.stack.append(_Many([]))),
            "APPEND": lambda _: self._add(self._pop(1)),
            "APPENDS": lambda _: self._add(self._pop_mark()),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._pop_mark()),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: self._call()),
            "BUILD": lambda _: self._build(),
            "BINPERSID": lambda _: self._name_storage(),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda place: self.memo.update({place: self.stack[-1]})),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: self.stack.append(self.memo[place])),
        }
        for count, (opcode, argument, _) in enumerate(opcodes):
            if opcode.name in _TUPLES:
                self.stack.append(_Many(self._pop(_TUPLES[opcode.name])))
            else:
                steps[opcode.name](argument)
            if count > _MOST_OPCODES:
                raise TooCostly(f"more than {_MOST_OPCODES:,} instructions")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def _pop_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise IndexError
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _measure(self, values: list[Any], most: int, what: str) -> None:
        """Raise TooCostly if ``values``, as a tree, have more than ``most`` items."""
        waiting, count = list(values), 0
        while waiting:
            value = waiting.pop()
            count += 1
            if isinstance(value, _Many):
                waiting += value.items
            if count + len(waiting) > most:
                raise TooCostly(f"{what} that expands to more than {most:,} items")
        self.steps += count
        if self.steps > _MOST_STEPS:
            raise TooCostly(f"calls that expand to more than {_MOST_STEPS:,} items together")

    def _add(self, items: list[Any]) -> None:
        self.stack[-1].items.extend(items)

    def _set(self, items: list[Any]) -> None:
        for key in items[::2]:
            self._measure([key], _MOST_IN_KEY, "a key")
            if isinstance(key, int) and key > _MOST_KEY_LENGTH:
                raise TooCostly(f"a name of {key:,} characters")
        self._add(items)

    def _call(self) -> None:
        called, arguments = self._pop(2)
        self._measure([called], _MOST_IN_KEY, "a function")
        self._measure([arguments], _MOST_IN_CALL, "a call")
        self.stack.append(_Many([arguments]))

    def _build(self) -> None:
        state = self._pop(1)
        self._measure(state, _MOST_IN_CALL, "the state of an object")
        self._add(state)

    def _name_storage(self) -> None:
        self._measure(self._pop(1), _MOST_IN_KEY, "the name of a storage")
        self.stack.append(_Many([]))
