"""A graph in an older opset, rewritten by the standard's own schemas.

Most operators of convolutional networks have only gained types over the years, or turned an attribute into an input
(the axes of ReduceMean in opset 18, the limits of Clip in opset 11); onnx's converter has no rule for many of them. So
every node is rewritten by the older schema, and refused if that lacks something the node uses. If an operator's meaning has
changed, the comparison of outputs detects it.
"""

from __future__ import annotations

from typing import Any

import onnx

from lrexport.artifacts.onnx_graphs import STANDARD
from lrexport.errors import InputError


def written_in(model: onnx.ModelProto, before: int, opset: int) -> onnx.ModelProto:
    """A copy of ``model``, of opset ``before``, in ``opset``. Raises InputError, naming what ``opset`` lacks."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in made.graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t")
    }
    for node in made.graph.node:
        if node.domain in STANDARD:
            _rewrite(node, constants, before, opset)
    _drop_unused(made.graph)
    for entry in made.opset_import:
        if entry.domain in STANDARD:
            entry.version = opset
    return made


def _rewrite(node: Any, constants: dict[str, Any], before: int, opset: int) -> None:
    new = _schema(node, before)
    old = _schema(node, opset)
    if new.since_version == old.since_version:
        return
    given = {attribute.name: attribute for attribute in node.attribute}
    for name, attribute in given.items():
        if name in old.attributes:
            continue
        if onnx.helper.get_attribute_value(attribute) != _default(new, name) and not _is_idle(node, name, constants):
            raise InputError(f"{node.op_type} has no attribute {name!r} in opset {opset}")
        node.attribute.remove(attribute)
    for name in old.attributes:  # a default that has changed
        if name not in given and name in new.attributes and _default(new, name) not in (None, _default(old, name)):
            node.attribute.append(onnx.helper.make_attribute(name, _default(new, name)))
    while len(node.input) > old.max_input:
        place = len(node.input) - 1
        name, value = new.inputs[min(place, len(new.inputs) - 1)].name, node.input[place]
        idle = not value or _is_idle(node, name, constants)
        if not idle and (name not in old.attributes or value not in constants):
            raise InputError(f"{node.op_type} does not take {name!r} as an input in opset {opset}")
        if not idle:
            node.attribute.append(onnx.helper.make_attribute(name, onnx.numpy_helper.to_array(constants[value]).tolist()))
        del node.input[place]


def _is_idle(node: Any, name: str, constants: dict[str, Any]) -> bool:
    """Whether an attribute or input that older opsets lack has no effect here."""
    if node.op_type == "Reshape" and name == "allowzero":  # what a size of 0 means
        shape = constants.get(node.input[1])
        return shape is not None and bool((onnx.numpy_helper.to_array(shape) != 0).all())
    if node.op_type == "Slice" and name == "steps":
        steps = constants.get(node.input[4])
        return steps is not None and bool((onnx.numpy_helper.to_array(steps) == 1).all())
    return False


def _schema(node: Any, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise InputError(f"opset {opset} has no operator {node.op_type}") from error


def _default(schema: Any, name: str) -> Any:
    """The schema; None if the opset has none."""
    value = schema.attributes[name].default_value
    return onnx.helper.get_attribute_value(value) if value.type else None


def _drop_unused(graph: Any) -> None:
    """Remove constants that were turned into attributes."""
    used = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in used]:
        graph.node.remove(node)
