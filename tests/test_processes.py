"""Training in two processes is training in one: the same losses, ranks and scores to rounding, and one writer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lrexport.runs.record import load_record
from tests.folders import folder_with
from tests.forked import Forked

NETWORK = """
import atexit
from pathlib import Path

from torch import nn

def say_threads():
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    print(f"threads of gloo's at exit: {sum('gloo' in name for name in names)}", flush=True)

atexit.register(say_threads)

class Shared(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16, momentum=None), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes), nn.BatchNorm1d(num_classes),
        )
        self.unused = nn.Linear(3, 5)

    def forward(self, x):
        return self.body(x)

def make(num_classes=10):
    return Shared(num_classes)

make.input_shape = (1, 8, 8)
"""
# A batch that two processes share unevenly, and a last one of fewer images.
COMMAND = ["compress", "shared_network:make", "--data", "digits", "--macs", "0.6", "--batch-size", "61", "--distill", "0.3"]
COMMAND += ["--dense-epochs", "2", "--svd-epochs", "1", "--fine-tune-epochs", "1", "--accumulate", "3"]
COMMAND += ["--device", "cpu", "--precision", "float32"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lrexport"]
LREXPORT = [sys.executable, "-m", "lrexport"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, shared_network=NETWORK)


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path, *command: str) -> str:
    process = start(folder, *command)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    done = Forked(folder, *COMMAND, "-o", "alone")
    assert done.wait() == 0, done.output
    return folder / "alone"


def epochs(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "epoch"]


def same_to_rounding(found: Path, wanted: Path) -> None:
    assert [(e["stage"], e["epoch"]) for e in epochs(found)] == [(e["stage"], e["epoch"]) for e in epochs(wanted)]
    for mine, theirs in zip(epochs(found), epochs(wanted), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert mine["heldout_top1"] == pytest.approx(theirs["heldout_top1"], abs=3 / 143)
    assert epochs(found)[0]["loss"] == pytest.approx(epochs(wanted)[0]["loss"], rel=1e-5)
    one, other = load_record(found), load_record(wanted)
    assert one.files.keys() == other.files.keys()
    assert not list((found / "checkpoint").iterdir())
    assert one.environment["processes"] == "2"


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        pytest.param([*TORCHRUN, *COMMAND], id="torchrun", marks=pytest.mark.slow),
        pytest.param([*LREXPORT, *COMMAND, "--devices", "2"], id="devices"),
    ],
)
def test_two_processes_with_the_same_global_batch_train_as_one(alone: Path, folder: Path, way: list[str]) -> None:
    name = f"two-{way[2][:5]}"
    out = finish(folder, *way, "-o", name)
    same_to_rounding(folder / name, alone)
    assert len(re.findall(r"^top-1 ", out, re.MULTILINE)) == 1  # one table
    assert out.count("threads of gloo's at exit: 0") == 2, out  # one that outlives the interpreter may end it with SIGABRT


@pytest.mark.slow
def test_a_folder_that_holds_a_run_ends_all_processes_with_the_reason(alone: Path, folder: Path) -> None:
    """Under torchrun the others are there and wait; with --devices they are not even started."""
    for way, said in ((TORCHRUN, 2), (LREXPORT, 1)):
        process = start(folder, *way, *COMMAND, *(["--devices", "2"] if way is LREXPORT else []), "-o", "alone")
        _, err = process.communicate(timeout=200)
        assert process.returncode != 0
        assert err.count("alone already has a run") == said, err
        assert err.count("process 1: process 0 failed: alone already has a run") == said - 1


FEW = """
import torch

def pairs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return [(image, index % 2) for index, image in enumerate(images)]

def data():
    return pairs(), pairs()[:2]
"""


@pytest.mark.slow
def test_fewer_held_out_and_test_images_than_processes_are_scored_as_by_one(folder: Path) -> None:
    """Two of each, by three processes: the third has none, and goes through fewer batches than the others."""
    (folder / "few_images.py").write_text(FEW, encoding="utf-8")
    command = ["compress", "shared_network:make", "--data", "few_images:data", *COMMAND[4:], "--batch-size", "12"]
    for number in ("1", "3"):
        done = Forked(folder, *command, "--accumulate", "1", "--devices", number, "-o", f"few-{number}")
        assert done.wait(200) == 0, done.output
    one, three = (load_record(folder / f"few-{number}") for number in ("1", "3"))
    assert three.data is not None
    assert (three.data.heldout, three.data.test) == (2, 2)
    assert [event["epoch"] for event in epochs(folder / "few-3")] == [1, 2, 1, 1]
    for mine, theirs in ((three.results.dense, one.results.dense), (three.results.compressed, one.results.compressed)):
        assert mine is not None
        assert theirs is not None
        assert (mine.accuracy, mine.heldout_accuracy) == (theirs.accuracy, theirs.heldout_accuracy)


OTHERS = """
import os
import torch

def data():
    images = torch.full((24, 1, 8, 8), int(os.environ["RANK"]), dtype=torch.uint8)
    return [(image, index % 2) for index, image in enumerate(images)], [(images[0], 0), (images[1], 1)]
"""


@pytest.mark.slow
def test_processes_that_find_other_images_do_not_train_together(folder: Path) -> None:
    (folder / "other_images.py").write_text(OTHERS, encoding="utf-8")
    command = ["compress", "shared_network:make", "--data", "other_images:data", *COMMAND[4:], "-o", "others"]
    process = start(folder, *TORCHRUN, *command)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("the training images of process 1 are not those of process 0") == 2, err
    assert not (folder / "others" / "run.json").exists()


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_both_go_on_but_not_one_alone(alone: Path, folder: Path) -> None:
    process = start(folder, *LREXPORT, *COMMAND, "--devices", "2", "-o", "both")
    while not (folder / "both" / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "--resume continues from there" in err
    alone_now = Forked(folder, *COMMAND, "-o", "both", "--resume")
    assert alone_now.wait() == 2
    assert "processes was 2, now 1" in alone_now.output
    finish(folder, *LREXPORT, *COMMAND, "--devices", "2", "-o", "both", "--resume")
    same_to_rounding(folder / "both", alone)
