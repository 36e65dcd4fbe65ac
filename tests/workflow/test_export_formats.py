"""``lrexport export``: other formats of an exported run, compared and scored in their runtimes, all written or none."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from lrexport.artifacts.run_files import IN_FORMATS, OF_FORMATS
from lrexport.cli.main import run
from lrexport.formats import in_runtime
from lrexport.measure.runtimes.base import Port
from lrexport.runs.figures import Format
from lrexport.runs.record import load_record
from lrexport.workflow import exporting
from tests.folders import folder_with, inside_folder
from tests.measure.test_runtimes import fake_mnn, python_with

NETWORK = """
import torch
from torch import nn

def make(num_classes=10):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

make.input_shape = (1, 8, 8)
"""

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an exported run of random weights, whose files have a free batch and a score on the digits' test images."""
    folder = folder_with(tmp_path_factory, small_network=NETWORK)
    none = ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0"]
    with inside_folder(folder):
        assert run(["compress", "small_network:make", "--data", "digits", "--macs", "0.6", *none, "-o", "run"]) == 0
        assert run(["onnx", "run", "--rounds", "0", "--dynamic", "batch"]) == 0
    return folder


def present() -> set[str]:
    return {path.name for path in Path("run").iterdir()} & {*OF_FORMATS}


def exported(name: str, runtime: str = "") -> Format:
    assert run(["export", "run", "--to", name]) == 0
    record = load_record(Path("run"))
    names = {file for files in IN_FORMATS[name].values() for file in files}
    assert names <= present()
    for file in names:
        record.check(Path("run"), file)
    found = record.formats[name]
    assert (found.runtime, found.precision, found.version[0].isdigit()) == (runtime or name, "float32", True)
    for made, of_onnx in ((found.dense, record.results.dense), (found.compressed, record.results.compressed)):
        assert made.bytes == sum((Path("run") / file).stat().st_size for file in made.files)
        assert 0 < made.relative_error < 1e-4
        assert of_onnx is not None
        assert of_onnx.accuracy is not None
        assert made.accuracy is not None
        assert made.accuracy.n == of_onnx.accuracy.n == 359
        assert made.accuracy.primary == pytest.approx(of_onnx.accuracy.primary, abs=2 / 359)
    return found


def test_openvino_keeps_a_free_batch_and_is_compared_at_two_sizes(capsys: pytest.CaptureFixture) -> None:
    found = exported("openvino")
    assert found.dense.sizes == ((1, 1, 8, 8), (2, 1, 8, 8))
    captured = capsys.readouterr()
    assert "model.openvino.xml, model.openvino.bin" in captured.out
    assert "of the largest output from model.onnx, top-1" in captured.err


def test_ncnn_gets_one_sample_and_earlier_formats_stay() -> None:
    before = present()
    assert exported("ncnn").dense.sizes == ((1, 1, 8, 8),)
    assert before < present()


def test_ort_files_are_one_of_the_formats_and_are_compared_with_several_batches() -> None:
    assert exported("ort", "onnxruntime").compressed.sizes == ((1, 1, 8, 8), (2, 1, 8, 8), (5, 1, 8, 8))
    assert {"dense.ort", "dense.arm.ort", "model.ort", "model.arm.ort"} <= present()


def test_the_next_export_removes_the_files_of_all_formats() -> None:
    assert {*OF_FORMATS} <= exporting._OPTIONAL
    record = load_record(Path("run"))
    assert exporting._unexported(record, {}).formats == {}


def test_nothing_is_written_if_a_runtime_computes_something_else(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    before = (Path("run") / "run.json").read_bytes(), present()
    python = fake_mnn(tmp_path).partition("python=")[2]
    source = (tmp_path / "MNN.py").read_text().replace("(1, 4, 6, 6)", "(1, 10)").replace('"y"', '"output"')
    (tmp_path / "MNN.py").write_text(source.replace('"x"', '"input"').replace("(1, 3, 8, 8)", "(1, 1, 8, 8)"))
    assert run(["export", "run", "--no-rescore", "--to", f"mnn?python={python}"]) == 3
    assert "dense.onnx in MNN differs from dense.onnx in ONNX Runtime by" in capsys.readouterr().err
    assert ((Path("run") / "run.json").read_bytes(), present()) == before
    assert not list(Path("run").glob(".export-*"))


COREMLTOOLS = """
import os
from types import SimpleNamespace
__version__ = "9.9"
precision, target = SimpleNamespace(FLOAT32="f32"), SimpleNamespace(iOS16=16)
given = SimpleNamespace(description=SimpleNamespace(input=[SimpleNamespace(name="x")], output=[SimpleNamespace(name="y")]))
def rename_feature(spec, old, new):
    (feature,) = [each for each in (*spec.description.input, *spec.description.output) if each.name == old]
    feature.name = new
utils = SimpleNamespace(rename_feature=rename_feature)
class Model:
    weights_dir = ""
    def __init__(self, spec=given, **options): self.spec = spec
    def get_spec(self): return self.spec
    def save(self, path):
        os.mkdir(path)
        names = [each.name for each in (*self.spec.description.input, *self.spec.description.output)]
        open(os.path.join(path, "Manifest.json"), "w").write(" ".join(names))
models = SimpleNamespace(MLModel=Model)
def convert(program, **options):
    assert options["compute_precision"] == "f32" and program.graph is not None
    return Model()
"""


@pytest.mark.slow
def test_core_ml_files_are_converted_and_not_run(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    program = python_with(tmp_path, coremltools=COREMLTOOLS)
    assert run(["export", "run", "--to", f"coreml?python={program}"]) == 0
    found = load_record(Path("run")).formats["coreml"]
    assert (found.version, found.dense.relative_error, found.dense.accuracy) == ("9.9", None, None)
    assert "model.mlpackage.zip" in capsys.readouterr().out
    with zipfile.ZipFile("run/model.mlpackage.zip") as archive:
        assert archive.namelist() == ["model.mlpackage/Manifest.json"]
        assert archive.read("model.mlpackage/Manifest.json") == b"input output"


@pytest.mark.parametrize(
    ("formats", "code", "words"),
    [
        ("openvio", 2, "Did you mean openvino?"),
        ("ncnn,", 2, "unknown format ''"),
        ("mnn?pyton=x", 2, "invalid format 'mnn?pyton=x': expected NAME[?python=PATH]"),
        ("mnn?python=", 2, "invalid format 'mnn?python='"),
        ("ort?python=/bin/python", 2, ".ort files are written under this Python"),
        ("mnn?python=/nowhere/python", 4, "cannot run the Python /nowhere/python"),
    ],
)
def test_a_format_that_cannot_be_had_is_refused_with_what_helps(
    formats: str, code: int, words: str, capsys: pytest.CaptureFixture
) -> None:
    assert run(["export", "run", "--no-rescore", "--to", formats]) == code
    assert words in capsys.readouterr().err
    assert "mnn" not in load_record(Path("run")).formats


def test_a_run_without_onnx_files_is_told_how_to_write_them(capsys: pytest.CaptureFixture) -> None:
    none = ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0"]
    assert run(["compress", "small_network:make", "--macs", "0.6", *none, "-o", "fresh"]) == 0
    assert run(["export", "fresh", "--to", "ncnn"]) == 2
    assert "lrexport onnx fresh" in capsys.readouterr().err


def test_json_of_a_record_with_formats_is_read_again() -> None:
    files = {"files": ["a"], "bytes": 1, "relative_error": 0.0, "sizes": [[1, 2]], "accuracy": None, "notes": []}
    files["quantisation"] = None
    found = {"runtime": "mnn", "version": "1", "precision": "float32", "dense": files, "compressed": files}
    how = {"tool": "MNN 1", "data": "digits", "images": 9, "agreement": 0.5, "sqnr_db": {}}
    found |= {"dense_int8": {**files, "quantisation": how}, "compressed_int8": None}
    assert json.loads(Format.model_validate(found).model_dump_json()) == found


def test_equal_shapes_are_compared_with_different_values() -> None:
    ports = [Port(name, [1, 3, 4, 4], "tensor(float)") for name in ("left", "right")]
    draws = [in_runtime._drawn(ports, number) for number in range(2)]
    assert len({draw[name].tobytes() for draw in draws for name in draw}) == 4
