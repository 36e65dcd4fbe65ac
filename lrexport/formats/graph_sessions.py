"""ONNX graphs in ONNX Runtime: checked, opened, fed with batches of a network and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from lrexport.errors import InputError
from lrexport.formats.pixels import preprocessing_in, to_pixels
from lrexport.text import first_line
from lrexport.torch_tools.batch import Batch


def check_model(model: onnx.ModelProto) -> None:
    """Run onnx's checker with strict shape inference. Raises InputError."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and others from C++: without a common base
        raise InputError(f"the exported graph is not valid ONNX: {first_line(error)}") from error


def open_graph(model: onnx.ModelProto | Path, as_written: bool = False) -> Any:
    """An ONNX Runtime session of a graph, or of the file that has it; ``as_written`` without fused nodes.

    Raises InputError if the runtime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; names would be printed raw
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        content = str(model) if isinstance(model, Path) else model.SerializeToString()
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base but Exception
        raise InputError(f"ONNX Runtime refuses the exported graph: {error}") from error


def run_graph(runtime: Any, label: str, given: Batch) -> list[npt.NDArray[Any]]:
    """The outputs for a batch called ``label``. Raises InputError if ONNX Runtime cannot run it."""
    try:
        outputs: list[npt.NDArray[Any]] = runtime.run(None, feed_of(runtime, given))
    except Exception as error:  # no common base except Exception
        raise InputError(f"ONNX Runtime cannot run the exported graph for {label}: {first_line(error)}") from error
    return outputs


def feed_of(runtime: Any, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Arrays for a session by the names of its inputs. An input that the graph does not use is left out.

    A file with the normalisation in its graph gets the pictures that a batch of the network's inputs was made from.
    """
    declared = [item.name for item in runtime.get_inputs()]
    names = batch.names if len(batch.names) > 1 else declared
    if runtime.get_inputs()[0].type == "tensor(uint8)" and batch.tensors[0].is_floating_point():
        in_graph = preprocessing_in(runtime.get_modelmeta().custom_metadata_map)
        batch = batch if in_graph is None else to_pixels(batch, in_graph)
    named = zip(names, batch.tensors, strict=False)
    return {name: tensor.contiguous().numpy() for name, tensor in named if name in declared}
