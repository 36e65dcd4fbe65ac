"""Sizes that a user gives for the inputs of a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.cli.main import run
from lrexport.errors import UsageError
from lrexport.measure.onnx_macs import count_onnx
from lrexport.measure.onnx_survey import survey


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
        ({"w": (8, 3, 3, 3)}, "no input 'w'"),
        ({"x": (1, 3, 12)}, "expected 4 sizes, not 3"),
        ({"x": (1, 4, 12, 22)}, "the file fixes 3, not 4"),
        ({"x": (1, 3, 12, 22), "t": (13, 4)}, "H is 12 already, not 13"),
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
    assert "--shape is for .onnx files" in capsys.readouterr().err
