"""Facts about a value in an ONNX graph before it runs: type, shape, small contents, the weight behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

Shape = tuple[int | None, ...]

# Contents of up to this many numbers are kept: sizes, axes, indices and conditions are short, weights are not.
MOST_NUMBERS = 4096
# The same for floating-point numbers: scales of a Resize, limits of a Range; biases are longer.
_MOST_FLOATS = 16


@dataclass(frozen=True)
class Constant:
    """A stored constant: its name in the graph, and its size in numbers and bytes."""

    name: str
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Value:
    """``type`` is a TypeProto, None if unknown; ``data`` a small array of contents, ``constant`` the stored weight that the
    value is, or is computed from."""

    type: Any = None
    data: Any = None
    constant: Constant | None = None

    @property
    def shape(self) -> Shape | None:
        """Sizes, None for an unknown one; None if the rank is unknown."""
        if self.type is None or not self.type.HasField("tensor_type") or not self.type.tensor_type.HasField("shape"):
            return None
        dims = self.type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in dims)

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape if all its sizes are known, else None."""
        shape = self.shape
        known = tuple(size for size in shape or () if size is not None)
        return known if shape is not None and len(known) == len(shape) else None

    def without_data(self) -> Value:
        """The value in another iteration of a loop: the same type, unknown contents."""
        return replace(self, data=None, constant=None)


def tensor_type(shape: Iterable[int | None] | None, kind: int | None = None) -> Any:
    """A TypeProto of a tensor, by default float32."""
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
    """A tensor of another shape with ``value``'s element type."""
    kind = value.type.tensor_type.elem_type if value and value.type and value.type.HasField("tensor_type") else None
    return Value(tensor_type(shape, kind))


def of_data(data: Any) -> Value:
    """A value with known contents."""
    import onnx

    kind = onnx.helper.np_dtype_to_tensor_dtype(data.dtype)
    return Value(tensor_type(data.shape, kind), data if data.size <= MOST_NUMBERS else None)


def of_tensor(tensor: Any, name: str) -> Value:
    """A stored constant. Small contents are read, also external ones, from the current folder, which must be the file's."""
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
    except Exception:  # missing or damaged data: sizes that depend on it stay unknown
        return made


def of_sparse(tensor: Any) -> Value:
    """A sparse constant; its stored part are the values."""
    numbers = prod(tensor.values.dims)
    constant = Constant(tensor.values.name, numbers, stored_bytes(tensor.values.data_type, numbers))
    return Value(tensor_type(tensor.dims, tensor.values.data_type), None, constant)


def stored_bytes(kind: int, numbers: int) -> int:
    """Bytes of that many numbers of a data type; types of two and four bits are packed."""
    return (numbers * _bits(kind) + 7) // 8


@cache
def _bits(kind: int) -> int:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else ""
    packed = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    try:
        return packed[name] if name in packed else 8 * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
    except (KeyError, TypeError, ValueError):  # strings, and types unknown to this onnx
        return 0


def merged(inferred: Value, declared: Any, symbols: Mapping[str, int]) -> Value:
    """``inferred``, completed by a declaration; if they differ, ``inferred`` wins.

    ``symbols`` maps names in the declaration to sizes.
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
    """A value's shape as declared in the graph; sizes of 0 or less are unknown."""
    if not declared.HasField("tensor_type") or not declared.tensor_type.HasField("shape"):
        return None
    dims = declared.tensor_type.shape.dim
    return tuple(
        symbols.get(dim.dim_param) if dim.dim_param else dim.dim_value if dim.dim_value > 0 else None for dim in dims
    )


def common(values: Sequence[Value]) -> Value:
    """The facts shared by several possible values."""
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
    """Operator names from a text, which is more readable than a list of strings."""
    return frozenset(text.split())


def attributes_of(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values, without graphs."""
    import onnx

    skipped = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return {
        a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.type not in skipped and not a.ref_attr_name
    }


def constant_of(node: Any) -> Iterator[Value]:
    """The value of a Constant node."""
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
