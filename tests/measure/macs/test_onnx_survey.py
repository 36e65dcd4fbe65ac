"""What a child process says about an ONNX file is what onnx says about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lrexport.measure.macs.onnx_macs import count_onnx
from lrexport.measure.macs.onnx_survey import survey


def _branching() -> onnx.ModelProto:
    """A convolution, then one of two branches that hold operators of their own."""
    kernel = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "body.weight")
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(operator, ["h"], ["b"])], name, [], [_named(result, "b")])
        for name, operator in (("then", "Relu"), ("else", "Selu"))
    }
    nodes = [
        helper.make_node("Conv", ["x", "body.weight"], ["h"], name="conv"),
        helper.make_node("If", ["which"], ["y"], **branches),
    ]
    given = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4]),
        helper.make_tensor_value_info("which", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(nodes, "graph", given, [result], [kernel])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def test_the_count_is_the_one_made_in_this_process_and_branches_are_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(_branching(), path)
    found = survey(path)
    assert found.cost == count_onnx(_branching())
    assert found.cost.nodes[0].weight == "body.weight"
    assert found.cost.uncounted == ()
    assert found.operators == ("Conv", "If", "Relu", "Selu")
    assert (found.opset, found.files, found.bytes) == (19, (path,), path.stat().st_size)


def test_operators_beyond_the_standard_carry_their_domain(tmp_path: Path) -> None:
    model = _branching()
    model.graph.node[0].domain = "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(model, tmp_path / "model.onnx")
    assert "mine.Conv" in survey(tmp_path / "model.onnx").operators


def test_neither_onnx_nor_torch_is_imported_where_the_answer_is_read(tmp_path: Path) -> None:
    onnx.save(_branching(), tmp_path / "model.onnx")
    code = "import sys; from pathlib import Path; from lrexport.measure.macs.onnx_survey import survey; "
    code += "survey(Path(sys.argv[1])); print(sorted({'onnx', 'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
