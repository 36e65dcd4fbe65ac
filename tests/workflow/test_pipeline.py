"""The commands one after the other, as a user types them, on a small network and the embedded digits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import lrexport
from lrexport.artifacts.run_files import MARK
from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.data.images import ArraySet, ImageData
from lrexport.plan import Pair
from lrexport.runs.record import Record, load_record
from tests.folders import folder_with, inside_folder
from tests.forked import Forked

NETWORK = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes),
    )

make.input_shape = (1, 8, 8)
"""
QUICK = ["--data", "digits", "--dense-epochs", "6", "--svd-epochs", "3", "--batch-size", "32", "--device", "cpu"]
QUICK += ["--precision", "float32"]


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, flow_network=NETWORK)


@pytest.fixture(scope="module")
def compressed(folder: Path) -> Path:
    """A finished run."""
    with inside_folder(folder):
        assert run(["compress", "flow_network:make", *QUICK, "--macs", "0.6", "--examples", "6", "-o", "run 1"]) == 0
        assert run(["onnx", "run 1", "--rounds", "50"]) == 0
    return folder / "run 1"


def test_a_finished_run_holds_what_its_record_says(compressed: Path) -> None:
    record = load_record(compressed)
    names = {"dense.safetensors", "svd.safetensors", "model.safetensors", "model.onnx", "dense.onnx", "spectra.json"}
    names.add("examples.npz")
    assert set(record.files) == names
    for name in names:
        record.check(compressed, name)
    assert {path.name for path in compressed.iterdir()} == {*names, MARK, "run.json", "log.jsonl", "checkpoint"}
    assert not list((compressed / "checkpoint").iterdir())
    stages = [json.loads(line).get("stage") for line in (compressed / "log.jsonl").read_text().splitlines()]
    assert stages == ["dense"] * 6 + ["svd"] * 3 + [None] * 2 + ["fine-tune"] * 4
    assert any(isinstance(layer, Pair) for layer in record.plan.values())
    assert record.data is not None
    assert (record.data.train + record.data.heldout, record.data.test) == (1438, 359)
    assert (record.environment["device"], record.environment["precision"]) == ("cpu", "32-true")


def test_the_results_are_those_of_the_files(compressed: Path) -> None:
    record = load_record(compressed)
    test = load_data("digits", (1, 8, 8)).test
    for name, result in (("dense", record.results.dense), ("model", record.results.compressed)):
        assert result is not None
        assert result.macs_counted_on == "onnx"
        assert result.bytes == (compressed / f"{name}.onnx").stat().st_size
        session = onnxruntime.InferenceSession(str(compressed / f"{name}.onnx"))
        (batch, labels), *_ = test.batches(359, torch.device("cpu"))
        images = batch.only
        logits = np.concatenate([session.run(None, {"input": image[None].numpy()})[0] for image in images])
        assert result.accuracy is not None
        assert result.accuracy.top1 == pytest.approx(float((logits.argmax(1) == labels.numpy()).mean()))
        assert result.accuracy.top1 > 0.85
        assert result.latency_ms["local"].rounds == 50
    assert record.results.compressed.macs <= 0.6 * record.results.dense.macs
    macs = sum(layer.macs if isinstance(layer, Pair) else layer.dense_macs for layer in record.plan.values())
    assert record.results.compressed.macs == macs
    assert (record.results.dense.epochs, record.results.compressed.epochs) == (6, 13)


def test_load_gives_the_network_that_was_exported(compressed: Path) -> None:
    network = lrexport.load(compressed)
    images = torch.randn(1, 1, 8, 8)
    found = onnxruntime.InferenceSession(str(compressed / "model.onnx")).run(None, {"input": images.numpy()})[0]
    np.testing.assert_allclose(network(images).detach().numpy(), found, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_train_and_then_compress_gives_the_bits_that_compress_alone_gives(compressed: Path, folder: Path) -> None:
    assert run(["train", "flow_network:make", *QUICK, "-o", "staged"]) == 0
    assert run(["compress", "staged", *QUICK[-4:], "--macs", "0.6", "--batch-size", "32"]) == 0
    for name in ("dense", "svd", "model"):
        assert (folder / "staged" / f"{name}.safetensors").read_bytes() == (compressed / f"{name}.safetensors").read_bytes()
    one, other = load_record(compressed), load_record(folder / "staged")
    assert one.plan == other.plan
    assert one.results.compressed.accuracy == other.results.compressed.accuracy
    assert one.results.compressed.epochs == other.results.compressed.epochs


def test_a_run_gives_another_with_another_goal_and_is_left_as_it_was(compressed: Path, folder: Path) -> None:
    before = (compressed / "run.json").read_bytes()
    assert (
        run(["compress", "run 1", "--energy", "0.3", "--fine-tune-epochs", "1", "--baseline-epochs", "same", "-o", "b"]) == 0
    )
    assert (compressed / "run.json").read_bytes() == before
    record = load_record(folder / "b")
    assert record.config["goal"] == {"energy": 0.3}
    kept = [layer.energy_kept for layer in record.plan.values() if isinstance(layer, Pair)]
    assert min(kept) >= 0.7 - 1e-6
    assert (record.results.dense.epochs, record.results.compressed.epochs) == (10, 10)


def test_going_on_from_a_run_counts_every_epoch_once_and_keeps_what_its_stages_were_made_with(
    compressed: Path, folder: Path
) -> None:
    assert run(["compress", "run 1", "--macs", "0.5", "--fine-tune-epochs", "1", "--baseline-epochs", "2", "-o", "c"]) == 0
    assert run(["compress", "c", "--macs", "0.6", "--fine-tune-epochs", "2", "-o", "d"]) == 0
    first, second = load_record(folder / "c"), load_record(folder / "d")
    assert (first.results.dense.epochs, first.results.compressed.epochs) == (8, 10)
    assert (second.results.dense.epochs, second.results.compressed.epochs) == (6, 11)  # from the start, not the baseline
    assert second.files["dense.safetensors"] == load_record(compressed).files["dense.safetensors"]
    for name in ("seed", "heldout", "dense_epochs", "svd_epochs", "scheme", "sparsity_strength"):
        assert second.config[name] == load_record(compressed).config[name]


def test_a_goal_out_of_reach_leaves_a_finished_run_as_it_was(compressed: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path.name: path.read_bytes() for path in compressed.iterdir() if path.is_file()}
    assert run(["compress", "run 1", "--macs", "0.01"]) == 2
    assert "out of reach" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in compressed.iterdir() if path.is_file()} == before
    assert not list((compressed / "checkpoint").iterdir())  # nothing to take up either


@pytest.mark.parametrize("option", [["--seed", "3"], ["--svd-epochs", "9"], ["--scheme", "channel"], ["--heldout", "0.2"]])
def test_an_option_of_a_finished_stage_is_refused_for_a_run(
    compressed: Path, option: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert run(["compress", "run 1", "--macs", "0.5", "-o", "refused", *option]) == 2
    assert f"{option[0]} belongs to a stage" in capsys.readouterr().err


def test_grey_images_of_a_users_own_are_normalised_by_halves(folder: Path) -> None:
    data = load_data(f"{__name__}:grey_pairs", (1, 8, 8))
    (batch, _), *_ = data.train.batches(4, torch.device("cpu"))
    images = batch.only
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert data.mean == (0.5,)


def grey_pairs():
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    images[:, :, 0] = 255
    pairs = [(image, index % 2) for index, image in enumerate(images)]
    return pairs, pairs


def test_a_dry_run_prints_the_plan_and_writes_nothing(compressed: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(folder.iterdir())
    assert run(["compress", "run 1", "--macs", "0.5", "--dry-run", "--json", "-"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["macs"] <= 0.5 * plan["dense_macs"]
    assert set(plan["plan"]) == {"0", "3", "6", "10"}
    assert sorted(folder.iterdir()) == before


def test_json_on_stdout_is_the_record_and_nothing_else(compressed: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["inspect", "run 1", "--json", "-"]) == 0
    assert Record.model_validate(json.loads(capsys.readouterr().out)) == load_record(compressed)
    assert run(["inspect", "run 1/model.onnx", "--json", "-"]) == 0
    graph = json.loads(capsys.readouterr().out)
    assert graph["macs"] == load_record(compressed).results.compressed.macs
    assert sum(node["macs"] for node in graph["nodes"]) == graph["macs"]


def test_inspect_prints_layers_and_results_as_plain_lines_in_a_pipe(compressed: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["inspect", "run 1"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "energy kept" in out
    assert "latency p50 (local, 1 thread)" in out


def test_a_reader_that_stops_early_is_no_error(compressed: Path) -> None:
    command = [sys.executable, "-m", "lrexport", "inspect", "run 1/model.onnx", "--json", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in (process.stderr.read() if process.stderr else b"")


def test_a_folder_that_holds_a_run_is_not_overwritten(compressed: Path, capsys: pytest.CaptureFixture) -> None:
    before = (compressed / "run.json").read_bytes()
    assert run(["compress", "flow_network:make", "--macs", "0.5", "-o", "run 1"]) == 2
    assert "already has a run" in capsys.readouterr().err
    assert (compressed / "run.json").read_bytes() == before


def test_without_data_compression_is_training_free(folder: Path) -> None:
    assert run(["compress", "flow_network:make", "--macs", "0.7", "-o", "free"]) == 0
    assert run(["onnx", "free", "--batch", "dynamic", "--rounds", "0"]) == 0
    record = load_record(folder / "free")
    assert record.data is None
    assert record.results.compressed.accuracy is None
    assert record.results.compressed.epochs == 0
    assert "svd.safetensors" not in record.files


def test_training_options_without_data_are_named_as_doing_nothing(capsys: pytest.CaptureFixture) -> None:
    command = ["compress", "flow_network:make", "--macs", "0.7", "--dry-run"]
    assert run([*command, "--svd-epochs", "4", "--lr", "0.1", "--seed", "3"]) == 0
    assert "without --data nothing is trained; these options have no effect: --svd-epochs, --lr\n" in capsys.readouterr().err
    for arguments in (command, [*command, "--data", "digits", "--svd-epochs", "4"]):
        assert run(arguments) == 0
        assert "nothing is trained" not in capsys.readouterr().err


def test_a_run_that_has_data_needs_no_data_option_for_its_training_options(
    compressed: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(["compress", "run 1", "--macs", "0.6", "--fine-tune-epochs", "9", "--dry-run"]) == 0
    assert "nothing is trained" not in capsys.readouterr().err


class Counting(ArraySet):
    looks = 0

    def batches(self, *arguments, **named):
        type(self).looks += 1
        return super().batches(*arguments, **named)


def counted_data() -> ImageData:
    digits = load_data("digits", (1, 8, 8))
    test = Counting(digits.test.images, digits.test.labels, digits.mean, digits.std)
    return ImageData("counted", digits.classes, digits.train, test, None, digits.mean, digits.std)


@pytest.mark.slow
def test_the_test_images_are_looked_at_once_per_network(folder: Path) -> None:
    Counting.looks = 0
    arguments = ["--data", f"{__name__}:counted_data", "--dense-epochs", "2", "--svd-epochs", "1", *QUICK[6:]]
    assert run(["compress", "flow_network:make", *arguments, "--macs", "0.6", "-o", "counted"]) == 0
    assert Counting.looks == 2  # the dense and the compressed network, at the end


def test_an_option_beats_the_environment_beats_the_file_beats_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def threshold(*options: str) -> float:
        assert run(["compress", "flow_network:make", "--dry-run", "--json", "-", *options]) == 0
        return json.loads(capsys.readouterr().out)["threshold"]

    (folder / "lrexport.toml").write_text("[compress]\nenergy = 0.3\n", encoding="utf-8")
    try:
        assert threshold() == pytest.approx(0.3)
        monkeypatch.setenv("LREXPORT_COMPRESS_ENERGY", "0.2")
        assert threshold() == pytest.approx(0.2)
        assert threshold("--energy", "0.1") == pytest.approx(0.1)
        assert (
            0 < threshold("--macs", "0.9", "--rule", "threshold") < 0.2
        )  # another goal on the command line replaces the file's
    finally:
        (folder / "lrexport.toml").unlink()


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_in_training_ends_it_with_its_code_and_keeps_what_was_written(folder: Path, number: int, code: int) -> None:
    name = f"stopped-{code}"
    command = ["compress", "flow_network:make", "--data", "digits", "--macs", "0.6"]
    process = Forked(folder, *command, "--dense-epochs", "1", "--svd-epochs", "5000", "-o", name)
    process.until("SVD training: epoch 3/")
    process.send(number)
    assert process.wait() == code
    assert "Traceback" not in process.output
    record = load_record(folder / name)
    record.check(folder / name, "dense.safetensors")
    time.sleep(0.1)
    assert len(list((folder / name / "checkpoint").glob("svd-*.safetensors"))) == 2
