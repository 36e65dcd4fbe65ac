"""What MNN's quantiser is given: values in text files, in a form with which it does not crash."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lrexport.measure.runtimes import mnn
from lrexport.measure.runtimes.base import Calibration, Unsupported
from lrexport.measure.runtimes.mnn import Mnn


def calibration(folder: Path, name: str = "input", shape: tuple[int, ...] = (2, 3, 4, 5), zero: tuple[str, ...] = ()) -> Any:
    """Three portions of an input."""
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((3, *shape)).astype("float32"))
    return Calibration({name: str(folder / "x.npy")}, zero)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a quantiser that copies its file is asked to do."""
    configurations: list[dict[str, Any]] = []

    def mnnquant(arguments: list[str]) -> bool:
        _, source, path, config = arguments
        configurations.append(json.loads(Path(config).read_text()))
        Path(path).write_bytes(Path(source).read_bytes())
        return True

    monkeypatch.setitem(sys.modules, "_tools", SimpleNamespace(mnnquant=mnnquant))
    return configurations


def test_each_sample_is_a_folder_of_its_exact_values_and_its_shape(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    (tmp_path / "float.mnn").write_bytes(b"network")
    runtime, data = Mnn(), calibration(tmp_path, zero=("pad",))
    (path,) = runtime.quantise([str(tmp_path / "float.mnn")], str(tmp_path), data)
    assert Path(path).read_bytes() == b"network"
    (config,) = asked
    assert (config["used_sample_num"], config["inputs"]) == (6, [{"name": "input", "shape": [1, 3, 4, 5]}])
    assert config["skip_quant_op_names"] == ["pad"]
    assert runtime.notes == ["convolutions with a filter of zeros stay in float32: pad"]
    expected = np.load(tmp_path / "x.npy").reshape(6, -1)
    folders = sorted(Path(config["path"]).iterdir())
    assert len(folders) == 6
    for folder, values in zip(folders, expected, strict=True):
        assert (np.array((folder / "input.txt").read_text().split(), "float32") == values).all()
        assert json.loads((folder / "input.json").read_text()) == {"inputs": config["inputs"]}


def test_it_gets_as_many_samples_as_one_batch_may_hold(
    tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnn, "_QUANTISED_BYTES", 2 * 3 * 4 * 5 * 4 + 1)
    (tmp_path / "float.mnn").write_bytes(b"network")
    runtime = Mnn()
    runtime.quantise([str(tmp_path / "float.mnn")], str(tmp_path), calibration(tmp_path, shape=(1, 3, 4, 5)))
    assert asked[0]["used_sample_num"] == 2
    assert runtime.notes == ["calibrated on the first 2 images: its quantiser holds all of them in memory at once"]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("../../out", (1, 3, 4, 5), "reads an input from a file of its name"),
        ("", (1, 3, 4, 5), "reads an input from a file of its name"),
        ("input", (1, 3, 4), "has 3 axes: its quantiser takes 4"),
    ],
)
def test_an_input_that_it_cannot_read_is_refused(
    name: str, shape: tuple[int, ...], words: str, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    with pytest.raises(Unsupported, match=words):
        Mnn().quantise([""], str(tmp_path / "work"), calibration(tmp_path, name, shape))
    assert not asked
    assert {path.name for path in tmp_path.iterdir()} <= {"x.npy", "work"}


def test_a_quantiser_that_writes_no_file_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_tools", SimpleNamespace(mnnquant=lambda arguments: True))
    with pytest.raises(Unsupported, match="MNN's quantiser writes no file"):
        Mnn().quantise([""], str(tmp_path), calibration(tmp_path))
