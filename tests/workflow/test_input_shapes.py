"""Networks whose input is no image: from the command line to a verified file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.errors import InputError
from lrexport.plan import Pair
from lrexport.runs.record import UNKNOWN_QUALITY, load_record
from tests.folders import folder_with

NETWORKS = """
from torch import nn

def features():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

def sound():
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=4, padding=4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 5, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(8), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10),
    )

def video():
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool3d((1, 2, 2)), nn.Flatten(),
        nn.Linear(64, 192), nn.ReLU(), nn.Linear(192, 10),
    )

def image():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

image.input_shape = [3, 8, 8]
sound.input_shape = (1, 200)
"""


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, shapes=NETWORKS)


@pytest.mark.parametrize("batch", [*(pytest.param(each, marks=pytest.mark.slow) for each in "13"), "dynamic"])
@pytest.mark.parametrize(("name", "shape"), [("features", "64"), ("sound", "1,160"), ("video", "3,4,8,8")])
def test_an_input_of_any_number_of_axes_goes_from_compress_to_a_verified_file(name: str, shape: str, batch: str) -> None:
    assert run(["compress", f"shapes:{name}", "--input-shape", shape, "--macs", "0.7", "-o", "run"]) == 0
    record = load_record(Path("run"))
    assert record.model.input_shape == tuple(int(part) for part in shape.split(","))
    assert any(isinstance(layer, Pair) for layer in record.plan.values())
    assert record.results.compressed.macs <= 0.7 * record.results.dense.macs
    assert run(["onnx", "run", "--batch", batch, "--rounds", "10"]) == 0
    shipped = load_record(Path("run"))
    assert shipped.results.compressed.macs == record.results.compressed.macs
    assert shipped.results.dense.macs == record.results.dense.macs
    dimensions = onnx.load("run/model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert tuple(dim.dim_value for dim in dimensions[1:]) == record.model.input_shape
    assert dimensions[0].dim_value == (0 if batch == "dynamic" else int(batch))


def test_the_callables_own_shape_may_have_any_number_of_axes(capsys: pytest.CaptureFixture) -> None:
    assert run(["compress", "shapes:sound", "--macs", "0.7", "-o", "run"]) == 0
    assert load_record(Path("run")).model.input_shape == (1, 200)


@pytest.mark.parametrize("source", ["digits", "cifar10", "folder:images"])
def test_images_for_a_network_that_takes_none_are_refused_with_the_shape(source: str) -> None:
    with pytest.raises(InputError, match=r"gives images \(C, H, W\); the network takes inputs of shape \(1, 160\)"):
        load_data(source, (1, 160))


def test_data_for_a_network_that_takes_no_images_is_bad_input(capsys: pytest.CaptureFixture) -> None:
    assert run(["compress", "shapes:sound", "--data", "digits", "--macs", "0.7", "-o", "run"]) == 3
    captured = capsys.readouterr()
    assert "compression without training works for inputs of any shape" in captured.err
    assert not Path("run").exists()


def test_an_operator_whose_macs_are_not_counted_is_noted_in_the_record_once(capsys: pytest.CaptureFixture) -> None:
    Path("recurrent.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    input_shape = (5, 16)\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.lstm = nn.LSTM(16, 4, batch_first=True)\n"
        "        self.head = nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64))\n"
        "    def forward(self, x):\n"
        "        return self.head(self.lstm(x)[0][:, -1])\n",
        encoding="utf-8",
    )
    assert run(["compress", "recurrent:Net", "--macs", "0.7", "-o", "run"]) == 0
    assert load_record(Path("run")).notes == ["MACs of lstm are not counted", UNKNOWN_QUALITY]
    assert "warning: MACs of lstm are not counted" in capsys.readouterr().err
