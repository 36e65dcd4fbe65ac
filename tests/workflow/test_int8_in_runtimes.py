"""``lrexport export --int8``: a runtime's own int8 files, calibrated as those of ONNX, compared and scored there."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrexport.artifacts import tensors
from lrexport.artifacts.run_files import IN_FORMATS, IN_FORMATS_INT8
from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.formats import int8_in_runtime
from lrexport.measure.targets import artefacts
from lrexport.runs.figures import FormatFiles
from lrexport.runs.record import Record, load_record
from tests.folders import inside_folder
from tests.formats.digits_net import SHAPE, fitted
from tests.measure.test_runtimes import python_with
from tests.workflow.test_int8 import DIGITS, check_fed

OPENVINO = {name for names in IN_FORMATS["openvino"].values() for name in names}
OPENVINO_INT8 = {name for names in IN_FORMATS_INT8["openvino"].values() for name in names}
PYTHON = os.environ.get("LREXPORT_TEST_MNN")
NOT_A_QUANTISER = "Fake 1.0"


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with ONNX files of a free batch, whose network knows the digits."""
    folder = tmp_path_factory.mktemp("formats in int8")
    tensors.save(folder / "weights.safetensors", fitted().state_dict())
    (folder / "plan.json").write_text('{"stem": {"scheme": "spatial", "rank": 2}, "head": {"scheme": "linear", "rank": 8}}')
    start = ["compress", "tests.formats.digits_net:Residual", "--weights", str(folder / "weights.safetensors")]
    start += ["--plan", str(folder / "plan.json"), *DIGITS, "--seed", "5", "--heldout", "0.2"]
    assert run([*start, "-o", str(folder / "run")]) == 0
    assert run(["onnx", str(folder / "run"), "--rounds", "0", "--dynamic", "batch"]) == 0
    return folder / "run"


@pytest.fixture
def here(exported_run: Path, tmp_path: Path) -> Any:
    """A copy of it in the current folder."""
    shutil.copytree(exported_run, tmp_path / "run")
    with inside_folder(tmp_path):
        yield tmp_path / "run"


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What a quantiser that changes nothing is fed, network by network."""
    seen: list[np.ndarray] = []

    def quantised(source: str, given: Sequence[Path], inputs: Mapping[str, Path], *others: Any) -> dict[str, Any]:
        (path,) = inputs.values()
        seen.extend(np.load(path))
        return {"files": [str(file) for file in given], "tool": NOT_A_QUANTISER, "notes": ["head stays in float32"]}

    monkeypatch.setattr(int8_in_runtime, "quantised", quantised)
    monkeypatch.setattr("lrexport.workflow.export_formats.check_quantiser", lambda *arguments: None)
    return seen


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def both(record: Record, name: str = "openvino") -> list[tuple[FormatFiles, FormatFiles]]:
    """Of both networks the files in float32 and in int8."""
    found = record.formats[name]
    assert found.dense_int8 is not None
    assert found.compressed_int8 is not None
    return [(found.dense, found.dense_int8), (found.compressed, found.compressed_int8)]


def in_openvino(paths: Sequence[Path], images: torch.Tensor) -> np.ndarray:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(*map(str, paths)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([compiled([image[None].numpy()])[0] for image in images])


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="NNCF, of the extra test, is not installed")
def test_openvino_files_in_int8_score_what_the_record_says(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["export", "run", "--to", "openvino", "--int8"]) == 0
    record, test = load_record(here), load_data("digits", SHAPE).test
    (batch, labels), *_ = test.batches(len(test), torch.device("cpu"))
    assert {path.name for path in here.iterdir()} >= OPENVINO | OPENVINO_INT8
    for float32, int8 in both(record):
        paths = [record.check(here, name) for name in int8.files]
        assert int8.bytes == sum(path.stat().st_size for path in paths)
        # Two kilobytes of weights in a quarter of the bytes; the scales come on top.
        assert paths[1].stat().st_size < 0.6 * (here / float32.files[1]).stat().st_size
        assert b"FakeQuantize" in paths[0].read_bytes()
        logits = in_openvino(paths, batch.only)
        exact = in_openvino([here / name for name in float32.files], batch.only)
        top1 = float((logits.argmax(1) == labels.numpy()).mean())
        assert top1 == pytest.approx(int8.accuracy.primary, abs=1.5 / len(test))
        assert (logits.argmax(1) == exact.argmax(1)).mean() > 0.85
        assert 0 < np.abs(logits - exact).max() / np.abs(exact).max() < 1
        assert 0 < int8.relative_error < 1
        assert (int8.sizes, int8.notes) == (((1, *SHAPE),), ())
        assert int8.quantisation.tool.startswith("NNCF ")
        assert (int8.quantisation.data, int8.quantisation.images) == ("digits", record.data.heldout)
        assert 0.85 < int8.quantisation.agreement <= 1
        assert float32.quantisation is None
    captured = capsys.readouterr()
    assert "int8 by NNCF" in captured.err
    assert "model.int8.openvino.xml, model.int8.openvino.bin" in captured.out


@pytest.mark.skipif(PYTHON is None, reason="run by make test-formats")
def test_mnn_files_in_int8_agree(here: Path) -> None:
    assert run(["export", "run", "--int8", "--to", f"mnn?python={PYTHON}"]) == 0
    for float32, int8 in both(load_record(here), "mnn"):
        assert int8.quantisation.tool.startswith("MNN ")
        assert 0.85 < int8.quantisation.agreement <= 1
        assert abs(int8.accuracy.primary - float32.accuracy.primary) < 0.1


def test_it_is_calibrated_on_the_images_that_int8_onnx_files_would_be(
    here: Path, fed: list[np.ndarray], capsys: pytest.CaptureFixture
) -> None:
    assert run(["export", "run", "--to", "openvino", "--int8", "--calibration-images", "60"]) == 0
    check_fed([image[0] for image in fed], 0.2, 5, 60)
    for float32, int8 in both(load_record(here)):
        assert (int8.quantisation.tool, int8.quantisation.images, int8.quantisation.agreement) == (NOT_A_QUANTISER, 60, 1)
        assert int8.accuracy == float32.accuracy
        assert int8.notes == ("head stays in float32",)
        assert [(here / name).read_bytes() for name in int8.files] == [(here / name).read_bytes() for name in float32.files]
    error = capsys.readouterr().err
    assert "dense.int8.openvino.xml: head stays in float32" in error
    assert "same class as model.onnx on 100.00 % of 60 calibration images" in error


@pytest.mark.slow
def test_without_scores_no_test_image_is_looked_at(here: Path, fed: list[np.ndarray]) -> None:
    data = "tests.workflow.test_int8:untouchable"
    options = ["--int8", "--data", data, "--no-rescore", "--calibration-images", "40"]
    assert run(["export", "run", "--to", "openvino", *options]) == 0
    check_fed([image[0] for image in fed], 0.2, 5, 40)
    for _, int8 in both(load_record(here)):
        assert (int8.quantisation.data, int8.accuracy) == (data, None)


def test_the_next_export_of_the_format_without_int8_takes_the_older_int8_files_away(
    here: Path, fed: list[np.ndarray], capsys: pytest.CaptureFixture
) -> None:
    assert run(["export", "run", "--to", "openvino", "--int8", "--no-rescore"]) == 0
    assert {path.name for path in here.iterdir()} >= OPENVINO_INT8
    capsys.readouterr()
    assert run(["export", "run", "--to", "openvino", "--no-rescore"]) == 0
    captured, record = capsys.readouterr(), load_record(here)
    assert f"removed files of an earlier export: {', '.join(IN_FORMATS_INT8['openvino']['dense.onnx'])}" in captured.err
    assert "int8" not in captured.out
    assert not OPENVINO_INT8 & ({path.name for path in here.iterdir()} | {*record.files})
    assert record.formats["openvino"].dense_int8 is record.formats["openvino"].compressed_int8 is None


def test_int8_that_knows_nothing_of_the_network_leaves_everything_as_it_was(
    here: Path, fed: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    other = fitted()
    torch.nn.init.normal_(other.head.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(other.head.bias)
    torch.onnx.export(other.eval(), (torch.zeros(1, *SHAPE),), here.parent / "other.onnx", dynamo=True)
    import openvino

    model = openvino.Core().read_model(here.parent / "other.onnx")
    model.inputs[0].set_names({"input"})
    model.outputs[0].set_names({"output"})
    openvino.save_model(model, here.parent / "other.xml", compress_to_fp16=False)
    broken = {"files": [str(here.parent / "other.xml"), str(here.parent / "other.bin")], "tool": "", "notes": []}
    monkeypatch.setattr(int8_in_runtime, "quantised", lambda *arguments: broken)
    before = listing(here)
    assert run(["export", "run", "--to", "openvino", "--int8"]) == 3
    error = capsys.readouterr().err
    assert "OpenVINO: in int8 dense.onnx predicts the same class for" in error
    assert "hardly more than by chance" in error
    assert listing(here) == before
    assert not list(here.glob(".export-*"))


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ("ncnn", "no int8 files for ncnn: its package has no quantiser"),
        ("openvino,coreml", "no int8 files for Core ML: its files do not run here"),
        ("ort", "lrexport onnx RUN --int8 --ort"),
    ],
)
def test_a_format_without_a_quantiser_is_refused_before_anything_is_written(
    formats: str, words: str, here: Path, capsys: pytest.CaptureFixture
) -> None:
    before = listing(here)
    assert run(["export", "run", "--int8", "--to", formats]) == 2
    assert words in capsys.readouterr().err
    assert listing(here) == before


def test_a_python_without_the_quantiser_is_told_what_to_install_there(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = listing(here)
    program = python_with(tmp_path, sitecustomize="import sys; sys.modules['nncf'] = None")
    assert run(["export", "run", "--int8", "--to", f"openvino?python={program}"]) == 4
    error = capsys.readouterr().err
    assert "has no usable nncf" in error
    assert f"{program} -m pip install numpy openvino nncf" in error
    assert artefacts.install_hint("openvino", artefacts.sys.executable, int8=True).endswith("'lrexport[openvino-int8]'")
    assert listing(here) == before


def test_a_quantiser_that_fails_is_named_with_its_reason(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    before = listing(here)
    program = python_with(tmp_path, nncf="def __getattr__(name): raise RuntimeError('no \x1b[31mroom')")
    assert run(["export", "run", "--int8", "--no-rescore", "--to", f"openvino?python={program}"]) == 3
    error = capsys.readouterr().err
    assert "OpenVINO cannot have dense.onnx in int8:" in error
    assert "room" in error
    assert "\x1b[31m" not in error
    assert listing(here) == before


def test_a_run_without_data_has_nothing_to_calibrate_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with inside_folder(tmp_path):
        tensors.save(tmp_path / "weights.safetensors", fitted().state_dict())
        start = ["compress", "tests.formats.digits_net:Residual", "--weights", "weights.safetensors", "--macs", "0.9"]
        assert run([*start, "-o", "run"]) == 0
        assert run(["onnx", "run", "--rounds", "0"]) == 0
        before = listing(tmp_path / "run")
        assert run(["export", "run", "--to", "openvino", "--int8"]) == 2
        assert "--int8 needs samples to calibrate on" in capsys.readouterr().err
        assert listing(tmp_path / "run") == before
