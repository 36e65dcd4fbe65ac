"""Services that training is logged to: TensorBoard for real, MLflow and Weights & Biases by fakes of their packages."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrexport.cli.main import run
from lrexport.events import ChoosingRanks, EpochDone, Event, StepDone, Warned
from lrexport.training.loggers import STEPS, Loggers
from tests.folders import folder_with
from tests.forked import Forked

NETWORK = """
from torch import nn

def make(num_classes=10):
    layers = [nn.Conv2d(1, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(12, num_classes)]
    return nn.Sequential(*layers)

make.input_shape = (1, 8, 8)
"""
COMMAND = ["train", "logged_network:make", "--data", "digits", "--dense-epochs", "5", "--svd-epochs", "1"]
COMMAND += ["--batch-size", "32", "--device", "cpu", "--precision", "float32"]
WATCHED = ("loss", "heldout_top1", "lr", "images_per_second")


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, logged_network=NETWORK)


def scalars(run: Path, stage: str) -> dict[str, list[tuple[int, float]]]:
    held = EventAccumulator(str(run / "logs" / "tensorboard" / stage))
    held.Reload()
    return {tag: [(each.step, each.value) for each in held.Scalars(tag)] for tag in held.Tags()["scalars"]}


def epochs(run: Path, stage: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "epoch" and line["stage"] == stage]


def complete(run: Path) -> None:
    """Every epoch of the log is in TensorBoard's files, once, and every twentieth step."""
    for stage in ("dense", "svd"):
        found, wanted = scalars(run, stage), epochs(run, stage)
        last = wanted[-1]["epoch"] * wanted[-1]["steps"]
        for name in WATCHED:
            expected = [(epoch["epoch"] * epoch["steps"], epoch[name]) for epoch in wanted]
            assert found[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
        assert [step for step, _ in found["step_loss"]] == list(range(STEPS, last + 1, STEPS))


def test_tensorboard_has_every_epoch_and_some_steps_of_every_stage(folder: Path) -> None:
    done = Forked(folder, *COMMAND, "--log-to", "tensorboard", "-o", "run")
    assert done.wait() == 0, done.output
    complete(folder / "run")


def test_a_run_that_goes_on_leaves_no_step_twice_and_none_out(folder: Path) -> None:
    for number, when in ((signal.SIGTERM, "dense training: epoch 1/"), (signal.SIGKILL, "dense training: epoch 2/")):
        stopped = Forked(folder, *COMMAND, "--log-to", "tensorboard", "-o", "run", "--resume")
        stopped.until(when)
        stopped.send(number)
        stopped.wait()
    again = Forked(folder, *COMMAND, "--log-to", "tensorboard", "-o", "run", "--resume")
    assert again.wait() == 0, again.output
    complete(folder / "run")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_said_with_the_pip_command_before_anything_is_made(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    assert run([*COMMAND, "--log-to", name, "-o", "run"]) == 4
    assert f"pip install 'lrexport[{name}]'" in capsys.readouterr().err
    assert not (folder / "run").exists()


def test_a_folder_that_a_service_left_behind_is_no_package(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # what importing ./wandb gives: a package without a file
    sys.modules["wandb"].__file__ = None
    assert run([*COMMAND, "--log-to", "wandb", "-o", "run"]) == 4
    assert "--log-to wandb needs wandb" in capsys.readouterr().err


STEP = StepDone("dense", epoch=0, epochs=1, step=STEPS - 1, steps=30, loss=2.0)
EPOCH = EpochDone("dense", 1, 1, 30, loss=1.0, heldout_score=0.5, lr=0.1, seconds=1.0, images_per_second=100.0, step_ms=9.0)
LOGGED = {"loss": 1.0, "heldout_top1": 0.5, "lr": 0.1, "images_per_second": 100.0}


def log(name: str, folder: Path, done: bool) -> list[Event]:
    said: list[Event] = []
    loggers = Loggers([name], folder / "run", {"lr": 0.1}, said.append)
    for event in (STEP, replace(STEP, step=STEPS), ChoosingRanks(0), EPOCH):
        loggers(event)
    loggers.close(done)
    return said


def test_mlflow_is_given_choices_once_and_the_same_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Client:
        def create_run(self, experiment: str, run_name: str) -> Any:
            calls.append(("create", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="7"))

        def __getattr__(self, name: str) -> Any:
            return lambda *values, **named: calls.append((name, *values, *named.values()))

    fake: Any = ModuleType("mlflow")
    fake.MlflowClient = Client
    fake.set_experiment = lambda name: SimpleNamespace(experiment_id=f"id of {name}")
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert log("mlflow", folder, done=False) == []
    assert calls[:2] == [("create", "id of lrexport", "run"), ("log_param", "7", "lr", 0.1)]
    assert ("log_metric", "7", "dense/step_loss", 2.0, STEPS) in calls
    assert {("log_metric", "7", f"dense/{name}", value, 30) for name, value in LOGGED.items()} <= set(calls)
    assert calls[-1] == ("set_terminated", "7", "KILLED")
    calls.clear()
    assert log("mlflow", folder, done=True) == []
    assert calls[0] == ("update_run", "7", "RUNNING")
    assert calls[-1] == ("set_terminated", "7", "FINISHED")
    assert not [call for call in calls if call[0] in ("create", "log_param")]


def test_wandb_is_resumed_by_its_id_and_counts_a_stages_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    calls: list[tuple[Any, ...]] = []

    class Run:
        def __getattr__(self, name: str) -> Any:
            return lambda *values, **named: calls.append((name, *values, *named.values()))

    fake: Any = ModuleType("wandb")
    fake.init = lambda **named: begun.append(named) or Run()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for done in (False, True):
        assert log("wandb", folder, done) == []
        assert calls[-1] == ("finish", 0 if done else 1)
    assert begun[0]["id"] == begun[1]["id"]
    assert (begun[0]["project"], begun[0]["name"], begun[0]["resume"]) == ("lrexport", "run", "allow")
    assert begun[0]["dir"] == str(folder / "run" / "logs")
    assert calls[0] == ("define_metric", "dense/*", "dense/step")
    assert ("log", {"dense/step_loss": 2.0, "dense/step": STEPS}) in calls
    assert ("log", {**{f"dense/{name}": value for name, value in LOGGED.items()}, "dense/step": 30}) in calls


def test_a_service_that_fails_is_told_of_once_and_training_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("wandb")
    run = SimpleNamespace(define_metric=lambda *a, **n: None, log=lambda *a: 1 / 0, finish=lambda **n: 1 / 0)
    fake.init = lambda **named: run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (warning,) = log("wandb", folder, done=True)
    assert warning == Warned("stopped logging to wandb: ZeroDivisionError: division by zero")
