"""The inputs of a measurement: sizes that a file leaves open, and values that any network accepts.

Sent to devices with the runner: needs Python 3.9 and numpy. docs/latency.md has the rules for users.

Sizes come from given values, then from given shapes, then from the batch; sizes still open are refused. A symbol has the
same size everywhere. Floats are drawn from a normal distribution, integers of 8 and 16 bits from their whole range, like
pixels; wider integers are 1 and booleans True: valid as an index in a table of two rows, a length, a step, or a mask that
keeps everything.
"""

# Devices may have an older Python than lrexport requires.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Size = Any  # a number if fixed by the file, else the symbol's name or None
JsonObject = dict[str, Any]

_FLOATS = {"float": "float32", "float16": "float16", "double": "float64"}
_PIXELS = ("uint8", "int8", "uint16", "int16")
_ONES = ("uint32", "int32", "uint64", "int64", "bool")
_TEXT = "string"
# Name of arrays of a .npz in records, and numpy's kind of text arrays.
GIVEN, _NUMPY_TEXT = "given", "U"


class InputsError(ValueError):
    """The given inputs do not fit a file, or some are missing; other options would help."""


class Inputs:
    """Inputs for every file of a job: ``values`` and ``shapes`` by input name, and the batch (0: the file's).

    After all files, :meth:`unused` has the names that no file has.
    """

    def __init__(self, values: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], batch: int, seed: int) -> None:
        self.values, self.shapes, self.batch, self.seed = values, shapes, batch, seed
        self._used: set[str] = set()

    def feed(self, declared: Sequence[Any]) -> tuple[JsonObject, JsonObject, int]:
        """Arrays by name for inputs as declared by ONNX Runtime; their description for the record; and the batch.

        Raises InputsError if other sizes or values are needed, ValueError for an input that is not a tensor.
        """
        import numpy

        generator = numpy.random.default_rng(self.seed)
        arrays: JsonObject = {}
        about: JsonObject = {}
        shapes = self._sizes(declared)
        for given in declared:
            name = given.name
            if name in self.values:
                arrays[name], origin = _checked(self.values[name], given), GIVEN
            else:
                arrays[name], origin = _made_up(generator, given, shapes[name])
            about[name] = {"shape": list(arrays[name].shape), "dtype": _kind(given), "values": origin}
        self._used |= set(arrays)
        return arrays, about, _batch(declared, shapes)

    def unused(self) -> list[str]:
        """Given names that no file has."""
        return sorted((set(self.values) | set(self.shapes)) - self._used)

    def _sizes(self, declared: Sequence[Any]) -> dict[str, list[int]]:
        """The complete shape of every input. Raises InputsError."""
        given = {item.name: self._given_shape(item) for item in declared}
        known: dict[str, tuple[int, str]] = {}
        for item in declared:
            for axis, size in enumerate(given[item.name] or ()):
                if axis < len(item.shape) and _is_symbol(item.shape[axis]):
                    self._learn(known, item.shape[axis], size, item.name)
        open_batch = self._open_batch(declared, given, known)
        shapes = {}
        for item in declared:
            shape = given[item.name]
            shapes[item.name] = self._filled(item, known, open_batch) if shape is None else shape
        self._check_fixed_batch(declared, shapes)
        return shapes

    def _given_shape(self, item: Any) -> list[int] | None:
        """The shape from the user's values or shapes, or None. Raises InputsError if it contradicts the file."""
        if item.name in self.values:
            shape, what = list(self.values[item.name].shape), "the given array"
        elif item.name in self.shapes:
            shape, what = list(self.shapes[item.name]), "the given shape"
        else:
            return None
        # A file may leave the whole shape open; the runtime declares it like a scalar's.
        is_same_rank = len(shape) == len(item.shape)
        fits = is_same_rank and all(_is_open(item, axis) or size == item.shape[axis] for axis, size in enumerate(shape))
        if item.shape and not fits:
            raise InputsError(f"input {item.name!r} has shape {_joined(item.shape)}, but {what} is {_joined(shape)}")
        return shape

    @staticmethod
    def _learn(known: dict[str, tuple[int, str]], symbol: str, size: int, name: str) -> None:
        before, place = known.setdefault(symbol, (size, name))
        if before != size:
            raise InputsError(
                f"size {symbol!r} is {before} in input {place!r} and {size} in input {name!r}: expected one size"
            )

    def _open_batch(
        self, declared: Sequence[Any], given: Mapping[str, Any], known: dict[str, tuple[int, str]]
    ) -> int | None:
        """The size of an open batch, added to ``known`` if it has a symbol; None if no batch is open."""
        place = _batch_place(declared)
        if place is None:
            return None
        item, axis = place
        symbol = item.shape[axis]
        if _is_symbol(symbol):
            size, where = known.setdefault(symbol, (self.batch or 1, item.name))
        else:  # first sizes without a name are the same batch
            firsts = {other.name: given[other.name][0] for other in declared if given[other.name] and _is_open(other, 0)}
            where, size = next(iter(firsts.items()), (item.name, self.batch or 1))
        if self.batch and size != self.batch:
            raise InputsError(f"input {where!r} has a batch of {size}, but the batch size is {self.batch}")
        return size

    def _filled(self, item: Any, known: Mapping[str, tuple[int, str]], batch: int | None) -> list[int]:
        shape = []
        for axis, size in enumerate(item.shape):
            if not _is_open(item, axis):
                shape.append(size)
            elif _is_symbol(size) and size in known:
                shape.append(known[size][0])
            elif not _is_symbol(size) and axis == 0 and batch is not None:
                shape.append(batch)
            else:
                raise InputsError(
                    f"size {_symbol(size)} of input {item.name!r} with shape {_joined(item.shape)} is open: give all its "
                    f"sizes as numbers, --shape {item.name}={_joined(item.shape)}"
                )
        return shape

    def _check_fixed_batch(self, declared: Sequence[Any], shapes: Mapping[str, list[int]]) -> None:
        """Raise InputsError if the first input has a fixed batch other than the requested one."""
        if not (self.batch and declared):
            return
        first = declared[0]
        shape = shapes[first.name]
        if first.shape and not _is_open(first, 0) and _batch_place(declared) is None and shape[0] != self.batch:
            raise InputsError(
                f"input {first.name!r} has a fixed batch of {shape[0]}, not {self.batch}; omit the batch size, or export "
                f"the network with --batch {self.batch}"
            )


def _batch_place(declared: Sequence[Any]) -> tuple[Any, int] | None:
    """The input and the axis of the open batch: an input's first size, or a size named like a batch; else None."""
    for item in declared:
        if item.shape and _is_open(item, 0):
            return item, 0
    for item in declared:
        for axis, size in enumerate(item.shape):
            if _is_symbol(size) and "batch" in size.lower():
                return item, axis
    return None


def _batch(declared: Sequence[Any], shapes: Mapping[str, list[int]]) -> int:
    """Samples per run: the size of the open batch, else the first size of the first input that has one."""
    place = _batch_place(declared)
    if place is not None:
        item, axis = place
        return shapes[item.name][axis]
    return next((shapes[item.name][0] for item in declared if shapes[item.name]), 1)


def _is_open(item: Any, axis: int) -> bool:
    size = item.shape[axis]
    return not (isinstance(size, int) and size >= 0)


def _is_symbol(size: Size) -> bool:
    """Whether it is a name for the same size everywhere; some converters write ``?`` for every open size."""
    return isinstance(size, str) and size not in ("?", "*", "None", "-1")


def _kind(item: Any) -> str:
    """``tensor(int64)`` → ``int64``, numpy's name. Raises ValueError unless it is a tensor."""
    kind = item.type[len("tensor(") : -1] if item.type.startswith("tensor(") else ""
    kind = _FLOATS.get(kind, kind)
    if kind not in (*_FLOATS.values(), *_PIXELS, *_ONES, _TEXT):
        raise ValueError(f"input {item.name!r} is {item.type}: expected a tensor of numbers, booleans or text")
    return kind


def _made_up(generator: Any, item: Any, shape: Sequence[int]) -> tuple[Any, str]:
    """An array for an input without given values, and how it was made. Raises InputsError for text."""
    import numpy

    kind = _kind(item)
    if kind == _TEXT:
        raise InputsError(f"input {item.name!r} is text: give its values with --input FILE.npz")
    if kind in _ONES:
        return numpy.ones(shape, kind), "ones"
    if kind in _PIXELS:
        limits = numpy.iinfo(kind)
        return generator.integers(limits.min, limits.max, shape, kind, endpoint=True), "random"
    return numpy.asarray(generator.standard_normal(shape)).astype(kind), "random"


def _checked(array: Any, item: Any) -> Any:
    """The user's array for an input, of a checked shape. Raises InputsError for another type."""
    kind = _kind(item)
    if kind == _TEXT and array.dtype.kind == _NUMPY_TEXT:
        return array.astype(object)
    if array.dtype.name != kind:
        raise InputsError(
            f"input {item.name!r} is {kind}, but the given array is {array.dtype.name}: use array.astype({kind!r})"
        )
    return array


def _joined(shape: Sequence[Size]) -> str:
    """``1,3,H,?``, in the format of --shape."""
    return ",".join("?" if size is None or (isinstance(size, int) and size < 0) else str(size) for size in shape)


def _symbol(size: Size) -> str:
    return repr(size) if _is_symbol(size) else "without a name"
