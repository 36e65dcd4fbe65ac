"""--teacher: distillation from another network than the run's own dense one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lrexport
from lrexport.artifacts import tensors
from lrexport.cli.main import run
from lrexport.data.datasets import load_data
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.runs.record import load_record
from lrexport.workflow import stages
from tests.folders import folder_with
from tests.runs.test_resume import NETWORK

TEACHERS = """
import torch
from torch import nn

class Threes(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.classes = nn.Parameter(8.0 * nn.functional.one_hot(torch.tensor(3), classes).float())

    def forward(self, x):
        return self.classes + 0 * x.flatten(1).sum(1, keepdim=True)

def threes():
    return Threes()

def two_classes():
    return Threes(4)
"""
SHORT = ["compress", "taught_network:make", "--data", "digits", "--macs", "0.6", "--batch-size", "64", "--device", "cpu"]
SHORT += ["--precision", "float32", "--dense-epochs", "1", "--svd-epochs", "1", "--fine-tune-epochs", "3", "--lr", "0.05"]


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, taught_network=NETWORK, teachers=TEACHERS)


@pytest.fixture
def taught_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module | None]:
    """The teachers of the stages that were trained, by the stage."""
    found: dict[str, nn.Module | None] = {}
    train_stage = stages.train_stage

    def watched(network: nn.Module, splits: Any, stage: Any, *others: Any, **more: Any) -> None:
        found[stage.name] = more.get("teacher")
        train_stage(network, splits, stage, *others, **more)

    monkeypatch.setattr(stages, "train_stage", watched)
    return found


def test_a_network_that_learns_from_the_teacher_alone_says_what_the_teacher_says(folder: Path) -> None:
    assert run([*SHORT, "--teacher", "teachers:threes", "--distill", "1", "-o", "threes"]) == 0
    (batch, _), *_ = load_data("digits", (1, 8, 8)).test.batches(359, torch.device("cpu"))
    images = batch.only
    with torch.no_grad():
        said = lrexport.load("threes")(images).argmax(1)
    assert float((said == 3).float().mean()) > 0.95
    assert load_record(folder / "threes").config["teacher"] == "teachers:threes"


def test_a_run_teaches_with_its_dense_network_and_nothing_is_taught_before_svd_training(
    folder: Path, taught_by: dict[str, nn.Module | None]
) -> None:
    assert run([*SHORT, "-o", "own"]) == 0
    own = {stage: teacher for stage, teacher in taught_by.items() if teacher is not None}
    assert run([*SHORT, "--seed", "1", "--teacher", "own", "-o", "taught"]) == 0
    assert own.keys() == {"svd", "fine-tune"}
    assert taught_by.keys() == {"dense", "svd", "fine-tune"}
    assert taught_by["dense"] is None
    for teacher in (own["svd"], taught_by["svd"], taught_by["fine-tune"]):
        assert teacher is not None
        for name, value in tensors.load(folder / "own" / "dense.safetensors").items():
            assert torch.equal(teacher.state_dict()[name], value), name
    record = load_record(folder / "taught")
    assert record.digests["teacher_sha256"] == load_record(folder / "own").files["dense.safetensors"].sha256
    # A run that goes on has the teacher that it is given, not the one that it had.
    assert run(["compress", "taught", "--macs", "0.5", "--fine-tune-epochs", "1", "-o", "alone"]) == 0
    assert "teacher_sha256" not in load_record(folder / "alone").digests
    assert run(["compress", "taught", "--macs", "0.5", "--teacher", "resnet32", "--dry-run"]) == 2
    assert not torch.equal(taught_by["fine-tune"].state_dict()["0.weight"], teacher.state_dict()["0.weight"])


@pytest.mark.slow
def test_weights_of_a_teacher_with_a_known_name_are_loaded(folder: Path, taught_by: dict[str, nn.Module | None]) -> None:
    torch.manual_seed(5)
    larger = CifarResNet(32)
    tensors.save(folder / "larger.safetensors", larger.state_dict())
    small = ["compress", "resnet20", "--data", "digits", "--input-shape", "3,8,8", "--macs", "0.5", "--heldout", "0.5"]
    small += ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "1", "--calibration-images", "64"]
    assert run([*small, "--teacher", "resnet32", "--teacher-weights", "larger.safetensors", "-o", "larger"]) == 0
    teacher = taught_by["fine-tune"]
    assert teacher is not None
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in larger.state_dict().items())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--teacher", "resnet32"], 2, "the teacher resnet32: it has random weights"),
        (["--teacher", "resnet33"], 2, "the teacher resnet33: unknown MODEL 'resnet33'"),
        (["--teacher", "teachers:none"], 2, "the teacher teachers:none: "),
        (["--teacher", "own", "--teacher-weights", "own/dense.safetensors"], 2, "it is a run, which has its own weights"),
        (["--teacher", "untrained"], 2, "the teacher untrained: the dense network of this run has random weights"),
        (["--teacher", "untrained-on"], 2, "the teacher untrained-on: the dense network of this run has random weights"),
        (["--teacher", "teachers:threes", "--distill", "0"], 2, "--teacher has no effect with --distill 0"),
        (["--teacher-weights", "w.safetensors"], 2, "--teacher-weights requires --teacher"),
        (["--teacher", "teachers:two_classes"], 3, "the teacher teachers:two_classes: digits has 10 classes"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_any_training(
    options: list[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options[1].startswith("untrained") and not Path("untrained").exists():
        small = ["resnet20", "--input-shape", "3,8,8", "--macs", "0.5"]
        assert (
            run(["compress", *small, "-o", "untrained"])
            == run(["compress", "untrained", *small[3:], "-o", "untrained-on"])
            == 0
        )
    if "own" in options and not Path("own").exists():
        assert run([*SHORT, "-o", "own"]) == 0
    assert run([*SHORT, *options, "--dry-run"]) == code
    assert said in capsys.readouterr().err
    assert run([*SHORT, *options, "-o", "refused"]) == code
    assert said in capsys.readouterr().err
    assert not (folder / "refused" / "run.json").exists()


def test_a_finished_run_is_not_left_alone_where_its_teacher_changed_since(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("own", "school")
    command = [*SHORT, "--teacher", "school", "--fine-tune-epochs", "1", "-o", "schooled", "--resume"]
    assert run(command) == run(command) == 0
    weights = {name: 0.9 * value for name, value in tensors.load(Path("school/dense.safetensors")).items()}
    tensors.save(Path("school/dense.safetensors"), weights)
    assert run([word for word in command if word not in ("--teacher", "school")]) == 2
    assert "teacher was 'school', now not given" in capsys.readouterr().err
    assert run(command) == 2
    assert "the teacher has changed (teacher-sha256 was '" in capsys.readouterr().err
    assert run([*command[:-3], "-o", "damaged"]) == 3  # the record of the teacher's run says otherwise
    assert "school/dense.safetensors is changed" in capsys.readouterr().err
