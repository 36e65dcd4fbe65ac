"""Runtimes besides ONNX Runtime: files are made, compared and measured, or refused with the reason. No time is asserted."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lrexport.errors import DeviceError, UsageError
from lrexport.formats.onnx import export_onnx
from lrexport.formats.passes.apply import with_passes
from lrexport.measure.latency import measure
from lrexport.measure.runtimes import base, compare
from lrexport.measure.targets import MeasuringJob, parse_target
from lrexport.measure.targets.artefacts import prepared
from lrexport.measure.targets.base import LimitReached, ModelRefused
from lrexport.networks.cifar_resnet import CifarResNet
from tests.board import Board, save_graph, write_model, write_open
from tests.formats.passes import test_shortcuts as shortcuts

INSTALLED = ("openvino", "ncnn")
FEW = MeasuringJob((), rounds=10, batch=0, warmup_runs=2, sample_ms=0.01)
WEIGHT = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)


def tensor(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def write_two(path: Path) -> Path:
    """Two inputs of one odd size, declared in another order than they are used in, and two outputs."""
    nodes = [
        helper.make_node("Conv", ["second", "w"], ["c"]),
        helper.make_node("Conv", ["first", "v"], ["d"]),
        helper.make_node("Sub", ["c", "d"], ["difference"]),
        helper.make_node("Relu", ["c"], ["positive"]),
    ]
    inputs = [tensor("first", [1, 3, 9, 7]), tensor("second", [1, 3, 9, 7])]
    outputs = [tensor("difference", [1, 4, 7, 5]), tensor("positive", [1, 4, 7, 5])]
    return save_graph(path, nodes, inputs, outputs, {"w": WEIGHT, "v": WEIGHT[::-1].copy()})


def write_strided_slice(path: Path) -> Path:
    """Every second row and column of a convolution, as the shortcuts of CIFAR ResNets take them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Slice", ["c", "starts", "ends", "axes", "steps"], ["y"]),
    ]
    numbers = {"starts": [0, 0], "ends": [99, 99], "axes": [2, 3], "steps": [2, 2]}
    constants = {name: np.array(value) for name, value in numbers.items()}
    return save_graph(path, nodes, [tensor("x", [1, 3, 8, 8])], [tensor("y", [1, 4, 3, 3])], {"w": WEIGHT, **constants})


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_network_of_two_inputs_and_outputs_is_measured_in_the_runtime_beside_another(runtime: str, tmp_path: Path) -> None:
    files = {"two": write_two(tmp_path / "two.onnx"), "again": write_two(tmp_path / "again.onnx")}
    target = parse_target(f"local?runtime={runtime}")
    found = measure(files, "two", FEW, target)
    assert set(found.latencies) == {"two", "again"}
    assert found.latencies["again"].ratio is not None
    assert found.environment["runtime"] == runtime
    assert found.environment["precision"] == "float32"
    assert found.environment["runtime_version"][0].isdigit()
    assert found.inputs["two"]["first"] == {"shape": [1, 3, 9, 7], "dtype": "float32", "values": "random"}
    assert set(tmp_path.iterdir()) == set(files.values())


def test_open_sizes_are_fixed_by_the_same_rules_and_the_whole_protocol_runs(tmp_path: Path) -> None:
    job = MeasuringJob((), rounds=10, shapes={"x": (1, 3, 9, 11)}, cold=True)
    found = measure({"open": write_open(tmp_path / "open.onnx")}, None, job, parse_target("local?runtime=ncnn"))
    latency = found.latencies["open"]
    assert latency.load_ms is not None
    assert latency.first_run_ms is not None
    assert latency.peak_bytes is not None
    assert found.inputs["open"]["x"]["shape"] == [1, 3, 9, 11]


def test_a_profiler_of_the_runtime_gives_times_by_operator_and_node(tmp_path: Path) -> None:
    job = MeasuringJob((), rounds=10, profile=True)
    found = measure({"a": write_model(tmp_path / "a.onnx")}, None, job, parse_target("local?runtime=openvino"))
    assert "Convolution" in (found.latencies["a"].operators_ms or {})
    assert found.nodes_ms["a"]


def refused(path: Path, target: str, job: MeasuringJob = FEW) -> ModelRefused:
    with pytest.raises(ModelRefused) as caught:
        measure({path.name: path}, None, job, parse_target(target))
    assert caught.value.model == path.name
    return caught.value


def test_layers_that_ncnn_does_not_have_are_refused_although_pnnx_is_content(tmp_path: Path) -> None:
    reason = refused(write_strided_slice(tmp_path / "slice.onnx"), "local?runtime=ncnn").reason
    assert reason == "pnnx writes layers that ncnn does not have: Tensor.slice"


def test_nothing_but_the_files_of_a_runtime_takes_room(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")  # pnnx writes its weights four times
    for runtime in INSTALLED:
        folder = tmp_path / runtime
        folder.mkdir()
        *_, done = prepared(MeasuringJob([{"m": path}]), runtime, None, folder, "local")
        assert isinstance(done, MeasuringJob)
        files = done.artefacts[path].files
        assert {*files[0].parent.iterdir()} == {*files}


def test_ncnn_has_the_shortcut_of_a_resnet_once_it_is_a_convolution(tmp_path: Path) -> None:
    whole = ([0, 0], [99, 99], [2, 3], [2, 2])
    model = shortcuts.graph([1, 4, 8, 8], [whole], [0, 2, 0, 0, 0, 2, 0, 0])
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert "Tensor.slice" in refused(path, "local?runtime=ncnn").reason
    onnx.save(with_passes(model)[0], path)
    found = measure({"m": path}, None, FEW, parse_target("local?runtime=ncnn"))
    assert found.latencies["m"].p50 > 0  # its outputs are compared before


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 56])
def test_exported_resnets_run_in_ncnn(depth: int, tmp_path: Path) -> None:
    export_onnx(CifarResNet(depth).eval(), tmp_path / "m.onnx", (3, 32, 32))
    found = measure({"m": tmp_path / "m.onnx"}, None, FEW, parse_target("local?runtime=ncnn"))
    assert found.latencies["m"].p50 > 0


def write_of(node: str, *inputs: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        return save_graph(path, [helper.make_node(node, ["x"], ["y"])], [tensor("x", *inputs)], [tensor("y", *inputs)], {})

    return write


@pytest.mark.parametrize(
    ("write", "runtime", "reason"),
    [
        (write_of("Abs", [2, 4]), "ncnn", "input 'x' has a batch of 2: ncnn runs one sample at a time"),
        (write_of("Not", [1, 4], TensorProto.BOOL), "ncnn", "input 'x' is bool: ncnn takes float32, int64, int32"),
        (write_of("Det", [1, 4, 4]), "openvino", "No conversion rule found for operations: Det"),
    ],
)
def test_what_a_runtime_cannot_have_is_refused_with_the_reason(
    write: Callable[[Path], Path], runtime: str, reason: str, tmp_path: Path
) -> None:
    assert reason in refused(write(tmp_path / "x.onnx"), f"local?runtime={runtime}").reason


def test_a_converter_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    job = MeasuringJob((), rounds=10, seconds=0.001)
    with pytest.raises(LimitReached, match=r"takes more than 0.00\d s"):
        measure({"a": write_model(tmp_path / "a.onnx")}, None, job, parse_target("local?runtime=ncnn"))


def python_with(folder: Path, **modules: str) -> Path:
    """A Python in which these modules are what is given, as another environment may have them."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{folder}" exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


FAKE_MNN = """
import json, os
import numpy
Halide_Type_Float = Tensor_DimensionType_Caffe = 0
def version(): return "9.9"
class Tensor:
    def __init__(self, shape, kind, array, order): self.array, self.shape = array, shape
    def getShape(self): return self.shape
    def getNumpyData(self): return self.array
    def copyFrom(self, other): self.array = other.array
    def copyToHostTensor(self, other): other.array[...] = {computed}
class Interpreter:
    def __init__(self, path): self.shapes = json.load(open(path))
    def createSession(self, options): return self
    def getSessionInputAll(self, session): return ["x"]
    def getSessionInput(self, session, name): return Tensor((1, 3, 8, 8), 0, None, 0)
    def resizeTensor(self, tensor, shape): pass
    def resizeSession(self, session): pass
    def getSessionOutputAll(self, session): return ["y"]
    def getSessionOutput(self, session, name): return Tensor((1, 4, 6, 6), 0, None, 0)
    def runSession(self, session): {running}
"""
FAKE_CONVERTER = """
def mnnconvert(arguments):
    print("Converted Success!")
    open(arguments[arguments.index("--MNNModel") + 1], "w").write("{}")
"""


def fake_mnn(folder: Path, computed: str = "0", running: str = "pass", converter: str = FAKE_CONVERTER) -> str:
    source = FAKE_MNN.replace("{computed}", computed).replace("{running}", running)
    return f"local?runtime=mnn&python={python_with(folder, MNN=source, _tools=converter)}"


def test_another_network_is_refused_with_the_output_and_the_channel_before_it_is_timed(tmp_path: Path) -> None:
    reason = refused(write_model(tmp_path / "a.onnx"), fake_mnn(tmp_path)).reason
    assert "output 'y' differs from ONNX Runtime's by" in reason
    assert "in channel" in reason


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"converter": "def mnnconvert(arguments): import os; os.abort()"},
            "the process that converts it was ended by SIGABRT",
        ),
        ({"converter": "def mnnconvert(arguments): print('Converted Success!')"}, "MNN's converter writes no file"),
        ({"converter": "def mnnconvert(arguments): raise OSError('no \\x1b[31mroom')"}, "room"),
    ],
)
def test_a_toolchain_that_fails_in_any_way_is_named_with_its_reason(
    options: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert reason in refused(write_model(tmp_path / "a.onnx"), fake_mnn(tmp_path, **options)).reason
    assert list(temporary.iterdir()) == []


def test_a_runtime_that_crashes_ends_its_own_process_alone(tmp_path: Path) -> None:
    target = parse_target(fake_mnn(tmp_path, running="os.kill(os.getpid(), 11)"))
    with pytest.raises(DeviceError, match=r"stopped early: it crashed \(SIGSEGV\)"):
        measure({"a": write_model(tmp_path / "a.onnx")}, None, FEW, target)


def test_a_python_without_the_runtime_is_told_what_to_install_there(tmp_path: Path) -> None:
    program = python_with(tmp_path, MNN="raise ImportError('built for another machine')")
    with pytest.raises(DeviceError, match="no usable MNN") as caught:
        measure({"a": write_model(tmp_path / "a.onnx")}, None, FEW, parse_target(f"local?runtime=mnn&python={program}"))
    assert caught.value.hint == f"Install it there: {program} -m pip install numpy MNN"


@pytest.mark.parametrize(("runtime", "module", "package"), [("mnn", "MNN", "MNN"), ("coreml", "coremltools", "coremltools")])
def test_what_is_missing_is_named_before_any_file_is_run(runtime: str, module: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{package} is installed")
    (tmp_path / "broken.onnx").write_bytes(b"no ONNX file")
    job = MeasuringJob(({"a": tmp_path / "broken.onnx"},))
    with pytest.raises(DeviceError, match=f"no usable {package}"):
        list(prepared(job, runtime, None, tmp_path, "the target"))


def test_this_python_without_a_runtime_is_told_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no usable openvino") as caught:
        measure({"a": write_model(tmp_path / "a.onnx")}, None, FEW, parse_target("local?runtime=openvino"))
    assert caught.value.hint == "Install it: pip install 'lrexport[openvino]'"


def test_a_python_that_does_not_exist_is_an_error_of_the_environment(tmp_path: Path) -> None:
    target = parse_target(f"local?runtime=ncnn&python={tmp_path}/nowhere")
    with pytest.raises(DeviceError, match=r"cannot run the Python .*nowhere: No such file"):
        measure({"a": write_model(tmp_path / "a.onnx")}, None, FEW, target)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("local?runtime=ncn", "unknown runtime 'ncn'"),
        ("local?runtime=", "unknown runtime ''"),
        ("local?rutime=ncnn", "unknown option rutime"),
        ("local?runtime=ncnn&runtime=mnn", "given twice"),
        ("local?python=", "python= without a path"),
        ("local?", "expected local"),
        ("ssh://board?runtime=ncn", "unknown runtime 'ncn'"),
    ],
)
def test_a_target_with_a_wrong_runtime_or_option_is_refused_with_what_is_known(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"invalid target") as caught:
        parse_target(text)
    assert words in caught.value.message
    if "ncn'" in words:
        assert caught.value.hint == "Did you mean ncnn? Known: onnxruntime, openvino, ncnn, mnn, litert, executorch."


def test_a_runtime_belongs_to_the_name_of_a_target_and_a_python_does_not() -> None:
    assert parse_target("local?runtime=ncnn&python=/opt/p").name == "local?runtime=ncnn"
    assert parse_target("local?runtime=onnxruntime").name == "local"
    assert parse_target("ssh://pi@board:22?python=p&runtime=ncnn").name == "ssh://pi@board:22?runtime=ncnn"


def test_a_board_measures_files_that_were_made_here(board: Board, tmp_path: Path) -> None:
    target = parse_target(f"{board.url}&runtime=ncnn")
    found = measure({"a": write_model(tmp_path / "a.onnx")}, None, FEW, target)
    assert found.environment["runtime"] == "ncnn"
    assert found.latencies["a"].rounds == 10
    assert board.left() == []


def test_every_runtime_has_a_file_and_only_the_first_loads_onnx_files() -> None:
    runtimes = [base.runtime(name) for name in base.NAMES]
    assert [runtime.name for runtime in runtimes] == list(base.NAMES)
    assert [bool(runtime.suffixes) for runtime in runtimes] == [False, *[True] * (len(runtimes) - 1)]
    with pytest.raises(ValueError, match="unknown runtime"):
        base.runtime("os")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: array * (1 + 1e-5), None),
        (lambda array: array[:, ::-1], "in channel"),
        (lambda array: array[..., :2], "has shape 1,4,3,2, in ONNX Runtime 1,4,3,3"),
        (lambda array: np.where(array == array[0, 2, 1, 1], np.nan, array), "in channel 2"),
        (lambda array: np.where(np.arange(4)[None, :, None, None] == 1, 0, array), "in channel 1"),
    ],
)
def test_outputs_agree_up_to_rounding_channel_by_channel(change: Callable[[Any], Any], words: str | None) -> None:
    expected = np.random.default_rng(0).standard_normal((1, 4, 3, 3)).astype(np.float32)
    expected[:, 1] *= 0.03
    if words is None:
        compare.check_outputs({"y": expected}, {"y": change(expected)}, compare.TOLERANCE)
        return
    with pytest.raises(compare.OutputsDiffer, match=words):
        compare.check_outputs({"y": expected}, {"y": change(expected)}, compare.TOLERANCE)


def test_outputs_of_scalars_integers_and_nothing_are_compared_too() -> None:
    same = {"n": np.array(3.0), "i": np.arange(4), "e": np.zeros((0, 2))}
    compare.check_outputs(same, same, compare.TOLERANCE)
    for name, other in (("n", np.array(4.0)), ("i", np.arange(1, 5))):
        with pytest.raises(compare.OutputsDiffer, match=f"output '{name}'"):
            compare.check_outputs(same, {**same, name: other}, compare.TOLERANCE)
    with pytest.raises(compare.OutputsDiffer, match="missing"):
        compare.check_outputs(same, {}, compare.TOLERANCE)


def test_json_says_what_a_runtime_needs_for_its_files() -> None:
    ports = base.Ports([base.Port("x", [1, 3], "tensor(float)")], [base.Port("y", (), "tensor(int64)")])
    again = base.Ports.from_json(json.loads(json.dumps(ports.to_json())))
    assert again.to_json() == ports.to_json()
    assert [port.dtype for port in (*again.inputs, *again.outputs)] == ["float32", "int64"]
