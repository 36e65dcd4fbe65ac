"""ONNX Runtime's own format: the same outputs, nothing of this machine in it, and nothing left where it fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.errors import InputError
from lrexport.formats import ort
from lrexport.formats.ort import write_ort
from lrexport.measure import runner
from lrexport.measure.latency import session
from tests.board import write_model


@pytest.mark.parametrize("platform", ["amd64", "arm"])
@pytest.mark.parametrize("batch", [1, 3, "batch"])
def test_an_ort_file_is_the_onnx_file(tmp_path: Path, platform: ort.Platform, batch: int | str) -> None:
    source = write_model(tmp_path / "model.onnx", 32, batch=batch)
    done = write_ort(source, tmp_path / "model.ort", platform)
    assert done.path.read_bytes()[4:8] == b"ORTM"
    assert done.bytes == done.path.stat().st_size
    assert done.relative_error <= 1e-5
    given = np.random.default_rng(9).standard_normal((4 if batch == "batch" else batch, 3, 8, 8)).astype(np.float32)
    wanted, found = (session(path).run(None, {"x": given})[0] for path in (source, done.path))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.ort"]


def _operators(path: Path) -> set[str]:
    """What the runtime runs of the file."""
    return set(runner.profile({"file": str(path)}, {"seed": 0, "batch": 1, "threads": 1}, runs=2)["operators_ms"])


def test_weights_are_not_laid_out_for_this_processor(tmp_path: Path) -> None:
    # 32 channels are what every blocked layout takes: on x86 the runtime reorders the input of the ONNX file.
    done = write_ort(write_model(tmp_path / "m.onnx", 32), tmp_path / "m.ort", "amd64")
    assert _operators(done.path) == {"FusedConv"}


def _write_quantised(path: Path) -> Path:
    """A convolution between QDQ nodes with signed activations, whose weights fit x86 without VNNI, as lrexport's own do."""
    weight = np.random.default_rng(0).integers(-64, 65, (8, 3, 3, 3)).astype(np.int8)
    scale, zero = numpy_helper.from_array(np.float32(0.02), "s"), numpy_helper.from_array(np.int8(0), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 6, 6])
    graph = helper.make_graph(nodes, "graph", [given], [result], [numpy_helper.from_array(weight, "w"), scale, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_signed_activations_stay_signed_on_arm_and_become_unsigned_on_amd64(tmp_path: Path) -> None:
    source = _write_quantised(tmp_path / "m.onnx")
    arm, amd64 = (write_ort(source, tmp_path / f"{name}.ort", name).path for name in ("arm", "amd64"))
    assert "QLinearConv" in _operators(arm) & _operators(amd64)
    assert b"s8_to_u8" in amd64.read_bytes()
    assert b"s8_to_u8" not in arm.read_bytes()


def test_outputs_that_differ_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write_model(tmp_path / "other.onnx", 8, seed=1)
    convert = ort._convert
    monkeypatch.setattr(ort, "_convert", lambda source, made, platform: convert(other, made, platform))
    source = write_model(tmp_path / "m.onnx", 8, seed=0)
    with pytest.raises(InputError, match=r"the file in ONNX Runtime's own format differs from m\.onnx by"):
        write_ort(source, tmp_path / "m.ort", "amd64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "other.onnx"]


def test_a_graph_that_the_runtime_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"cannot write m\.onnx in its own format"):
        write_ort(tmp_path / "m.onnx", tmp_path / "m.ort", "arm")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def _positive_rows(path: Path, threshold: float) -> Path:
    """A graph that returns those of 200 values that are above a threshold, as a column, and their places."""
    nodes = [
        helper.make_node("Greater", ["x", "threshold"], ["good"]),
        helper.make_node("NonZero", ["good"], ["places"]),
        helper.make_node("Transpose", ["places"], ["rows"]),
        helper.make_node("GatherND", ["x", "rows"], ["values"]),
        helper.make_node("Cast", ["rows"], ["where"], to=TensorProto.FLOAT),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 200])]
    shapes = {"values": ["rows"], "where": ["rows", 2]}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    limit = numpy_helper.from_array(np.array(threshold, np.float32), "threshold")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [limit])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_a_few_rows_that_rounding_chose_otherwise_pass_and_many_are_refused(tmp_path: Path) -> None:
    right, near, far = (_positive_rows(tmp_path / f"{name}.onnx", name) for name in (0.0, 0.02, 1.0))
    assert ort._compare(right, right, None, None)[0] == 0
    ort._compare(right, near, None, None)
    with pytest.raises(InputError, match=r"% of \d+ rows are returned only by 0.0.onnx or only by .* at most 5 %"):
        ort._compare(right, far, None, None)
