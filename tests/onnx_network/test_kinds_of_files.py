"""Files of other tools: quantised ones, half precision, channels last, trained by the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import lrexport as api
from lrexport.cli.main import run
from tests.onnx_network.graphs import graph, outputs_of, saved, two_convolutions, weight

_QUIET = ("--device", "cpu")


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _quantised() -> onnx.ModelProto:
    """Weights as int8, one scale a channel, and values rounded to int8 before each layer, as ONNX Runtime writes them."""
    nodes, tensors, value, channels = [], {}, "x", 3
    for number, outputs in enumerate((24, 32)):
        scaled = weight(outputs, channels, 3, 3)
        scale = (np.abs(scaled).max((1, 2, 3)) / 127).astype(np.float32)
        tensors[f"w{number}"] = np.rint(scaled / scale[:, None, None, None]).astype(np.int8)
        tensors |= {f"ws{number}": scale, f"wz{number}": np.zeros(outputs, np.int8)}
        tensors |= {f"s{number}": np.float32(0.05), f"z{number}": np.int8(0)}
        nodes += [
            helper.make_node("QuantizeLinear", [value, f"s{number}", f"z{number}"], [f"q{number}"]),
            helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}", f"z{number}"], [f"d{number}"]),
            helper.make_node("DequantizeLinear", [f"w{number}", f"ws{number}", f"wz{number}"], [f"f{number}"], axis=0),
            helper.make_node("Conv", [f"d{number}", f"f{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4),
        ]
        value, channels = f"c{number}", outputs
    return graph(nodes, {"x": ["n", 3, 12, 12]}, {value: ["n", 32, 12, 12]}, tensors)


def _half() -> onnx.ModelProto:
    """Everything in float16, as converters write it."""
    model = two_convolutions()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


@pytest.mark.parametrize(("make", "kind"), [(_quantised, np.float32), (_half, np.float16)])
def test_files_that_round_become_smaller_and_follow_the_original(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], kind: type
) -> None:
    model = make()
    network = api.read_onnx(saved(model, tmp_path))
    given = _noise(8, *network.signature.shape).astype(kind)
    made = api.compress(network, network.signature, api.Macs(0.9))
    small = onnx.load(made.export(tmp_path / "small.onnx").path)
    assert made.macs <= 0.9 * made.dense_macs
    (before,), (after,) = (outputs_of(each, {"x": given}) for each in (model, small))
    assert after.dtype == before.dtype == kind
    error = np.square(after.astype(float) - before).sum() / np.square(before.astype(float)).sum()
    assert error < 0.2
    rounding = [node.op_type for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert [node.op_type for node in small.graph.node if node.op_type == "QuantizeLinear"] == rounding


def test_integer_kernels_are_refused_with_what_to_give_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("ConvInteger", ["q", "w", "z"], ["c"], pads=[1] * 4),
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    tensors = {"w": np.ones((8, 3, 3, 3), np.int8)}
    saved(graph(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 8, 8, 8]}, tensors), tmp_path)
    assert run(["compress", "net.onnx", "--macs", "0.5", "-o", "out", *_QUIET]) == 3
    shown = capsys.readouterr().err
    assert "no convolution or product with constant weights that can be compressed" in shown
    assert "It is quantised: give the float32 file that it was made from." in shown
    assert not Path("out").exists()


def test_a_file_of_channels_last_learns_from_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "a"], ["1"], "a", pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], "b", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["3"], ["4"]),
        helper.make_node("Flatten", ["4"], ["y"]),
    ]
    tensors = {"a": weight(24, 3, 3, 3), "b": weight(32, 24, 3, 3)}
    saved(graph(nodes, {"x": ["n", 12, 16, 3]}, {"y": ["n", 32]}, tensors), tmp_path)
    Path("pictures").mkdir()
    generator = np.random.default_rng(0)
    for number in range(30):
        Image.fromarray(generator.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(f"pictures/{number}.png")
    data = ("--data", "images:pictures", "--heal-minutes", "0")
    assert run(["compress", "net.onnx", "--macs", "0.8", "-o", "out", *data, *_QUIET]) == 0
    record = json.loads(Path("out/run.json").read_text())
    assert "12, 16, 3" in str(record["model"])
    assert record["data"]["preprocessing"]["size"] == [12, 16]


def test_a_file_with_svd_training_is_finished_and_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(two_convolutions(), tmp_path)
    np.savez("data.npz", x=_noise(60, 3, 16, 16), target=np.arange(60) % 10)
    epochs = ("--svd-epochs", "1", "--fine-tune-epochs", "1", "--lr", "0.001", "--heal-minutes", "0")
    done = run(["compress", path.name, "--data", "arrays:data.npz", "--macs", "0.6", "-o", "out", *epochs, *_QUIET])
    assert done == 0
    record = json.loads(Path("out/run.json").read_text())
    assert {"svd.safetensors", "model.safetensors", "spectra.json"} <= record["files"].keys()
    os.unlink(path)
    assert api.load("out")
