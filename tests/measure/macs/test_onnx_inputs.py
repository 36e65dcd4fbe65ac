"""Sizes that a user gives for the inputs of a graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.cli.main import run
from lrexport.errors import UsageError
from lrexport.measure.macs.onnx_macs import count_onnx
from lrexport.measure.macs.onnx_survey import survey


def two_inputs() -> onnx.ModelProto:
    """A convolution of ``x``, whose height is free, and a ``t`` of the same height."""
    kernel = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", None]),
        helper.make_tensor_value_info("t", TensorProto.FLOAT, ["H", 4]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, "h", "w"]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, ["H", 4]),
    ]
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["t"], ["z"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [kernel])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_free_sizes_are_those_given_and_the_graph_itself_stays_as_it_was(tmp_path: Path) -> None:
    model = two_inputs()
    before = model.SerializeToString()
    cost = count_onnx(model, {"x": (1, 3, 12, 22)})
    assert (cost.macs, cost.uncounted) == (8 * 27 * 10 * 20, ())
    assert model.SerializeToString() == before
    onnx.save(model, tmp_path / "m.onnx")
    assert survey(tmp_path / "m.onnx", {"x": (1, 3, 12, 22)}).cost == cost


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"w": (8, 3, 3, 3)}, "no input named 'w'"),
        ({"x": (1, 3, 12)}, "expected 4 sizes, found 3"),
        ({"x": (1, 4, 12, 22)}, "the file fixes 3, not 4"),
        ({"x": (1, 3, 12, 22), "t": (13, 4)}, "H is already 12, not 13"),
    ],
)
def test_a_shape_that_does_not_fit_the_file_is_a_mistake_of_who_gave_it(
    shapes: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        count_onnx(two_inputs(), shapes)
    onnx.save(two_inputs(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        survey(tmp_path / "m.onnx", shapes)


def test_inspect_takes_shapes_and_refuses_them_for_runs_and_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_inputs(), "m.onnx")
    assert run(["inspect", "m.onnx", "--shape", "x=1,3,12,22"]) == 0
    assert "43.20K" in capsys.readouterr().out
    assert run(["inspect", "m.onnx", "--shape", "x=1,3,12,22", "--shape", "x=1,3,8,8"]) == 2
    assert "--shape x=… is given more than once" in capsys.readouterr().err
    assert run(["inspect", "m.onnx", "--shape", "nothing=1"]) == 2
    assert "Its inputs: x of N,3,H,?, t of H,4." in capsys.readouterr().err
    Path("plan.json").write_text("{}")
    assert run(["inspect", "plan.json", "--shape", "x=1"]) == 2
    assert "--shape requires an .onnx file" in capsys.readouterr().err


def two_rates() -> onnx.ModelProto:
    """A product with one of two matrices, as ``rate`` says."""
    node = helper.make_node
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("MatMul", ["x", weight], [weight + "y"])], name, [], [helper.make_tensor_value_info(weight + "y", 1, None)]
        )
        for name, weight in (("then", "wide"), ("else", "narrow"))
    }
    nodes = [node("Equal", ["rate", "high"], ["is_high"]), node("If", ["is_high"], ["y"], **branches)]
    weights = {"wide": np.zeros((6, 9), np.float32), "narrow": np.zeros((6, 2), np.float32), "high": np.array(16000)}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "steps", 6])]
    inputs += [helper.make_tensor_value_info("rate", TensorProto.INT64, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "steps", "width"])]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_arrays_of_a_sample_give_sizes_and_choose_branches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_rates(), "m.onnx")
    np.savez("high.npz", x=np.zeros((1, 4, 6), np.float32), rate=np.array(16000))
    assert run(["inspect", "m.onnx", "--input", "high.npz", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["macs"], found["uncounted"]) == (4 * 6 * 9, [])
    assert found["inputs"] == {"x": [1, 4, 6], "rate": []}
    assert run(["inspect", "m.onnx", "--shape", "x=1,4,6", "--json", "-"]) == 0
    either = json.loads(capsys.readouterr().out)
    assert (either["macs"], either["uncounted"]) == (4 * 6 * 2, ["If with branches of 216 and 48 MACs"])
    assert run(["inspect", "m.onnx", "--shape", "x=1,4,6", "--input", "high.npz"]) == 0
    assert run(["inspect", "m.onnx", "--shape", "x=1,4,8", "--input", "high.npz"]) == 2
    assert "x has shape 1,4,6 in high.npz but 1,4,8 in --shape" in capsys.readouterr().err


def test_a_symbol_that_is_not_text_names_nothing() -> None:
    content = two_inputs().SerializeToString().replace(b"\x12\x01N", b"\x12\x01\xe9")
    model = onnx.load_from_string(content)
    assert isinstance(model.graph.input[0].type.tensor_type.shape.dim[0].dim_param, bytes)
    assert count_onnx(model, {"x": (1, 3, 12, 22)}).macs == 8 * 27 * 10 * 20
