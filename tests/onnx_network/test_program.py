"""ONNX files as programs of torch.export, which toolchains that convert from torch take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from lrexport.errors import InputError
from lrexport.onnx_network.program import write_program
from tests.board import save_graph
from tests.measure.test_runtimes import tensor, write_of, write_strided_slice, write_two


def write_tokens(path: Path) -> Path:
    """Tokens of 64 bits are looked up, and reshaped to a size that the graph computes from shapes."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("Shape", ["rows"], ["all"]),
        helper.make_node("Gather", ["all", "firsts"], ["kept"]),
        helper.make_node("Concat", ["kept", "halves"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["rows", "sizes"], ["parts"]),
        helper.make_node("ReduceMean", ["parts", "middle"], ["y"], keepdims=0),
    ]
    constants = {"firsts": np.array([0, 1]), "halves": np.array([2, -1]), "middle": np.array([1])}
    table = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
    inputs = [tensor("tokens", [1, 6], TensorProto.INT64)]
    return save_graph(path, nodes, inputs, [tensor("y", [1, 2, 4])], {"table": table, **constants})


def differences(path: Path, inputs: dict[str, torch.Tensor]) -> tuple[list[float], set[str]]:
    """The largest difference of each output of the program from ONNX Runtime's, and the program's operators."""
    write_program(path, path.with_suffix(".pt2"), inputs)
    program = torch.export.load(path.with_suffix(".pt2"))
    made = program.module()(*inputs.values())
    expected = onnxruntime.InferenceSession(str(path)).run(None, {name: value.numpy() for name, value in inputs.items()})
    assert [tuple(one.shape) for one in made] == [each.shape for each in expected]
    assert [one.dtype for one in made] == [torch.from_numpy(each).dtype for each in expected]
    apart = [float(np.abs(one.numpy() - each).max()) for one, each in zip(made, expected, strict=True)]
    return apart, {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(
    ("write", "inputs"),
    [
        (write_two, {"first": torch.randn(1, 3, 9, 7), "second": torch.randn(1, 3, 9, 7)}),
        (write_strided_slice, {"x": torch.randn(1, 3, 8, 8)}),
        (write_tokens, {"tokens": torch.tensor([[1, 4, 2, 9, 0, 3]])}),
    ],
)
def test_a_program_computes_what_the_file_does_with_its_inputs_in_order(
    write: Any, inputs: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    apart, operators = differences(write(tmp_path / "m.onnx"), inputs)
    assert max(apart) < 1e-5
    # What depends on shapes alone is a constant.
    assert not {"aten.item.default", "aten.sym_size.int", "aten.cat.default"} & operators


def test_what_torch_has_no_form_of_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_of("NonMaxSuppression", [1, 4])(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="torch has no form of NonMaxSuppression"):
        write_program(path, tmp_path / "m.pt2", {"x": torch.ones(1, 4)})
    assert not (tmp_path / "m.pt2").exists()


def test_files_in_int8_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s"], ["y"])]
    path = save_graph(tmp_path / "m.onnx", nodes, [tensor("x", [1, 4])], [tensor("y", [1, 4])], {"s": np.float32(0.1)})
    with pytest.raises(InputError, match="it has DequantizeLinear, QuantizeLinear: its toolchain gets networks of floats"):
        write_program(path, tmp_path / "m.pt2", {"x": torch.ones(1, 4)})
