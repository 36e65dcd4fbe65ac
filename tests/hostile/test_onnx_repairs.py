"""Files that onnx's checker refuses and ONNX Runtime runs: figures and budgets all the same, with a note."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from lrexport.artifacts.onnx_repair import allowances, repair
from lrexport.cli.main import run
from lrexport.errors import InputError
from lrexport.measure.macs.onnx_survey import survey
from tests.measure.graphs import model, value, zeros

node = helper.make_node
MACS = 8 * 27 * 36


def sound(opset: int = 17) -> ModelProto:
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), node("Relu", ["c"], ["y"], name="relu")]
    return model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 8, 6, 6]}, {"w": zeros(8, 3, 3, 3)}, opset=opset)


def without_name() -> ModelProto:
    made = sound()
    made.graph.name = ""
    return made


def without_shape() -> ModelProto:
    made = sound()
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def without_type() -> ModelProto:
    made = sound()
    made.graph.output[0].ClearField("type")
    return made


def old_version() -> ModelProto:
    made = sound(8)
    made.ir_version = 3
    return made


def out_of_order() -> ModelProto:
    made = sound()
    made.graph.node.reverse()
    return made


def weight_twice() -> ModelProto:
    made = sound()
    made.graph.initializer.append(numpy_helper.from_array(zeros(8, 3, 3, 3), "w"))
    return made


def weight_without_name() -> ModelProto:
    made = sound()
    made.graph.initializer.append(numpy_helper.from_array(zeros(1), ""))
    return made


def domain_not_imported() -> ModelProto:
    made = sound()
    made.graph.node[1].CopyFrom(node("Gelu", ["c"], ["y"], domain="com.microsoft"))
    return made


def runtime_operator() -> ModelProto:
    made = sound(13)
    made.graph.node[1].CopyFrom(node("LayerNormalization", ["c", "scale"], ["y"]))
    made.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), "scale"))
    return made


def name_inside_and_outside() -> ModelProto:
    made = sound()
    inside = [node("Neg", ["c"], ["r"]), node("Relu", ["r"], ["o"])]
    branch = helper.make_graph(inside, "branch", [], [value("o", [1, 8, 6, 6])])
    made.graph.node[1].CopyFrom(node("Relu", ["c"], ["r"]))
    made.graph.node.append(node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch))
    made.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    return made


def function_of_another_opset() -> ModelProto:
    made = sound()
    function = helper.make_function("mine", "F", ["a"], ["b"], [node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 13)])
    made.functions.append(function)
    made.opset_import.append(helper.make_opsetid("mine", 1))
    made.graph.node[1].CopyFrom(node("F", ["c"], ["y"], domain="mine"))
    return made


LENIENT = [
    (without_name, "the graph has no name"),
    (without_shape, "y has no shape"),
    (without_type, "y has no shape"),
    (old_version, "its weights are not inputs, which IR version 3 requires"),
    (out_of_order, "not in the order in which they run"),
    (weight_twice, "1 of its weights"),
    (weight_without_name, "1 of its weights"),
    (domain_not_imported, "the version of com.microsoft is missing"),
    (runtime_operator, "only ONNX Runtime has the operators LayerNormalization, not ONNX opset 13"),
    (name_inside_and_outside, "are also names outside"),
    (function_of_another_opset, "function F has opset 13, but the graph 17"),
]


@pytest.mark.parametrize(("make", "reason"), LENIENT)
def test_what_onnx_runtime_runs_is_counted_with_a_note(make: Callable[[], ModelProto], reason: str, tmp_path: Path) -> None:
    made, path = make(), tmp_path / "m.onnx"
    onnx.save(made, path)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": zeros(1, 3, 8, 8)})[0].shape == (1, 8, 6, 6)
    before = path.read_bytes()
    found = survey(path)
    assert (found.cost.macs, found.cost.uncounted) == (MACS, ())
    assert any(reason in note for note in found.notes)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("make", "reason"), LENIENT)
def test_what_stands_in_for_the_checker_goes_again(make: Callable[[], ModelProto], reason: str) -> None:
    made = make()
    said = repair(made)
    repaired = made.SerializeToString(deterministic=True)
    with allowances(made) as more:
        onnx.checker.check_model(made)
    assert any(reason in text for text in (*said, *more))
    assert made.SerializeToString(deterministic=True) == repaired


def cycle() -> ModelProto:
    made = sound()
    made.graph.node[0].input[0] = "y"
    return made


def made_twice() -> ModelProto:
    made = sound()
    made.graph.node.append(node("Neg", ["c"], ["y"]))
    return made


def nothing_makes_it() -> ModelProto:
    made = without_name()
    made.graph.node[1].input[0] = "nowhere"
    return made


@pytest.mark.parametrize(
    ("make", "reason"),
    [(cycle, "topologically sorted"), (made_twice, "static assignment"), (nothing_makes_it, "name")],
)
def test_what_no_runtime_runs_stays_refused(make: Callable[[], ModelProto], reason: str, tmp_path: Path) -> None:
    onnx.save(make(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=reason):
        survey(tmp_path / "m.onnx")


def test_inspect_and_a_budget_of_bytes_work_on_a_file_that_was_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(out_of_order(), "m.onnx")
    Path("lrexport.toml").write_text('[budget]\npath = "m.onnx"\nmax_bytes = "1 MB"\nmax_macs = "63K"\n')
    assert run(["inspect", "m.onnx", "--json", "-"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["macs"] == MACS
    assert "note: m.onnx: onnx's checker refuses the file (its nodes are not in the order" in told.err
    assert run(["check"]) == 0
    assert "note: m.onnx: onnx's checker refuses the file (its nodes are not in the order" in capsys.readouterr().err
    Path("lrexport.toml").write_text('[budget]\npath = "m.onnx"\nmax_bytes = "900 B"\n')
    onnx.save(without_shape(), "m.onnx")
    assert run(["check"]) == 1


def test_external_data_of_a_repaired_file_is_found(tmp_path: Path) -> None:
    made = out_of_order()
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    found = survey(tmp_path / "m.onnx")
    assert found.bytes == sum((tmp_path / name).stat().st_size for name in ("m.onnx", "m.data"))
    assert found.cost.macs == MACS
