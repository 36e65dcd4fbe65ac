""".onnx files of others as MODEL: docs/faults.md, ONNX files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lrexport.artifacts import onnx_files
from tests.hostile.support import Command, frugally, listing, nothing_made

FILE = "net.onnx"


def _model(
    nodes: list[onnx.NodeProto] | None = None,
    weight: np.ndarray | None = None,
    sizes: tuple[int | str, ...] = (1, 3, 8, 8),
    kind: int = TensorProto.FLOAT,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """One convolution of 3 channels to 16, or other ``nodes`` from x to y with the weight w."""
    value = np.random.default_rng(0).standard_normal((16, 3, 3, 3)).astype(np.float32) if weight is None else weight
    graph = helper.make_graph(
        nodes or [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 4)],
        "graph",
        [helper.make_tensor_value_info("x", kind, list(sizes))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["a", "b", "c", "d"])],
        [numpy_helper.from_array(value, "w")],
    )
    imports = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _save(model: onnx.ModelProto) -> None:
    onnx.save(model, FILE)


def _bytes(content: bytes) -> Callable[[], None]:
    return lambda: _write(content)


def _write(content: bytes) -> None:
    Path(FILE).write_bytes(content)


def _external(place: str) -> None:
    model = _model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    _write(model.SerializeToString())


def _unknown_operator() -> None:
    nodes = [helper.make_node("Foo", ["x"], ["h"], domain="acme"), helper.make_node("Conv", ["h", "w"], ["y"], pads=[1] * 4)]
    _save(_model(nodes, domains=("acme",)))


BAD: dict[str, tuple[Callable[[], object], int, str]] = {
    "missing": (lambda: None, 3, "cannot read net.onnx: No such file or directory"),
    "a folder": (lambda: Path(FILE).mkdir(), 3, "net.onnx is a folder; expected a file"),
    "empty": (_bytes(b""), 3, "empty file: net.onnx"),
    "truncated": (lambda: _write(_model().SerializeToString()[:300]), 3, "invalid ONNX file net.onnx"),
    "a pointer": (_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"), 3, "git lfs pull"),
    "text": (_bytes(b"a model, as text\n" * 9), 3, "It seems to be text; expected an ONNX graph"),
    "TensorFlow Lite": (_bytes(b"\x1c\0\0\0TFL3" + bytes(99)), 3, "It seems to be a TensorFlow Lite model"),
    "weights of torch": (_bytes(b"PK\x03\x04" + bytes(99)), 3, "It seems to be weights that torch saved"),
    "an unknown operator": (_unknown_operator, 3, "acme:Foo"),
    "NaN": (lambda: _save(_model(weight=np.full((16, 3, 3, 3), np.nan, np.float32))), 3, "NaN or infinity in the weights"),
    "external data outside": (lambda: _external("../w.bin"), 3, "external data outside of the file's folder: ../w.bin"),
    "external data missing": (lambda: _external("w.bin"), 3, "should be stored in w.bin"),
    "text as its input": (lambda: _save(_model(kind=TensorProto.STRING)), 3, "a tensor that holds no numbers"),
    "no layers": (
        lambda: _save(_model([helper.make_node("Relu", ["x"], ["y"])])),
        3,
        "no convolution or product with constant weights",
    ),
    "free sizes": (lambda: _save(_model(sizes=("n", 3, "h", "w"))), 2, "leaves sizes of its input free: x"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_cannot_be_compressed_is_refused_with_the_reason(lrexport: Command, kind: str) -> None:
    make, code, message = BAD[kind]
    make()
    with frugally(400):
        outcome = lrexport("compress", FILE, "--macs", "0.9", "-o", "out", "--device", "cpu")
    assert (outcome.code, message in outcome.err) == (code, True), outcome.err
    assert "unexpected" not in outcome.err
    assert nothing_made()


def test_weights_options_and_other_sizes_of_a_file_are_refused(lrexport: Command) -> None:
    _save(_model())
    Path("w.pt").write_bytes(b"weights")
    for arguments, message in (
        ((FILE, "--weights", "w.pt"), "--weights does not apply to net.onnx: an .onnx file has its own weights"),
        ((f"{FILE}?num_classes=10",), "an .onnx file takes no options"),
        ((FILE, "--input-shape", "3,9,9"), "input 'x' of the shape 3,9,9 does not fit"),
        ((FILE, "--input", "z=3,8,8"), "net.onnx has no input 'z'"),
    ):
        outcome = lrexport("compress", *arguments, "--macs", "0.9", "-o", "out", "--device", "cpu")
        assert (outcome.code, message in outcome.err) == (2, True), outcome.err
        assert nothing_made()


def test_a_run_of_somebody_else_uses_its_own_copy_and_never_the_path_it_names(lrexport: Command) -> None:
    _save(_model())
    assert lrexport("compress", FILE, "--macs", "0.9", "-o", "run", "--device", "cpu").code == 0
    record = json.loads(Path("run/run.json").read_text())
    record["model"]["source"] = "/etc/passwd.onnx"
    Path("run/run.json").write_text(json.dumps(record))
    assert lrexport("onnx", "run", "--rounds", "0").code == 0
    Path("run/source.onnx").write_bytes(Path("run/source.onnx").read_bytes()[:-1] + b"?")
    before = listing(Path("run"))
    outcome = lrexport("onnx", "run", "--rounds", "0")
    assert outcome.code == 3
    assert "source.onnx was damaged or changed" in outcome.err
    del record["files"]["source.onnx"]
    Path("run/run.json").write_text(json.dumps(record))
    outcome = lrexport("onnx", "run", "--rounds", "0")
    assert outcome.code == 3
    assert "run has no source.onnx" in outcome.err
    assert listing(Path("run")).keys() == before.keys()


def test_a_folder_with_a_foreign_source_is_not_written_over(lrexport: Command) -> None:
    _save(_model())
    Path("out").mkdir()
    shutil.copy(FILE, "out/source.onnx")
    outcome = lrexport("compress", FILE, "--macs", "0.9", "-o", "out", "--device", "cpu")
    assert outcome.code == 2
    assert "source.onnx" in outcome.err
    assert listing(Path("out")).keys() == {"source.onnx"}


@pytest.mark.slow
def test_a_file_whose_loop_never_ends_is_refused_in_time(lrexport: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "_LEAST_SECONDS", 5)  # instead of a minute
    monkeypatch.setattr(onnx_files, "_MORE_SECONDS", 0)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes"]),
            helper.make_node("Conv", ["before", "w"], ["after"], pads=[1] * 4),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    always = numpy_helper.from_array(np.array(True))
    nodes = [
        helper.make_node("Constant", [], ["always"], value=always),
        helper.make_node("Loop", ["", "always", "x"], ["y"], body=body),
    ]
    _save(_model(nodes, weight=np.zeros((3, 3, 3, 3), np.float32)))
    outcome = lrexport("compress", FILE, "--macs", "0.9", "-o", "out", "--device", "cpu")
    assert outcome.code == 3
    assert "running it once takes more than 5 s of CPU time" in outcome.err
    assert nothing_made()
