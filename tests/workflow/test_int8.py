"""``lrexport onnx --int8`` as a user types it, on a small network that knows the digits."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime import quantization

from lrexport.artifacts import tensors
from lrexport.artifacts.run_files import MARK
from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, ImageData, hold_out
from lrexport.runs.record import load_record
from tests.formats.digits_net import SHAPE, fitted

FILES = {"dense.onnx", "dense.int8.onnx", "model.onnx", "model.int8.onnx"}
DIGITS = ["--data", "digits", "--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of the same weights: "with data", heldout a fifth of it by seed 5, and "without"."""
    folder = tmp_path_factory.mktemp("int8")
    tensors.save(folder / "weights.safetensors", fitted().state_dict())
    (folder / "plan.json").write_text('{"stem": {"scheme": "spatial", "rank": 2}, "head": {"scheme": "linear", "rank": 8}}')
    start = ["compress", "tests.formats.digits_net:Residual", "--weights", str(folder / "weights.safetensors")]
    start += ["--plan", str(folder / "plan.json")]
    assert run([*start, *DIGITS, "--seed", "5", "--heldout", "0.2", "-o", str(folder / "with data")]) == 0
    assert run([*start, "-o", str(folder / "without")]) == 0
    return folder


@dataclass
class Export:
    """What an export wrote to stdout and stderr, and every image that the quantiser was fed."""

    out: str
    err: str
    fed: list[np.ndarray]


def export(*arguments: str) -> Export:
    fed: list[np.ndarray] = []
    real = quantization.quantize_static

    class Spy:
        def __init__(self, reader: Any) -> None:
            self.reader = reader

        def get_next(self) -> Any:
            batch = self.reader.get_next()
            fed.extend([] if batch is None else batch["input"])
            return batch

    def quantise_static(source: str, path: str, reader: Any, **named: Any) -> None:
        real(source, path, Spy(reader), **named)

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        patch.setattr(quantization, "quantize_static", quantise_static)
        assert run(["onnx", *arguments]) == 0
    return Export(out.getvalue(), err.getvalue(), fed)


@pytest.fixture(scope="module")
def done(runs: Path) -> Export:
    """The export of the run "exported"."""
    return export(str(shutil.copytree(runs / "with data", runs / "exported")), "--int8", "--rounds", "50")


@pytest.fixture(scope="module")
def exported(runs: Path, done: Export) -> Path:
    return runs / "exported"


def test_the_record_tells_of_all_four_files_what_is_in_them(exported: Path) -> None:
    record = load_record(exported)
    assert {name for name in record.files if name.endswith(".onnx")} == FILES
    assert {path.name for path in exported.glob("*.onnx")} == FILES
    assert [path.name for path in exported.iterdir() if path.name.startswith(".")] == [MARK]
    test = load_data("digits", SHAPE).test
    (batch, labels), *_ = test.batches(len(test), torch.device("cpu"))
    images = batch.only
    for name in FILES:
        content, result = (exported / name).read_bytes(), record.result_of(name)
        assert result is not None
        assert record.files[name].sha256 == hashlib.sha256(content).hexdigest()
        assert result.bytes == record.files[name].bytes == len(content)
        assert result.precision == ("int8" if "int8" in name else "float32")
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        logits = np.concatenate([session.run(None, {"input": image[None].numpy()})[0] for image in images])
        assert result.accuracy is not None
        # Pixels of 0…255 lie exactly between two steps of the int8 input: the last bit of a float decides on a near-tie.
        close = 3.5 / len(test) if "int8" in name else 1e-6
        assert result.accuracy.top1 == pytest.approx(float((logits.argmax(1) == labels.numpy()).mean()), abs=close)
        assert (result.accuracy.n, result.accuracy.split) == (len(test), "test")
        assert result.latency_ms["local"].rounds == 50
        assert (result.latency_ms["local"].ratio is None) == (name == "dense.onnx")


def test_int8_has_the_macs_of_float32_and_says_how_it_came_about(exported: Path) -> None:
    record = load_record(exported)
    found = record.results
    for float32, int8 in ((found.dense, found.dense_int8), (found.compressed, found.compressed_int8)):
        assert float32.quantisation is None
        assert (int8.macs, int8.params, int8.macs_counted_on) == (float32.macs, float32.params, "onnx")
        assert (int8.quantisation.data, int8.quantisation.images) == ("digits", record.data.heldout)
        assert int8.quantisation.int8_macs == int8.macs
        assert 0.9 < int8.quantisation.agreement <= 1
        assert abs(int8.accuracy.top1 - float32.accuracy.top1) < 0.05


def test_the_record_survives_a_round_trip_and_records_of_before_are_read(exported: Path, tmp_path: Path) -> None:
    record = load_record(exported)
    record.save(tmp_path)
    assert load_record(tmp_path) == record
    value = json.loads((exported / "run.json").read_text())
    for name in ("dense_int8", "compressed_int8"):
        del value["results"][name]
    for name in ("dense", "compressed"):
        del value["results"][name]["quantisation"]
    (tmp_path / "run.json").write_text(json.dumps(value))
    old = load_record(tmp_path)
    assert old.results.dense == record.results.dense
    assert old.results.dense_int8 is old.results.compressed_int8 is None


def untouchable() -> ImageData:
    """The digits, whose test images nobody may look at."""

    class Untouchable(ArraySet):
        def batches(self, *arguments: Any, **named: Any) -> Any:
            raise AssertionError("the test images were looked at")

    digits = load_data("digits", SHAPE)
    assert isinstance(digits.test, ArraySet)
    test = Untouchable(digits.test.images, digits.test.labels, digits.mean, digits.std)
    return ImageData("mine", digits.classes, digits.train, test, None, digits.mean, digits.std)


def check_fed(fed: list[np.ndarray], heldout: float, seed: int, count: int) -> None:
    """Both files were given ``count`` different images of all classes, all of them held out."""
    held = hold_out(load_data("digits", SHAPE), heldout, seed=seed).heldout
    (batch, labels), *_ = held.batches(len(held), torch.device("cpu"))
    images = batch.only
    where = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    assert len(fed) == 2 * count
    for file in (fed[:count], fed[count:]):
        assert len({image.tobytes() for image in file}) == count
        assert {where[image.tobytes()] for image in file} == set(range(10))  # not the first class of a folder alone


def test_it_is_calibrated_on_the_images_that_the_run_held_out(done: Export, exported: Path) -> None:
    record = load_record(exported)
    assert record.data is not None
    check_fed(done.fed, 0.2, 5, record.data.heldout)


def test_a_run_without_data_is_calibrated_on_training_images_of_data_that_are_given(runs: Path) -> None:
    options = ["--int8", "--data", f"{__name__}:untouchable", "--no-rescore", "--rounds", "0", "--calibration-images", "60"]
    found = export(str(runs / "without"), *options)
    check_fed(found.fed, 0.1, 0, 60)
    results = load_record(runs / "without").results
    for result in (results.dense_int8, results.compressed_int8):
        assert (result.quantisation.data, result.quantisation.images) == (f"{__name__}:untouchable", 60)
        assert result.accuracy is None
    assert "MACs in int8" in found.out
    assert "change by int8" not in found.out  # nothing was scored


def test_what_int8_costs_is_printed(exported: Path, done: Export) -> None:
    found = load_record(exported).results
    for name, int8, float32 in (
        ("dense", found.dense_int8, found.dense),
        ("model", found.compressed_int8, found.compressed),
    ):
        line = next(line for line in done.err.splitlines() if line.startswith(f"{name}.int8.onnx: "))
        change = 100 * (int8.accuracy.top1 - float32.accuracy.top1)
        assert f"; top-1 {100 * int8.accuracy.top1:.2f} %, {change:+.2f} points to float32" in line
        assert f"same class as {name}.onnx on {100 * int8.quantisation.agreement:.2f} % of" in line
        assert "100.0 % of MACs in int8" in line
    rows = {line.split("  ")[0]: line.split() for line in done.out.splitlines()}
    assert rows["int8"] == ["int8", "dense", "ratio", "compressed", "ratio"]
    assert rows["float32"] == ["float32", "dense", "compressed", "ratio"]
    assert "change by int8, points" in rows


def test_an_export_without_int8_takes_the_older_int8_files_away(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = shutil.copytree(exported, tmp_path / "run")
    assert run(["onnx", str(path), "--rounds", "0"]) == 0
    captured = capsys.readouterr()
    assert "removed files of an earlier export: dense.int8.onnx, model.int8.onnx" in captured.err
    assert "int8" not in captured.out
    record = load_record(path)
    assert record.results.dense_int8 is record.results.compressed_int8 is None
    assert {name for name in record.files if name.endswith(".onnx")} == {"dense.onnx", "model.onnx"}
    assert {file.name for file in path.glob("*.onnx")} == {"dense.onnx", "model.onnx"}


def test_a_run_that_is_compressed_anew_keeps_no_int8_files_of_before(exported: Path, tmp_path: Path) -> None:
    path = shutil.copytree(exported, tmp_path / "run")
    assert run(["compress", str(path), *DIGITS[:2], "--fine-tune-epochs", "0", "--device", "cpu", "--macs", "0.9"]) == 0
    assert not list(path.glob("*.onnx"))
    assert load_record(path).results.dense_int8 is None
