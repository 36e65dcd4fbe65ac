"""Data without classes: its inputs weight the ranks and repair the layers, and networks follow the dense one on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lrexport.cli.main import run
from lrexport.report.repeat_commands import commands
from lrexport.runs.loading import load, load_start
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder

NETWORKS = """
    import torch
    from torch import nn

    def masks():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(),
            nn.Conv2d(24, 2, 1),
        )

    masks.input_shape = (3, 12, 12)

    class Text(nn.Module):
        inputs = {"tokens": "8:int64:0..29"}

        def __init__(self):
            super().__init__()
            self.table, self.conv, self.head = nn.Embedding(30, 32), nn.Conv1d(32, 32, 3), nn.Linear(32, 4)

        def forward(self, tokens):
            return self.head(self.conv(self.table(tokens).transpose(1, 2)).relu().amax(2))

    def text():
        torch.manual_seed(0)
        return Text()

    text.inputs = Text.inputs

    def sounds():
        return list(torch.randn(40, 1, 64, generator=torch.Generator().manual_seed(0)))

    def sound():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(1, 24, 5), nn.ReLU(), nn.Conv1d(24, 24, 5), nn.ReLU(), nn.Conv1d(24, 3, 1))

    sound.input_shape = (1, 64)
"""
QUICK = ("--no-export-check", "--device", "cpu", "--precision", "float32")
UNTRAINED = ("--heal-minutes", "0", "--fine-tune-epochs", "0")


@pytest.fixture(autouse=True)
def inside(tmp_path_factory: pytest.TempPathFactory):
    """A folder with networks, pictures without classes, and arrays."""
    folder = folder_with(tmp_path_factory, nets=NETWORKS)
    generator = np.random.default_rng(0)
    for index in range(40):
        path = folder / "pictures" / f"{index % 3}" / "deep" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (12 + index % 5, 20, 3), dtype=np.uint8)).save(path)
    np.savez(folder / "text.npz", tokens=generator.integers(0, 30, (40, 8)))
    with inside_folder(folder):
        yield


CASES = {
    "pictures": ("nets:masks", "images:pictures", (29, 3, 8)),
    "tokens": ("nets:text", "arrays:text.npz", (29, 3, 8)),
    "a callable": ("nets:sound", "nets:sounds", (29, 3, 8)),
}


@pytest.mark.parametrize(
    "what", ["pictures", *(pytest.param(each, marks=pytest.mark.slow) for each in ("tokens", "a callable"))]
)
def test_data_without_classes_repairs_heals_and_trains_the_layers(what: str, capsys: pytest.CaptureFixture) -> None:
    model, source, counts = CASES[what]
    short = ("--fine-tune-epochs", "2", "--batch-size", "8", "--heal-minutes", "0.05", "--lr", "0.01")
    assert run(["compress", model, "--data", source, "--macs", "0.5", "-o", "run", *short, *QUICK]) == 0
    said = capsys.readouterr().err
    train, heldout, test = counts
    assert f"data {source}: {train} training, {heldout} held-out and {test} test samples" in said
    assert f"choosing ranks, with {train} training" in said
    record = load_record(Path("run"))
    assert record.data is not None
    assert (record.data.train, record.data.heldout, record.data.test) == counts
    assert (record.results.dense.epochs, record.results.compressed.epochs) == (0, 2)
    assert record.fidelity.healed["SQNR"] >= record.fidelity.repaired["SQNR"]
    assert "fidelity to the network before pruning: " in said
    assert f"{source} is used without targets: only healing and fine-tuning train" in said
    assert "fine-tuning: epoch 2/2" in said
    score = record.results.compressed.accuracy
    assert (score.task, score.metric.name, score.metric.unit, score.n) == ("fidelity", "SQNR", "dB", counts[2])
    assert ("agreement" in score.metrics) == (what == "tokens")
    assert score.primary < record.results.dense.accuracy.primary == 80  # of the dense network to itself
    assert run(["compress", model, "--macs", "0.5", "-o", "blind", *QUICK]) == 0
    assert _error("run") < _error("blind")


@pytest.mark.parametrize("usual", [10, 40])
def test_outputs_far_below_what_is_usual_get_a_warning(
    usual: float, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrexport.workflow.stages.USUAL_DB", usual)
    command = ["compress", "nets:sound", "--data", "nets:sounds", "--macs", "0.2", "-o", "run", *QUICK, *UNTRAINED]
    assert run(command) == 0
    printed = capsys.readouterr()
    record = load_record(Path("run"))
    kept = record.results.compressed.accuracy.primary
    assert 5 < kept < 30  # dB
    warning = f"the outputs follow the dense network's with only {kept:.1f} dB SQNR; {usual} dB are usual"
    assert any(note.startswith(warning) for note in record.notes) == (usual == 40)
    assert (warning in printed.err) == (usual == 40)
    fidelity = f"fidelity to the network before pruning {record.fidelity.repaired['SQNR']:.1f} dB SQNR repaired"
    assert fidelity in " ".join(printed.out.split())


def _error(folder: str) -> float:
    """How far the compressed network of a run is from its dense one, on inputs like those that it was repaired with."""
    path = Path(folder)
    record = load_record(path)
    dense, small = load_start(path, record), load(path, trust_code=True)
    generator = torch.Generator().manual_seed(1)
    (spec,) = record.model.signature
    shape = (40, *spec.shape)
    if spec.is_float:
        inputs = (
            torch.rand(shape, generator=generator).sub(0.45).div(0.225)
            if len(shape) == 4
            else torch.randn(shape, generator=generator)
        )
    else:
        inputs = torch.randint(0, 30, shape, generator=generator)
    with torch.no_grad():
        truth = dense(inputs)
        return float((small(inputs) - truth).square().mean() / truth.var())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["compress", "nets:masks", "--accuracy-drop", "1"], "needs labelled images"),
        (["compress", "nets:masks", "--accuracy-drop", "1", "--task", "fidelity"], "needs labelled images"),
        (["train", "nets:masks"], "images:pictures has no targets: nothing is trained"),
    ],
)
def test_what_needs_classes_is_refused(command: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run([*command, "--data", "images:pictures", "-o", "run", *QUICK]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run/model.safetensors").exists()


def test_the_preprocessing_is_said_saved_and_used_again_by_the_export(capsys: pytest.CaptureFixture) -> None:
    asked = ("--mean", "0.5", "--std", "0.25", "--value-range", "0..2", "--resize", "14", "--channel-order", "bgr")
    options = [*asked, "--macs", "0.5", *QUICK, *UNTRAINED]
    assert run(["compress", "nets:masks", "--data", "images:pictures", *options, "-o", "run"]) == 0
    said = "12 × 12, cut from a shorter side of 14, BGR, values 0..2, mean 0.5, std 0.25 (as given)"
    assert f"pictures: {said}\n" in capsys.readouterr().err
    data = load_record(Path("run")).data
    assert data is not None
    assert data.preprocessing is not None
    assert str(data.preprocessing.value) == said
    assert (data.mean, data.std) == ((0.5,) * 3, (0.25,) * 3)
    assert run(["compress", "run", "--macs", "0.4", "-o", "again", "--device", "cpu", *UNTRAINED]) == 0
    assert f"pictures: {said}\n" in capsys.readouterr().err
    assert run(["onnx", "again", "--rounds", "0"]) == 0
    assert load_record(Path("again")).data == data


def test_int8_is_calibrated_on_pictures_without_labels(capsys: pytest.CaptureFixture) -> None:
    assert run(["compress", "nets:masks", "--macs", "0.5", "-o", "run", *QUICK]) == 0
    assert run(["onnx", "run", "--data", "images:pictures", "--int8", "--rounds", "0"]) == 0
    record = load_record(Path("run"))
    assert record.results.compressed_int8.quantisation.data == "images:pictures"
    assert record.results.compressed_int8.quantisation.images == 3


def test_a_report_repeats_the_preprocessing_and_shows_it() -> None:
    asked = ["--mean", "0.5", "--std", "0.25,0.5,0.25", "--value-range=-1..1", "--crop", "none"]
    command = ["compress", "nets:masks", "--data", "images:pictures", *asked, "--macs", "0.5"]
    assert run([*command, "-o", "run", *QUICK, *UNTRAINED]) == 0
    (line,) = commands(load_record(Path("run")), "run")
    assert " ".join(asked) in " ".join(line)
    assert run([*line[1:-2], "-o", "again"]) == 0
    assert load_record(Path("again")).data == load_record(Path("run")).data
    assert run(["report", "run", "-o", "page.html"]) == 0
    assert "not cropped, RGB, values -1..1, mean 0.5, std 0.25, 0.5, 0.25" in Path("page.html").read_text(encoding="utf-8")


def test_classes_of_pictures_are_not_used_for_a_network_that_returns_maps(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (Path("classes") / place).mkdir(parents=True, exist_ok=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path("classes") / place / f"{number}.png")
    line = ["compress", "nets:masks", "--data", "folder:classes", "--macs", "0.5", *QUICK, *UNTRAINED]
    assert run([*line, "-o", "of_classes"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "has classes, but the network returns no scores of classes: it is used without targets" in said
    record = load_record(Path("of_classes"))
    assert record.results.compressed is not None
    assert record.results.compressed.accuracy is not None
    assert record.results.compressed.accuracy.metric.name == "SQNR"
    # The user may still ask for the classes.
    assert run([*line, "-o", "asked", "--task", "classification"]) == 3
    assert "expected (batch, classes)" in capsys.readouterr().err
