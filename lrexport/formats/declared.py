"""What a file declares: opset, outputs, batch and free axes, compared with what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from torch import Tensor

from lrexport.errors import InputError
from lrexport.formats.dynamic import FIXED, FreeAxes
from lrexport.formats.opsets import opset_of
from lrexport.signature import Signature
from lrexport.torch_tools.outputs import OUTPUT, named_tensors


@dataclass(frozen=True)
class Asked:
    """What a file must declare: the batch (None: free), the opset, the ``outputs`` as of :func:`has_batch`, free axes.

    ``passes``: whether its graph may have another form than the exporter's.
    """

    batch: int | None
    opset: int
    outputs: Mapping[str, bool]
    free: FreeAxes = FIXED
    passes: bool = True


def has_batch(output: object, samples: int) -> dict[str, bool]:
    """The tensors of an output for ``samples`` inputs by name, and whether their first axis is as long as the batch."""
    if isinstance(output, Tensor):  # always by batch: a network that fixes its batch is found so
        return {OUTPUT: True}
    return {name: bool(tensor.ndim) and len(tensor) == samples for name, tensor in named_tensors(output).items()}


def check_written(model: onnx.ModelProto, asked: Asked) -> None:
    """Raise InputError unless the file declares what was asked for."""
    written = opset_of(model)
    if written != asked.opset:
        raise InputError(f"the exporter wrote opset {written} instead of {asked.opset}", f"Use --opset {written}.")
    names = [item.name for item in model.graph.output]
    if names != list(asked.outputs):
        raise InputError(f"the exported graph has the outputs {', '.join(names)}; expected {', '.join(asked.outputs)}")
    for item in (*model.graph.input, *model.graph.output):
        if not asked.outputs.get(item.name, True):
            continue
        first = item.type.tensor_type.shape.dim[0]
        fixed = first.dim_value if first.HasField("dim_value") else None
        if fixed != asked.batch:
            expected = "a dynamic batch" if asked.batch is None else f"a batch of {asked.batch}"
            declared = "a dynamic one" if fixed is None else str(fixed)
            raise InputError(
                f"expected {expected}, but {item.name!r} was written with {declared}",
                "The network's forward fixes the batch, for example by a reshape; use -1 or x.shape[0] there.",
            )
    for item, axes in zip(model.graph.input, asked.free.inputs, strict=False):
        for axis, name in axes.items():
            size = item.type.tensor_type.shape.dim[axis]
            if size.HasField("dim_value"):
                raise InputError(
                    f"expected a dynamic {name}, but {item.name!r} was written with {size.dim_value}",
                    "The network's forward fixes it, by a reshape or a branch for this size: use -1 or x.shape there.",
                )


def sizes_of(
    model: onnx.ModelProto, signature: Signature, batch: int | None, free: FreeAxes
) -> dict[str, tuple[int, ...]] | None:
    """The network's own sizes for the inputs of a graph with free ones; None if at most the batch is free."""
    if not free.sizes:
        return None
    declared = {item.name for item in model.graph.input}
    return {spec.name: (batch or 1, *spec.shape) for spec in signature if spec.name in declared}
