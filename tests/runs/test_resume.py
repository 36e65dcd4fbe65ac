"""A run that was stopped, in whatever way, goes on as if it never had been."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from lrexport.artifacts import run_folder, tensors
from lrexport.cli.main import run
from lrexport.runs.record import load_record
from tests.folders import folder_with
from tests.forked import Forked

NETWORK = """
from torch import nn

def make(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),
    )

make.input_shape = (1, 8, 8)
"""
# Python cannot pass on what is raised in __del__, nor in what C code asks it.
INTERRUPTED = """
import os, signal

class Interrupting:
    def __del__(self):
        signal.raise_signal(int(os.environ["NUMBER"]))

Interrupting()
"""
STAGES = ["--dense-epochs", "2", "--svd-epochs", "2", "--fine-tune-epochs", "2", "--baseline-epochs", "1"]
MORE = ["--macs", "0.6", "--batch-size", "64", "--distill", "0.3", "--device", "cpu", "--precision", "float32"]
MORE += ["--heldout", "0.5"]  # fewer steps: dozens of runs are made here
FEW = ["--calibration-images", "64", "--batchnorm-images", "128"]
COMMAND = ["compress", "resumed_network:make", "--data", "digits", *STAGES, *MORE, *FEW]
TIMES = ("seconds", "images_per_second", "step_ms", "step_over_dense")
WEIGHTS = ("dense", "svd", "model", "baseline")


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, resumed_network=NETWORK)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The run that was never stopped."""
    run = Forked(folder, *COMMAND, "-o", "whole")
    assert run.wait() == 0, run.output
    return folder / "whole"


def resume(folder: Path, name: str, *more: str) -> None:
    run = Forked(folder, *COMMAND, "-o", name, "--resume", *more)
    assert run.wait() == 0, run.output


def same_but_for_time(found: Path, wanted: Path) -> None:
    """Weights to the bit, record and log but for what depends on the clock."""
    for name in WEIGHTS:
        mine, theirs = (tensors.load(path / f"{name}.safetensors") for path in (found, wanted))
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(value, theirs[key]), (name, key)
    one, other = load_record(found), load_record(wanted)
    assert (one.plan, one.results, one.notes, one.config) == (other.plan, other.results, other.notes, other.config)
    logs = []
    for path in (found, wanted):
        lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
        # The check comes once in a run's life, and its line with the first work: a kill between them leaves none.
        lines = [line for line in lines if line["event"] != "export check"]
        logs.append([{name: value for name, value in line.items() if name not in TIMES} for line in lines])
    assert logs[0] == logs[1]
    assert not list((found / "checkpoint").iterdir())
    assert not (found / ".holder").exists()


@pytest.mark.parametrize(
    ("number", "when"),
    [
        (signal.SIGTERM, "dense training: epoch 1/"),
        pytest.param(signal.SIGINT, "SVD training: epoch 1/", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "plan: ", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "fine-tuning: epoch 1/", marks=pytest.mark.slow),
        # Between two stages, and while ranks are chosen.
        pytest.param(signal.SIGTERM, "dense-done.", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "svd-done.", marks=pytest.mark.slow),
    ],
)
def test_a_run_ended_by_a_signal_goes_on_to_the_bit(whole: Path, folder: Path, number: int, when: str) -> None:
    name = f"signal-{number}-{when.split(':')[0]}"
    stopped = Forked(folder, *COMMAND, "-o", name)
    stopped.until((lambda: list((folder / name / "checkpoint").glob(f"{when}*"))) if when.endswith(".") else when)
    stopped.send(number)
    assert stopped.wait() == 128 + number
    assert "Traceback" not in stopped.output
    assert "The same command with --resume continues from " in stopped.output
    resume(folder, name)
    same_but_for_time(folder / name, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_where_nothing_can_be_raised_ends_a_run_all_the_same(folder: Path, number: int) -> None:
    (folder / "interrupted_network.py").write_text(f"{NETWORK}\n{INTERRUPTED}", encoding="utf-8")
    command = ("compress", "interrupted_network:make", *COMMAND[2:], "-o", f"interrupted-{int(number)}")
    stopped = Forked(folder, *command, environment={"NUMBER": str(int(number))})
    assert stopped.wait() == 128 + number, stopped.output
    assert "Exception ignored" not in stopped.output
    assert "lrexport: stopped" in stopped.output


def killed_until_done(folder: Path, name: str, moments: random.Random, most: int) -> int:
    """How often a run was killed at random moments, each time to be taken up again, before it was done."""
    for kills in range(most):
        run = Forked(folder, *COMMAND, "-o", name, "--resume")
        time.sleep(moments.uniform(0.05, 0.6))
        run.send(signal.SIGKILL)
        code = run.wait()
        assert "lrexport:" not in run.output, run.output
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, run.output
    resume(folder, name)
    return most


def test_a_run_killed_at_random_moments_goes_on_to_the_bit(whole: Path, folder: Path) -> None:
    kills = killed_until_done(folder, "killed", random.Random(0), most=8)
    assert kills > 1
    same_but_for_time(folder / "killed", whole)


@pytest.mark.slow
def test_fifty_kills_at_random_moments_change_no_bit(whole: Path, folder: Path) -> None:
    moments, kills, number = random.Random(1), 0, 0
    while kills < 50:
        kills += killed_until_done(folder, f"fifty-{number}", moments, most=50 - kills)
        same_but_for_time(folder / f"fifty-{number}", whole)
        number += 1


def test_what_a_job_killed_in_its_last_moment_left_goes_where_the_finished_run_is_asked_for_again(
    whole: Path, folder: Path
) -> None:
    left = folder / "left"
    shutil.copytree(whole, left)
    stale = "checkpoint/fine-tune-done.0123456789abcdef.safetensors"
    run_folder.write_bytes(left, stale, b"state.json was removed before it")
    run_folder.write_bytes(left, ".holder", b"process 1 on nowhere\n")
    resume(folder, "left")
    same_but_for_time(left, whole)


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before_it(whole: Path, folder: Path) -> None:
    """The process dies at every step of a save in turn: in the temporary file, before and after it is renamed."""
    for name in ("fsync", "replace", "unlink"):
        for call in (1, 4):
            run = Forked(folder, *COMMAND, "-o", f"save-{name}", "--resume", die_at=(name, call))
            assert run.wait() == -signal.SIGKILL, run.output
            left = list((folder / f"save-{name}").rglob(".*.tmp"))
            assert left or name == "unlink" or call > 1
        others = [folder / f"save-{name}" / other for other in (".notes.tmp", ".notes.abcdefgh.tmp", ".run.json.abc.tmp")]
        for other in others:
            other.write_bytes(b"not lrexport's")
        resume(folder, f"save-{name}")
        assert sorted((folder / f"save-{name}").rglob(".*.tmp")) == sorted(others)
        same_but_for_time(folder / f"save-{name}", whole)


def test_a_run_that_is_finished_is_left_as_it_is(whole: Path, folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    again = Forked(folder, *COMMAND, "-o", "whole", "--resume")
    assert again.wait() == 0
    assert "whole is already finished; nothing to resume" in again.output
    assert "top-1" in again.output
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def stop_in_svd_training(folder: Path, name: str, *command: str) -> None:
    stopped = Forked(folder, *command, "-o", name)
    stopped.until("SVD training: epoch 1/")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143


def test_a_run_is_taken_up_with_what_it_was_begun_with_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_in_svd_training(folder, "changed", *COMMAND)
    state = (folder / "changed" / "checkpoint" / "state.json").read_bytes()
    assert run([*COMMAND, "-o", "changed"]) == 2
    assert "changed has an unfinished run" in capsys.readouterr().err
    assert run([*COMMAND, "-o", "changed", "--resume", "--lr", "0.5", "--seed", "4"]) == 2
    refused = capsys.readouterr().err
    assert "started with other choices" in refused
    assert "lr was 0.02, now 0.5" in refused
    assert "seed was 0, now 4" in refused
    assert "data-sha256" in refused  # another seed holds other images out
    assert "--allow-changes" in refused
    assert (folder / "changed" / "checkpoint" / "state.json").read_bytes() == state
    resume(folder, "changed", "--lr", "0.05", "--allow-changes")
    assert load_record(folder / "changed").config["lr"] == 0.05


@pytest.mark.slow
def test_what_a_finished_stage_was_made_with_cannot_be_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop_in_svd_training(folder, "settled", *COMMAND)
    for changed in (["--dense-epochs", "9"], ["--scheme", "channel"], ["--keep", "0"]):
        assert run([*COMMAND, *changed, "-o", "settled", "--resume", "--allow-changes"]) == 2
        assert f"These can no longer change: {changed[0][2:].replace('-', '_')}." in capsys.readouterr().err
    resume(folder, "settled", "--batch-size", "32", "--allow-changes")  # as after memory ran out


def test_a_finished_run_is_not_taken_for_one_with_other_choices(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*COMMAND, "--lr", "0.5", "-o", "whole", "--resume"]) == 2
    assert "whole is finished, with other choices: lr was 0.02, now 0.5" in capsys.readouterr().err


def test_a_finished_run_that_went_on_from_another_is_left_as_it_is_too(
    whole: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", "whole", "--macs", "0.5", "--fine-tune-epochs", "0", "-o", "further", "--resume"]
    assert run(command) == 0
    written = (folder / "further" / "run.json").read_bytes()
    assert run(command) == 0
    assert "further is already finished" in capsys.readouterr().err
    assert (folder / "further" / "run.json").read_bytes() == written
    assert run([*command[:2], "--macs", "0.4", *command[4:]]) == 2
    assert "with other choices: goal was --macs 0.5, now --macs 0.4" in capsys.readouterr().err
    shutil.copytree(folder / "whole", folder / "like-whole")
    assert run(["compress", "like-whole", *command[2:]]) == 2
    assert "with other choices: it started from whole" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_or_in_its_last_moment_is_no_dead_end(whole: Path, folder: Path) -> None:
    early = [*COMMAND[:4], *MORE, "--dense-epochs", "0", "--svd-epochs", "1", "--fine-tune-epochs", "0", "-o", "early"]
    killed = Forked(folder, *early, die_at=("replace", 4))  # .holder, dense, run.json, state.json
    assert killed.wait() == -signal.SIGKILL
    assert (folder / "early" / "run.json").is_file()
    assert not list((folder / "early").glob("checkpoint/*.json"))
    again = Forked(folder, *early, "--resume")
    assert again.wait() == 0, again.output
    shutil.copytree(whole, folder / "late")
    stale = "checkpoint/fine-tune-done.0123456789abcdef.safetensors"
    run_folder.write_bytes(folder / "late", stale, b"stale")
    assert run([*COMMAND, "-o", "late", "--resume"]) == 0
    assert not (folder / "late" / stale).exists()
    run_folder.write_bytes(folder / "late", stale, b"stale")
    assert run(["compress", "late", "--macs", "0.5", "--fine-tune-epochs", "1", "-o", "late"]) == 0


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(whole: Path, folder: Path) -> None:
    stop_in_svd_training(folder, "damaged", *COMMAND)
    last = sorted((folder / "damaged" / "checkpoint").glob("svd-0*.safetensors"))[-1]
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(bytes(content))
    resume(folder, "damaged")
    same_but_for_time(folder / "damaged", whole)


def test_two_runs_in_one_folder_are_refused_and_the_holder_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*COMMAND[:4], "--macs", "0.6", "--dense-epochs", "2000", "-o", "held"]
    first = Forked(folder, *command)
    first.until("dense training: epoch 1/")
    try:
        assert run([*command, "--resume"]) == 2
        assert f"held is in use by process {first.pid} on {os.uname().nodename} since 20" in capsys.readouterr().err
    finally:
        first.send(signal.SIGKILL)
        first.wait()


def test_a_second_ctrl_c_ends_it_at_once_and_leaves_the_last_checkpoint(folder: Path) -> None:
    stopped = Forked(folder, *COMMAND[:4], "--dense-epochs", "3000", "--macs", "0.6", "-o", "twice")
    stopped.until(lambda: list((folder / "twice" / "checkpoint").glob("dense-0001*.safetensors")))
    for _ in range(2):
        stopped.send(signal.SIGINT)
    assert stopped.wait() == 130
    assert "Traceback" not in stopped.output
    assert list((folder / "twice" / "checkpoint").glob("dense-0*.safetensors"))


@pytest.mark.slow
def test_train_is_taken_up_too(whole: Path, folder: Path) -> None:
    arguments = ["train", *COMMAND[1:8], *MORE[2:]]
    stop_in_svd_training(folder, "trained", *arguments)
    again = Forked(folder, *arguments, "-o", "trained", "--resume")
    assert again.wait() == 0, again.output
    for name in ("dense", "svd"):
        mine, theirs = (path / f"{name}.safetensors" for path in (folder / "trained", whole))
        assert mine.read_bytes() == theirs.read_bytes()
