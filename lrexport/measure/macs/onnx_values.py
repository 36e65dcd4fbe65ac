"""What is known of a value inside an ONNX graph before it runs: type, shape, small contents, the weight behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

Shape = tuple[int | None, ...]

# Contents are kept up to this many numbers: sizes, axes, indices and conditions are short, weights are not.
MOST_NUMBERS = 4096
# Of floating-point numbers: scales of a Resize, limits of a Range; biases are longer.
_MOST_FLOATS = 16


@dataclass(frozen=True)
class Constant:
    """A constant as it is stored: its name in the graph, how many numbers it has and how many bytes."""

    name: str
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Value:
    """``type`` is a TypeProto, None where nothing is known; ``data`` a small array of contents, ``constant`` the stored
    weight that the value is, or is made of."""

    type: Any = None
    data: Any = None
    constant: Constant | None = None

    @property
    def shape(self) -> Shape | None:
        """Sizes, None for one that is unknown; None where even their number is."""
        if self.type is None or not self.type.HasField("tensor_type") or not self.type.tensor_type.HasField("shape"):
            return None
        dims = self.type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape where every size of it is known."""
        shape = self.shape
        known = tuple(size for size in shape or () if size is not None)
        return known if shape is not None and len(known) == len(shape) else None

    def without_data(self) -> Value:
        """The value as another pass through a loop may find it: of this type, with other contents."""
        return replace(self, data=None, constant=None)


def tensor_type(shape: Iterable[int | None] | None, kind: int | None = None) -> Any:
    """A TypeProto of a tensor, float32 unless said otherwise."""
    import onnx

    made = onnx.TypeProto()
    made.tensor_type.elem_type = onnx.TensorProto.FLOAT if kind is None else kind
    if shape is not None:
        made.tensor_type.shape.SetInParent()
        for size in shape:
            dim = made.tensor_type.shape.dim.add()
            if size is not None:
                dim.dim_value = size
    return made


def like(value: Value | None, shape: Iterable[int | None] | None) -> Value:
    """A tensor of another shape and ``value``'s kind of numbers."""
    kind = value.type.tensor_type.elem_type if value and value.type and value.type.HasField("tensor_type") else None
    return Value(tensor_type(shape, kind))


def of_data(data: Any) -> Value:
    """A value whose contents are known."""
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(data.dtype)
    return Value(tensor_type(data.shape, kind), data if data.size <= MOST_NUMBERS else None)


def of_tensor(tensor: Any, name: str) -> Value:
    """A stored constant. Small contents are read, also beside the file, where the current folder is the file's."""
    import onnx

    sizes = tuple(tensor.dims)
    constant = Constant(name, prod(sizes), stored_bytes(tensor.data_type, prod(sizes)))
    made = Value(tensor_type(sizes, tensor.data_type), None, constant)
    kinds = onnx.TensorProto
    most = MOST_NUMBERS if tensor.data_type in (kinds.INT64, kinds.INT32, kinds.BOOL, kinds.UINT8) else _MOST_FLOATS
    if prod(sizes) > most or tensor.data_type == kinds.STRING:
        return made
    try:
        return replace(made, data=onnx.numpy_helper.to_array(tensor, base_dir="."))
    except Exception:  # numbers that are absent or damaged: sizes that follow from them stay unknown
        return made


def of_sparse(tensor: Any) -> Value:
    """A sparse constant: what is stored of it are its values."""
    numbers = prod(tensor.values.dims)
    constant = Constant(tensor.values.name, numbers, stored_bytes(tensor.values.data_type, numbers))
    return Value(tensor_type(tensor.dims, tensor.values.data_type), None, constant)


def stored_bytes(kind: int, numbers: int) -> int:
    """What so many numbers of a data type take; those of two and four bits are packed."""
    return (numbers * _bits(kind) + 7) // 8


@cache
def _bits(kind: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else ""
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    try:
        return packed[name] if name in packed else 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):  # strings, and kinds that this onnx does not know
        return 0


def merged(inferred: Value, declared: Any, symbols: Mapping[str, int]) -> Value:
    """``inferred`` with what a declaration knows beyond it; where they differ, what was inferred counts.

    ``symbols`` are the sizes that names in the declaration stand for.
    """
    if declared is None or not declared.ByteSize():
        return inferred
    shape, said = inferred.shape, _declared(declared, symbols)
    if inferred.type is None:
        is_tensor = declared.HasField("tensor_type")
        return replace(inferred, type=like(Value(declared), said).type if is_tensor else declared)
    if said is None or (shape is not None and (None not in shape or len(shape) != len(said))):
        return inferred
    both = (
        said
        if shape is None
        else tuple(mine if mine is not None else other for mine, other in zip(shape, said, strict=True))
    )
    return replace(inferred, type=like(inferred, both).type)


def _declared(declared: Any, symbols: Mapping[str, int]) -> Shape | None:
    """The shape that a graph says a value has. What it says is 0 or less is unknown."""
    if not declared.HasField("tensor_type") or not declared.tensor_type.HasField("shape"):
        return None
    dims = declared.tensor_type.shape.dim
    return tuple(
        symbols.get(dim.dim_param) if dim.dim_param else dim.dim_value if dim.dim_value > 0 else None for dim in dims
    )


def common(values: Sequence[Value]) -> Value:
    """What is known of a value that is one of several."""
    first = values[0]
    if first.type is None or all(value.type == first.type for value in values):
        return first.without_data()
    shapes = [value.shape for value in values]
    if any(shape is None or len(shape) != len(shapes[0] or ()) for shape in shapes):
        return like(first, None)
    return like(
        first,
        [column[0] if len(set(column)) == 1 else None for column in zip(*(shape or () for shape in shapes), strict=True)],
    )


def names_in(text: str) -> frozenset[str]:
    """Names of operators, which stand in a text more readably than in a list of strings."""
    return frozenset(text.split())


def attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values, graphs left out."""
    import onnx

    skipped = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return {
        a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type not in skipped and not a.ref_attr_name
    }


def constant_of(node: Any) -> Iterator[Value]:
    """What a Constant node holds."""
    import numpy as np

    name = node.output[0]
    for attribute in node.attribute:
        if attribute.name == "value":
            yield of_tensor(attribute.t, name)
        elif attribute.name == "sparse_value":
            yield of_sparse(attribute.sparse_tensor)
        elif attribute.name in ("value_int", "value_ints"):
            yield _short(np.array(attribute.i if attribute.name == "value_int" else list(attribute.ints), np.int64), name)
        elif attribute.name in ("value_float", "value_floats"):
            numbers = attribute.f if attribute.name == "value_float" else list(attribute.floats)
            yield _short(np.array(numbers, np.float32), name)


def _short(data: Any, name: str) -> Value:
    return replace(of_data(data), constant=Constant(name, data.size, data.nbytes))
