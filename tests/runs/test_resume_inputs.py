"""Files that a run was begun with and that are others when it goes on: --weights and --plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lrexport.artifacts import tensors
from lrexport.cli.main import run
from lrexport.plan import Pair
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder
from tests.forked import Forked
from tests.runs.test_resume import COMMAND, MORE, NETWORK, STAGES, stop_in_svd_training

WEIGHTS = (*COMMAND, "--weights", "start.safetensors")
PLAN = (*COMMAND[:4], *STAGES, *MORE[2:], "--plan", "plan.json")


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = folder_with(tmp_path_factory, resumed_network=NETWORK)
    made = Forked(path, *COMMAND[:4], "--dense-epochs", "1", "--svd-epochs", "0", "--macs", "0.6", "-o", "made")
    assert made.wait() == 0, made.output
    return path


@pytest.fixture(scope="module")
def planned(folder: Path) -> Path:
    """A run with a plan, stopped in SVD training."""
    with inside_folder(folder):
        write_plan(rank=4)
        stop_in_svd_training(folder, "planned", *PLAN)
    return folder / "planned"


def write_weights(scale: float = 1.0) -> None:
    held = {name: scale * value for name, value in tensors.load(Path("made/dense.safetensors")).items()}
    tensors.save(Path("start.safetensors"), held)


def write_plan(rank: int) -> None:
    Path("plan.json").write_text(json.dumps({"4": {"scheme": "spatial", "rank": rank}}), encoding="utf-8")


def go_on(folder: Path, *command: str) -> None:
    again = Forked(folder, *command, "--resume")
    assert again.wait() == 0, again.output


@pytest.mark.slow
def test_other_weights_behind_the_same_path_are_refused_unless_dense_training_made_them_the_past(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights()
    stop_in_svd_training(folder, "weighted", *WEIGHTS)
    stop_in_svd_training(folder, "straight", *WEIGHTS, "--dense-epochs", "0")
    write_weights(0.9)
    for command in ([*WEIGHTS, "-o", "weighted"], [*WEIGHTS, "--dense-epochs", "0", "-o", "straight", "--allow-changes"]):
        assert run([*command, "--resume"]) == 2
        refused = capsys.readouterr().err
        assert "started with other choices: the weights has changed (weights-sha256 was '" in refused
        assert ("These can no longer change: weights_sha256." in refused) == ("--allow-changes" in command)
    go_on(folder, *WEIGHTS, "-o", "weighted", "--allow-changes")
    write_weights()
    go_on(folder, *WEIGHTS, "--dense-epochs", "0", "-o", "straight")


@pytest.mark.parametrize("changed", ["weights", "plan"])
def test_a_finished_run_is_not_left_alone_where_its_weights_or_its_plan_changed_since(
    changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights()
    write_plan(rank=4)
    files = ("--weights", "start.safetensors", "--plan", "plan.json")
    command = [*COMMAND[:2], *files, "-o", f"finished-{changed}", "--resume"]
    for _ in range(2):
        assert run(command) == 0
    assert f"finished-{changed} is already finished; nothing to resume" in capsys.readouterr().err
    if changed == "weights":
        write_weights(0.9)
    else:
        write_plan(rank=6)
    assert run(command) == 2
    wanted = f"finished-{changed} is finished, with other choices: the {changed} has changed ({changed}-sha256 was '"
    assert wanted in capsys.readouterr().err


def test_another_plan_behind_the_same_path_is_refused_and_taken_where_changes_are_allowed(
    folder: Path, planned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(planned, "other")
    write_plan(rank=6)
    assert run([*PLAN, "-o", "other", "--resume"]) == 2
    assert "the plan has changed (plan-sha256 was '" in capsys.readouterr().err
    go_on(folder, *PLAN, "-o", "other", "--allow-changes")
    (layer,) = (layer for layer in load_record(folder / "other").plan.values() if isinstance(layer, Pair))
    assert layer.rank == 6


def test_a_run_that_was_begun_before_there_were_digests_and_an_option_that_is_not_asked_for_goes_on(
    folder: Path, planned: Path
) -> None:
    shutil.copytree(planned, "older")
    write_plan(rank=6)
    state = Path("older/checkpoint/state.json")
    held = json.loads(state.read_text(encoding="utf-8"))
    del held["asked"]["plan_sha256"], held["asked"]["max_bad"]
    state.write_text(json.dumps(held), encoding="utf-8")
    go_on(folder, *PLAN, "-o", "older")
