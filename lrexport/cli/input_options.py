"""Options for the inputs of an .onnx file: sizes by ``--shape``, arrays by ``--input``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lrexport.cli.options import FILE, Command
from lrexport.errors import UsageError
from lrexport.units import parse_input_shape

if TYPE_CHECKING:
    from lrexport.artifacts.arrays import Arrays

Shapes = Mapping[str, tuple[int, ...]]


class InputShapeType(click.ParamType[tuple[str, tuple[int, ...]]]):
    """``images=1,3,320,320`` → ("images", (1, 3, 320, 320))."""

    name = "NAME=SIZES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, tuple[int, ...]]:
        if isinstance(value, tuple):
            return value
        try:
            return parse_input_shape(str(value))
        except UsageError as error:
            self.fail(f"{error.message}. {error.hint}", param, ctx)


def input_shapes_option(text: str) -> Callable[[Command], Command]:
    """``--shape NAME=1,3,320,320``, repeatable, passed as ``shapes``: sizes by input name."""

    def by_name(
        _context: click.Context, _option: click.Parameter, given: Sequence[tuple[str, tuple[int, ...]]]
    ) -> dict[str, tuple[int, ...]]:
        shapes = dict(given)
        if len(shapes) != len(given):
            twice = next(name for name, _ in given if [other for other, _ in given].count(name) > 1)
            raise UsageError(f"--shape {twice}=… is given more than once", "Give one shape for each input.")
        return shapes

    kind = InputShapeType()
    return click.option(
        "--shape", "shapes", type=kind, multiple=True, metavar=kind.name, callback=by_name, help=f"{text} Repeatable."
    )


def input_file_option(text: str) -> Callable[[Command], Command]:
    """``--input FILE.npz``, passed as ``input_file``."""
    return click.option("--input", "input_file", type=FILE, metavar="FILE.npz", help=text)


def read_inputs(path: Path, shapes: Shapes) -> Arrays:
    """Arrays by input name. Raises InputError for a damaged file, UsageError if ``shapes`` contradicts it."""
    from lrexport.artifacts.arrays import read_arrays

    arrays = read_arrays(path)
    for name, shape in shapes.items():
        if name in arrays and arrays[name].shape != shape:
            held, given = (",".join(map(str, sizes)) for sizes in (arrays[name].shape, shape))
            raise UsageError(f"{name} has shape {held} in {path} but {given} in --shape", "Omit one of the two.")
    return arrays
