"""Real processes on one sweep: who makes what, and what becomes of it when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lrexport
from lrexport.cli.main import run
from lrexport.runs.record import load_record
from lrexport.runs.sweep_record import Sweep, load_sweep
from tests.folders import folder_with
from tests.forked import Forked

NETWORK = """
import os, pathlib, time
from torch import nn

def make(num_classes=10):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Slow(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes),
    )

make.input_shape = (1, 8, 8)

class Slow(nn.Module):
    "Takes its time in training, so that a sweep can be caught in the middle of a trial."
    def forward(self, x):
        if self.training:
            time.sleep(0.02)
        return x
"""
COMMAND = ["sweep", "sweep_network:make", "--data", "digits", "--dense-epochs", "2", "--svd-epochs", "1"]
COMMAND += ["--fine-tune-epochs", "1", "--batch-size", "128", "--device", "cpu", "--precision", "float32"]
COMMAND += ["--calibration-images", "64", "--batchnorm-images", "128"]


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, sweep_network=NETWORK)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    # -m puts the current folder first on the path; lrexport is taken from where the tests have it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "lrexport", *COMMAND, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return
    raise AssertionError(f"{words!r} was not said:\n{said}")


def check_front(sweep: Sweep, folder: Path) -> None:
    """Against brute force on the records of the runs themselves."""
    results = {trial.number: load_record(folder / str(trial.run)).results.compressed for trial in sweep.finished()}
    points = {number: (result.macs, result.heldout_accuracy.top1) for number, result in results.items()}
    front = {
        number
        for number, (macs, top1) in points.items()
        if not any((m <= macs and t > top1) or (m < macs and t >= top1) for m, t in points.values())
    }
    equal = {points[number] for number in front}
    assert {points[number] for number in sweep.front} == equal
    assert len(sweep.front) == len(equal)


@pytest.fixture(scope="module")
def shared(folder: Path) -> tuple[Path, list[str], list[str]]:
    """A sweep that two processes made together: its folder, and what each wrote to stdout and to stderr."""
    arguments = ("--trials", "6", "--vary", "macs=0.3..0.8", "--vary", "scheme=spatial,channel", "-o", "both")
    processes = [Forked(folder, *COMMAND, *arguments, separately=True) for _ in range(2)]
    assert [process.wait(240) for process in processes] == [0, 0], [process.errors for process in processes]
    return folder / "both", [process.output for process in processes], [process.errors for process in processes]


def test_two_processes_make_every_trial_once_between_them(shared: tuple[Path, list[str], list[str]]) -> None:
    folder, tables, said = shared
    sweep = load_sweep(folder)
    assert [(trial.number, trial.state) for trial in sweep.trials] == [(number, "finished") for number in range(6)]
    began = [{line.split(":")[0] for line in text.splitlines() if ": macs " in line} for text in said]
    assert all(began), "both have made some"
    assert not began[0] & began[1]
    assert len(began[0] | began[1]) == 6
    assert tables[0] == tables[1], "both print the same front"
    points = [tuple(trial.parameters.values()) for trial in sweep.trials]
    assert len(set(points)) == 6


def _is_work(event: dict[str, object]) -> bool:
    return event["event"] != "export check"  # which comes before


def test_the_dense_network_is_trained_once_and_svd_training_done_once_for_each_scheme(
    shared: tuple[Path, list[str], list[str]],
) -> None:
    folder, _, said = shared
    stages = sorted(path.name.split("-")[0] for path in (folder / "stages").iterdir())
    assert stages == ["dense", "svd", "svd"]
    assert sum(text.count("dense training: epoch") for text in said) == 2
    logs = [
        [event.get("stage") for event in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if _is_work(event)]
        for run in (*(folder / "stages").iterdir(), *(folder / "trials").iterdir())
    ]
    assert sorted(map(str, logs)) == sorted(map(str, [["dense"] * 2, ["svd"], ["svd"], *[[None, None, "fine-tune"]] * 6]))
    start = {load_record(run).files["dense.safetensors"].sha256 for run in (folder / "trials").iterdir()}
    assert len(start) == 1


def test_the_front_is_that_of_the_records(shared: tuple[Path, list[str], list[str]]) -> None:
    check_front(load_sweep(shared[0]), shared[0])


def test_a_trial_is_a_run_as_any_other(shared: tuple[Path, list[str], list[str]]) -> None:
    sweep = load_sweep(shared[0])
    (first, *_) = sweep.runs(shared[0], sweep.on_front())
    assert run(["inspect", str(first)]) == 0
    assert not lrexport.load(first).training
    record = load_record(first)
    assert record.results.compressed.heldout_accuracy.top1 == sweep.on_front()[0].figures.heldout_score
    assert record.results.compressed.epochs == 4


def test_the_same_command_again_prints_the_front_and_makes_nothing(
    shared: tuple[Path, list[str], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((shared[0] / "trials").iterdir())
    space = ("--vary", "macs=0.3..0.8", "--vary", "scheme=spatial,channel")
    assert run([*COMMAND, *space, "--trials", "6", "-o", "both", "--json", "sweep-copy.json"]) == 0
    assert capsys.readouterr().out == shared[1][0]
    assert json.loads(Path("sweep-copy.json").read_text()) == json.loads((shared[0] / "sweep.json").read_text())
    assert sorted((shared[0] / "trials").iterdir()) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--vary", "macs=0.3..0.9"), "space was macs=0.3..0.8 scheme=spatial,channel, now macs=0.3..0.9"),
        (
            ("--fine-tune-epochs", "2", "--vary", "macs=0.3..0.8", "--vary", "scheme=spatial,channel"),
            "fine-tune-epochs was 1",
        ),
        (
            ("--data", "folder:other", "--vary", "macs=0.3..0.8", "--vary", "scheme=spatial,channel"),
            "data was 'digits', now 'folder:other'",
        ),
    ],
)
def test_a_sweep_of_something_else_is_refused_with_the_difference(
    shared: tuple[Path, list[str], list[str]], change: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (shared[0] / "sweep.json").read_bytes()
    for part in ("train/a", "train/b", "val/a", "val/b"):
        Path("other", part).mkdir(parents=True, exist_ok=True)
    assert run([*COMMAND, "--trials", "6", "-o", "both", *change]) == 2
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert (shared[0] / "sweep.json").read_bytes() == before


def kill_at(folder: Path, words: str, *arguments: str) -> None:
    process = Forked(folder, *COMMAND, *arguments)
    process.until(words)
    time.sleep(0.2)
    process.send(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_process_that_is_killed_costs_the_stage_or_trial_under_way_alone(folder: Path) -> None:
    arguments = ("--trials", "3", "-o", "killed")
    kill_at(folder, "dense training: epoch 1/2", *arguments)
    assert not (folder / "killed" / "sweep.json").exists()
    kill_at(folder, "trial 1: macs", *arguments)
    left = load_sweep(folder / "killed")  # whole, whenever the process was killed
    assert left.trials[0].state == "finished"
    assert run([*COMMAND, *arguments]) == 0
    sweep = load_sweep(folder / "killed")
    assert [(trial.number, trial.state) for trial in sweep.trials] == [(n, "finished") for n in (0, 2, 3)]
    assert sweep.trials[0] == left.trials[0]
    assert sorted(path.name for path in (folder / "killed" / "trials").iterdir()) == ["0000", "0002", "0003"]
    assert len(list((folder / "killed" / "stages").glob("dense-*"))) == 1
    check_front(sweep, folder / "killed")


@pytest.mark.slow
def test_sigterm_prints_the_front_so_far_and_queues_the_trial_again(folder: Path) -> None:
    process = start(folder, "--trials", "3", "-o", "stopped")
    wait_for_line(process, "trial 1: macs")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 143, err
    assert "--resume" not in err
    assert "Traceback" not in err
    assert "1 of 3 trials finished" in out
    assert [trial.state for trial in load_sweep(folder / "stopped").trials] == ["finished", "waiting"]
