"""Held-out pictures that a run keeps with the outputs of both networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lrexport.artifacts.run_files import EXAMPLES
from lrexport.cli.main import run as cli
from lrexport.data.images import ImageData
from lrexport.data.tensor_set import TensorSet
from lrexport.runs.examples import NOT_COUNTED, Examples, read_examples
from lrexport.runs.record import load_record
from lrexport.signature import Signature
from lrexport.tasks.classification import CLASSIFICATION
from lrexport.tasks.detection import Detection
from lrexport.tasks.fidelity import Fidelity
from lrexport.tasks.image import ImageToImage
from lrexport.tasks.segmentation import IGNORED, Segmentation
from lrexport.tasks.task import Task
from lrexport.torch_tools.batch import Batch

CPU = torch.device("cpu")


def _made(
    dense: nn.Module, compressed: nn.Module, images: Tensor, targets: Any, task: Task | None, most: int = 4
) -> Examples | None:
    from lrexport.workflow.examples import make_examples

    held = TensorSet(Batch.of(images), Signature.of(images.shape[1:]), targets)
    data = ImageData("samples", ("a", "b", "c"), held, held)
    return make_examples(dense, compressed, data, held, task, CPU, most, 0, 10**6)


NETWORK = """
from torch import nn

def make(num_classes=2):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )

make.input_shape = (3, 32, 32)
"""


class _Scores(nn.Module):
    """Scores of three classes from the mean of each channel, worse for images whose first pixel is 1."""

    def __init__(self, spoilt: bool = False) -> None:
        super().__init__()
        self.spoilt = spoilt

    def forward(self, x: Tensor) -> Tensor:
        scores = 10 * x.mean((2, 3))
        return scores - 20 * x[:, :1, 0, 0] * torch.tensor([1.0, 0, 0]) if self.spoilt else scores


def _images(count: int = 12) -> Tensor:
    images = torch.zeros(count, 3, 6, 6)
    images[:, 0] = 0.5
    images[:, :, 0, 0] = 0
    images[5, 0, 0, 0] = images[9, 0, 0, 0] = 1
    return images


def test_the_worst_pictures_are_those_that_lose_the_class_and_all_others_are_drawn() -> None:
    made = _made(_Scores(), _Scores(spoilt=True), _images(), torch.zeros(12, dtype=torch.int64), CLASSIFICATION)
    assert made is not None
    assert sorted(each.number for each in made.about.examples if each.why == "worst") == [5, 9]
    assert [each.why for each in made.about.examples] == ["random", "random", "worst", "worst"]
    worst = made.about.examples[-1]
    assert (worst.form, worst.label, worst.dense_score, worst.score) == ("classes", 0, 1.0, 0.0)
    assert worst.dense.guesses[0].label == 0
    assert len(worst.dense.guesses) == 3
    assert made.of(0, "picture").shape == (6, 6, 3)


def test_pictures_of_unknown_range_are_stretched_and_those_from_zero_to_one_are_not() -> None:
    labels = torch.zeros(12, dtype=torch.int64)
    plain = _made(_Scores(), _Scores(), _images(), labels, CLASSIFICATION)
    wide = _made(_Scores(), _Scores(), 8 * _images() - 3, labels, CLASSIFICATION)
    assert plain is not None
    assert wide is not None
    assert not plain.about.examples[0].stretched
    assert plain.of(0, "picture")[3, 3].tolist() == [128, 0, 0]
    assert wide.about.examples[0].stretched


class _Maps(nn.Module):
    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(self.shift, 1)


@pytest.mark.parametrize("size", [6, 300])
def test_masks_have_the_size_of_the_picture_and_leave_pixels_out(size: int) -> None:
    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    masks = images.argmax(1)
    masks[:, 0] = IGNORED
    made = _made(_Maps(), _Maps(1), images, masks, Segmentation(), 2)
    assert made is not None
    side = min(size, 256)
    example = made.about.examples[1]
    assert (example.form, example.dense_score, example.score) == ("masks", 1.0, 0.0)
    assert made.of(1, "target").shape == made.of(1, "dense").shape == made.of(1, "picture").shape[:2] == (side, side)
    assert (made.of(1, "target")[0] == NOT_COUNTED).all()
    if size == 6:
        assert (made.of(1, "target")[1:] == made.of(1, "dense")[1:]).all()


class _Detector(nn.Module):
    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        boxes = torch.tensor([[1.0, 1, 4, 6], [0, 0, 2, 2]])
        return [{"boxes": boxes, "scores": torch.tensor([self.score, 0.1]), "labels": torch.tensor([1, 2])} for _ in x]


def test_boxes_are_shares_of_the_picture_and_those_of_low_score_are_left_out() -> None:
    targets = [{"boxes": torch.tensor([[1.0, 1, 4, 6]]), "labels": torch.tensor([1])} for _ in range(3)]
    made = _made(_Detector(0.9), _Detector(0.2), _images()[:3], targets, Detection(), 2)
    assert made is not None
    example = made.about.examples[0]
    assert example.form == "boxes"
    assert example.target is not None
    assert [box.label for box in example.target.boxes] == [1]
    assert example.dense.boxes[0].corners == pytest.approx((1 / 6, 1 / 6, 4 / 6, 1))
    assert len(example.dense.boxes) == 1
    assert example.compressed.boxes == ()
    assert example.dense_score == pytest.approx(1.0)


def test_pictures_of_networks_are_kept_with_their_targets() -> None:
    images = torch.rand(4, 3, 12, 12)
    made = _made(nn.Identity(), nn.Sequential(nn.Upsample(scale_factor=1)), images, images, ImageToImage(), 2)
    assert made is not None
    assert made.about.examples[0].form == "pictures"
    assert (made.of(0, "target") == made.of(0, "dense")).all()


def test_without_labels_the_least_like_the_dense_network_are_the_worst() -> None:
    task = Fidelity().with_dense(_Scores())
    made = _made(_Scores(), _Scores(spoilt=True), _images(), None, task)
    assert made is not None
    assert sorted(each.number for each in made.about.examples if each.why == "worst") == [5, 9]
    assert made.about.examples[-1].score == pytest.approx(made.about.examples[-1].sqnr_db["output"], abs=0.01)
    assert made.about.examples[-1].form == "classes"


class _Vectors(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"first": x.flatten(2), "second": x.mean((1, 2, 3))}


def test_other_outputs_are_compared_by_name() -> None:
    made = _made(_Vectors(), _Vectors(), _images(), None, None)
    assert made is not None
    assert made.about.examples[0].form == "values"
    assert made.about.examples[0].sqnr_db.keys() == {"first", "second"}


@pytest.mark.parametrize("shape", [(3, 16), (5, 6, 6), (4, 8, 8, 8)])
def test_inputs_that_are_no_pictures_are_not_kept(shape: tuple[int, ...]) -> None:
    assert _made(nn.Flatten(), nn.Flatten(), torch.rand(4, *shape), None, None) is None


class _NoMeter(Task):
    name = "odd"
    metric_infos = CLASSIFICATION.metric_infos

    def meter(self) -> Any:
        raise ZeroDivisionError


def test_a_task_that_cannot_judge_one_sample_leaves_the_choice_to_the_outputs() -> None:
    made = _made(_Scores(), _Scores(spoilt=True), _images(), torch.zeros(12, dtype=torch.int64), _NoMeter())
    assert made is not None
    assert sorted(each.number for each in made.about.examples if each.why == "worst") == [5, 9]


def test_compress_keeps_pictures_in_the_run_unless_asked_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("pictured_network.py").write_text(NETWORK, encoding="utf-8")
    rng = np.random.default_rng(0)
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "data" / place).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / place / f"{number}.png")
    quick = ["--no-export-check", "--device", "cpu", "--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0"]
    line = ["compress", "pictured_network:make", "--data", f"folder:{tmp_path / 'data'}", "--macs", "0.5", *quick]
    assert cli([*line, "-o", "run", "--heldout", "0.2", "--examples", "3"]) == 0
    record = load_record(Path("run"))
    made = read_examples(Path("run"), record)
    assert made is not None
    assert [each.why for each in made.about.examples] == ["random", "random", "worst"]
    assert made.of(0, "picture").dtype == np.uint8
    assert not made.about.examples[0].stretched
    # Compressed once more in place without pictures, the earlier ones are removed.
    assert cli(["compress", "run", "--macs", "0.4", "--fine-tune-epochs", "0", "--examples", "0"]) == 0
    assert not (Path("run") / EXAMPLES).exists()
    assert EXAMPLES not in load_record(Path("run")).files
    assert cli([*line, "-o", "other", "--examples", "17"]) == 2
