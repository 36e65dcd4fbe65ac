"""Nodes without an implementation in torch: neighbouring ones are one ONNX Runtime session, without gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lrexport.errors import InputError
from lrexport.onnx_network.body import Body, Step
from lrexport.onnx_network.operators.facts import from_array
from lrexport.onnx_network.source import SourceModel
from lrexport.text import first_line

_ELEMENTS = {
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.FLOAT,  # a network in double precision, for comparison, feeds what the graph declares
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.int16: TensorProto.INT16,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.bool: TensorProto.BOOL,
}


class RuntimeGroup:
    """Nodes that ONNX Runtime runs together. Copies of a network share it, because none of their weights are in it.

    ``needs`` are the values it takes, ``makes`` those that others take from it.
    """

    def __init__(
        self, source: SourceModel, steps: Sequence[Step], body: Body, makes: Sequence[str], types: Mapping[str, int]
    ) -> None:
        self.steps = tuple(steps)
        self.makes = tuple(makes)
        self._source, self._types = source, types
        inside = {name for step in steps for name in step.makes if name}
        used = dict.fromkeys(name for step in steps for name in (*step.needs, *sorted(step.captured)) if name)
        self._constants = {name: body for name in used if name not in inside and _is_constant(body, name)}
        self.needs = tuple(name for name in used if name not in inside and name not in self._constants)
        self._body = body
        self._sessions: dict[tuple[tuple[int, int], ...], Any] = {}

    def __deepcopy__(self, memo: object) -> RuntimeGroup:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("a group of an open session cannot be pickled")

    @property
    def operators(self) -> frozenset[str]:
        """The operators in it, with the domain of those that are not standard."""
        return frozenset(_named(step) for step in self.steps)

    def run(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it makes, on the device of its inputs. Raises InputError if ONNX Runtime cannot run it."""
        given = {name: values[name] for name in self.needs}
        kinds = {name: self._element(name, value) for name, value in given.items()}
        key = tuple((kinds[name], value.ndim) for name, value in given.items())
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = self._open(given, kinds)
        feed = {name: _array(value, kinds[name]) for name, value in given.items()}
        try:
            made = session.run(list(self.makes), feed)
        except Exception as error:  # its exceptions have no common base
            raise InputError(f"ONNX Runtime cannot run {self}: {first_line(error)}") from error
        device = next((value.device for value in given.values()), torch.device("cpu"))
        precision = next((value.dtype for value in given.values() if value.is_floating_point()), torch.float32)
        return {name: _tensor(name, array, device, precision) for name, array in zip(self.makes, made, strict=True)}

    def __str__(self) -> str:
        names = [step.node.name or step.makes[0] for step in self.steps]
        shown = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        return f"node{'s' if len(names) > 1 else ''} {shown}"

    def _element(self, name: str, value: Tensor) -> int:
        return self._types.get(name) or _ELEMENTS[value.dtype]

    def _open(self, given: Mapping[str, Tensor], kinds: Mapping[str, int]) -> Any:
        import onnxruntime

        graph = helper.make_graph(
            [step.node for step in self.steps],
            "group",
            [helper.make_tensor_value_info(name, kinds[name], [None] * value.ndim) for name, value in given.items()],
            [onnx.ValueInfoProto(name=name) for name in self.makes],
            [self._proto(name) for name in self._constants],
        )
        file = self._source.light
        model = onnx.ModelProto(ir_version=max(file.ir_version, 4), graph=graph)
        model.opset_import.extend(file.opset_import)
        model.functions.extend(file.functions)
        self._source.fill(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"ONNX Runtime refuses {self}: {first_line(error)}") from error

    def _proto(self, name: str) -> TensorProto:
        text = self._body.text(name)
        if text is not None:
            made = TensorProto()
            made.CopyFrom(text)
            made.name = name
            return made
        value = self._body.constant(name)
        assert value is not None
        kind = self._types.get(name) or _ELEMENTS[value.dtype]
        array = value.cpu().numpy()
        return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def _is_constant(body: Body, name: str) -> bool:
    return body.constant(name) is not None or body.text(name) is not None


def _named(step: Step) -> str:
    domain = step.facts.domain
    return f"{domain}.{step.facts.operator}" if domain else step.facts.operator


def _array(value: Tensor, kind: int) -> np.ndarray[Any, Any]:
    array = value.detach().cpu().numpy()
    return np.ascontiguousarray(array.astype(helper.tensor_dtype_to_np_dtype(kind), copy=False))


def _tensor(name: str, array: Any, device: torch.device, precision: torch.dtype) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise InputError(f"value {name!r} of the graph is a {type(array).__name__}; only tensors can go between nodes")
    value = from_array(array)
    if value is None:
        raise InputError(f"value {name!r} of the graph has the type {array.dtype}; only numbers can go between nodes")
    return value.to(device, precision if value.is_floating_point() else value.dtype)
