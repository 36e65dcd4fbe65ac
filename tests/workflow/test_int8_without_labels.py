"""int8 of a network that is no classifier, calibrated on inputs without labels, from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrexport.cli.main import run
from lrexport.runs.record import load_record
from tests.folders import folder_with

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)
    )

make.input_shape = (1, 8, 8)
"""

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, unlabelled_network=NETWORK)


def test_a_network_of_images_is_quantised_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).standard_normal((60, 1, 8, 8)).astype(np.float32)
    np.savez("inputs.npz", input=images)
    assert run(["compress", "unlabelled_network:make", "--macs", "0.5", "-o", "run"]) == 0
    assert run(["onnx", "run", "--int8", "--rounds", "0", "--data", "arrays:inputs.npz"]) == 0
    shown = capsys.readouterr()
    assert "SQNR to model.onnx on" in shown.err
    assert "same class" not in shown.err
    assert any(line.split()[:1] == ["SQNR"] for line in shown.out.splitlines())
    int8 = load_record(Path("run")).results.compressed_int8
    assert int8 is not None
    assert int8.quantisation is not None
    assert int8.quantisation.agreement is None
    assert int8.quantisation.sqnr_db["output"] > 15
