"""``lrexport onnx --with-preprocessing``: the run's own preprocessing in the graph, and in the metadata of every file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )

def flat():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

make.input_shape, flat.input_shape = (1, 8, 8), (64,)
"""
TRAINED = ["--dense-epochs", "2", "--svd-epochs", "0", "--fine-tune-epochs", "1", "--device", "cpu", "--batch-size", "64"]

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_with(tmp_path_factory, pixel_network=NETWORK)
    with inside_folder(folder):
        assert run(["compress", "pixel_network:make", "--data", "digits", *TRAINED, "--macs", "0.5", "-o", "small"]) == 0
    return folder


def _metadata(path: str) -> dict[str, Any]:
    return {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}


def test_files_take_pictures_and_score_as_the_network_does(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--with-preprocessing", "--int8", "--ort", "--rounds", "10", "--batch", "4"]
    assert run(["onnx", "small", *options]) == 0
    record = load_record(Path("small"))
    assert record.export["with_preprocessing"] is True
    assert record.results.compressed is not None
    assert record.results.compressed.accuracy is not None
    known = record.data.preprocessing if record.data else None
    names = [str(name) for name in load_data("digits", (1, 8, 8)).classes]
    for name in ("dense.onnx", "model.onnx", "model.int8.onnx", "dense.int8.onnx"):
        about = _metadata(f"small/{name}")
        assert about["lrexport.classes"] == names
        assert about["lrexport.preprocessing"]["in_graph"] is True
        if known is not None:
            assert tuple(about["lrexport.preprocessing"]["mean"]) == known.mean
        runtime = onnxruntime.InferenceSession(f"small/{name}", providers=["CPUExecutionProvider"])
        (given,) = runtime.get_inputs()
        assert (given.type, given.shape) == ("tensor(uint8)", [4, 8, 8, 1])
        assert runtime.run(None, {given.name: np.zeros((4, 8, 8, 1), np.uint8)})[0].shape == (4, 10)


def test_without_the_option_the_metadata_still_says_what_the_file_expects() -> None:
    assert run(["onnx", "small", "--rounds", "0"]) == 0
    about = _metadata("small/model.onnx")["lrexport.preprocessing"]
    assert about["in_graph"] is False
    assert len(about["mean"]) == len(about["std"]) == 1
    assert about["size"] == [8, 8]


@pytest.mark.slow
def test_bench_and_check_know_what_files_of_any_size_take() -> None:
    assert run(["onnx", "small", "--with-preprocessing", "--dynamic", "height,width", "--rounds", "0"]) == 0
    macs = load_record(Path("small")).results.compressed.macs  # type: ignore[union-attr]  # it has one
    Path("lrexport.toml").write_text(f'[budget]\nmax_macs = "{macs} MACs"\n')
    assert run(["check", "small"]) == 0
    assert run(["bench", "small", "--rounds", "10", "--json", "bench.json"]) == 0
    assert "[1, 8, 8, 1]" in json.dumps(json.loads(Path("bench.json").read_text()))


@pytest.mark.parametrize(("model", "message"), [
    ("make", "needs the preprocessing of the network"),
    ("flat", "needs one image (C, H, W) as its only input"),
])  # fmt: skip
def test_without_a_picture_or_its_preprocessing_the_option_is_refused(
    capsys: pytest.CaptureFixture[str], model: str, message: str
) -> None:
    assert run(["compress", f"pixel_network:{model}", "--macs", "0.6", "-o", model]) == 0
    capsys.readouterr()
    assert run(["onnx", model, "--with-preprocessing", "--rounds", "0"]) == 2
    assert message in capsys.readouterr().err
    assert not [*Path(model).glob("*.onnx")]
