"""Types of options: how a value on the command line or in a settings file is parsed."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.artifacts.plain_files import check_input
from lrexport.config.goals import Latency
from lrexport.errors import UsageError
from lrexport.units import parse_bytes, parse_share

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class ShapeType(click.ParamType[tuple[int, ...]]):
    """``3,224,224`` → (3, 224, 224); one to four numbers."""

    name = "C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace("x", ",").split(",")
        if len(parts) > 4 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"invalid shape {value!r}: expected one to four numbers above 0, such as 3,224,224", param, ctx)
        return tuple(int(part) for part in parts)


class ShareType(click.ParamType[float]):
    """``0.5`` or ``50%`` → 0.5, by ``parse``, which raises UsageError for an invalid share."""

    name = "SHARE"

    def __init__(self, parse: Callable[[str], float] = parse_share) -> None:
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self.parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class SizeType(click.ParamType[int]):
    """``500KB`` → 500000."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class LatencyType(click.ParamType[Latency]):
    """``0.6`` → Latency(0.6), ``5ms`` → Latency(milliseconds=5)."""

    name = "SHARE|MS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Latency:
        if isinstance(value, Latency):
            return value
        try:
            return Latency.parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class MilestonesType(click.ParamType[tuple[float, ...]]):
    """``1/2,0.75`` → (0.5, 0.75)."""

    name = "SHARE,SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        from fractions import Fraction

        try:
            shares = tuple(float(Fraction(part.strip())) for part in str(value).split(","))
        except (ValueError, ZeroDivisionError):
            shares = ()
        if not shares or not all(0 < share <= 1 for share in shares):
            self.fail(f"invalid milestones {value!r}: expected shares in (0, 1], such as 1/2,3/4 or 0.5,0.75", param, ctx)
        return shares


class NumbersType(click.ParamType[tuple[float, ...]]):
    """``0.485,0.456,0.406`` → a tuple."""

    name = "X,X,X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"invalid numbers {value!r}: expected one for each channel, such as 0.5,0.5,0.5", param, ctx)
        return ()


class StrengthType(click.ParamType[float | str]):
    """A number of at least 0, or ``auto``."""

    name = "X|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value == "auto":
            return "auto"
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"invalid strength {value!r}: expected a number of at least 0, or 'auto'", param, ctx)
        return number


class EpochsOrSame(click.ParamType[int | str]):
    """A number of epochs, or ``same``."""

    name = "N|same"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if str(value) == "same" or str(value).isdigit():
            return "same" if str(value) == "same" else int(value)
        self.fail(f"invalid number of epochs {value!r}: expected a whole number, or 'same'", param, ctx)
        return None


class _Completed(click.ParamType[str]):
    """A string that a shell can complete by a function of :mod:`lrexport.cli.completion`."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from lrexport.cli import completion  # imported late: needed for completion only

        return completion.items(self.candidates(incomplete), incomplete)

    def candidates(self, incomplete: str) -> Iterable[str]:
        """Possible values."""
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)


class ModelType(_Completed):
    """MODEL: a name, an import path or a run, checked later with the other options."""

    name = "MODEL"

    def candidates(self, incomplete: str) -> Iterable[str]:
        from lrexport.cli import completion

        return completion.models(incomplete)


class DataType(_Completed):
    """DATA: a data set, a folder or an import path, checked later with the other options."""

    name = "DATA"

    def candidates(self, incomplete: str) -> Iterable[str]:
        from lrexport.cli import completion

        return completion.data(incomplete)


class TaskType(_Completed):
    """TASK: a name or an import path, checked later with the other options."""

    name = "TASK"

    def candidates(self, incomplete: str) -> Iterable[str]:
        from lrexport.config.task_names import TASKS

        return TASKS


class RecipeType(_Completed):
    """A recipe's name or file."""

    name = "NAME|FILE"

    def candidates(self, incomplete: str) -> Iterable[str]:
        from lrexport.cli import completion

        return completion.recipes(incomplete)


class TargetType(_Completed):
    """``local``, ``ssh://[user@]host``, ``adb://[serial]`` or ``browser``; only the syntax is checked."""

    name = "local|ssh://HOST|browser"

    def candidates(self, incomplete: str) -> Iterable[str]:
        from lrexport.cli import completion

        return completion.targets(incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from lrexport.measure.targets import parse_target

        parse_target(str(value))
        return str(value)


class PathType(click.Path):
    """A path that the system accepts: not too long, and without NUL, which a settings file may contain."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        try:
            os.lstat(text)
        except ValueError:
            self.fail(f"{text!r} contains a NUL character, which is not allowed in a path.", param, ctx)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(f"{text[:60]!r}…: {error.strerror} ({len(os.fsencode(text)):,} bytes).", param, ctx)
        return super().convert(value, param, ctx)


class InputPath(PathType):
    """The path of a file or folder to read. Raises InputError for a FIFO, a socket or a device."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        check_input(Path(os.fsdecode(path)))
        return path
