"""What a run that is taken up again with --allow-changes takes anew, and what is settled by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import LOG
from lrexport.cli.main import run
from lrexport.errors import UsageError
from lrexport.runs.record import load_record
from lrexport.runs.resume import Pruned, take_up
from tests.folders import folder_with
from tests.forked import Forked
from tests.runs.test_resume import COMMAND, NETWORK, stop_in_svd_training

ASKED = {
    "dense_epochs": 0,
    "svd_epochs": 2,
    "sparsity_strength": 0.03,
    "fine_tune_epochs": 2,
    "baseline_epochs": 0,
    "optimizer": "sgd",
    "seed": 0,
    "heldout": 0.1,
    "data_sha256": "a",
    "weights_sha256": "b",
}


def stopped(folder: Path, *left: str, planned: bool = False, **asked: Any) -> None:
    """A run that was stopped, as far as the names of what it ``left`` tell."""
    progress = take_up(folder, ASKED | asked)
    progress.save()
    for name in left:
        (progress.folder / f"{name}.0123456789abcdef.safetensors").touch()
    if planned:
        progress.note_pruned(Pruned(plan={}, planned_latency=None, notes=[]), {"weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("left", "changed"),
    [
        ("svd-0000-0000000", "dense_epochs"),
        ("svd-0000-0000000", "weights_sha256"),
        ("svd-done", "svd_epochs"),
        ("plan", "svd_epochs"),
        ("plan", "dense_epochs"),
        ("fine-tune-0001-0000000", "svd_epochs"),
        ("baseline-0001-0000000", "fine_tune_epochs"),
        ("baseline-done", "baseline_epochs"),
        *(
            (left, name)
            for left in ("dense-0000-0000000", "svd-done", "plan")
            for name in ("seed", "heldout", "data_sha256")
        ),
    ],
)
def test_what_the_network_of_now_came_from_is_settled(left: str, changed: str, tmp_path: Path) -> None:
    """A stage without epochs leaves nothing, and is over all the same once a later one has begun."""
    stopped(tmp_path, *([left] if left != "plan" else []), planned=left == "plan")
    with pytest.raises(UsageError) as refused:
        take_up(tmp_path, ASKED | {changed: 5}, resume=True, allow_changes=True)
    assert f"These can no longer change: {changed}." in str(refused.value.hint)


@pytest.mark.parametrize(
    ("left", "changed"),
    [
        ("dense-0001-0000000", "dense_epochs"),
        ("dense-done", "svd_epochs"),
        ("dense-done", "weights_sha256"),
        ("svd-0001-0000000", "sparsity_strength"),
        ("svd-0001-0000000", "optimizer"),
        ("svd-done", "fine_tune_epochs"),
        ("fine-tune-0001-0000000", "fine_tune_epochs"),
        ("fine-tune-done", "baseline_epochs"),
    ],
)
def test_what_is_still_to_come_may_be_another(left: str, changed: str, tmp_path: Path) -> None:
    stopped(tmp_path, left)
    take_up(tmp_path, ASKED | {changed: 5}, resume=True, allow_changes=True)


@pytest.mark.parametrize(("before", "now"), [(0.03, "auto"), ("auto", 0.03)])
def test_whether_the_strength_of_sparsity_is_steered_is_settled_once_svd_training_has_begun(
    before: Any, now: Any, tmp_path: Path
) -> None:
    stopped(tmp_path, "dense-done", sparsity_strength=before)
    take_up(tmp_path, ASKED | {"sparsity_strength": now}, resume=True, allow_changes=True)
    (tmp_path / "checkpoint" / "svd-0001-0000000.0123456789abcdef.safetensors").touch()
    with pytest.raises(UsageError) as refused:
        take_up(tmp_path, ASKED | {"sparsity_strength": now}, resume=True, allow_changes=True)
    assert "These can no longer change: sparsity_strength." in str(refused.value.hint)


def test_epochs_of_svd_training_that_come_to_a_run_stopped_in_choosing_ranks_stay_in_its_log(tmp_path: Path) -> None:
    log, asked = tmp_path / LOG, ASKED | {"svd_epochs": 0}
    stopped(tmp_path, "dense-done", svd_epochs=0)
    run_folder.write_bytes(tmp_path, LOG, b"dense\n")
    take_up(tmp_path, asked, resume=True).begin_pruning()
    run_folder.write_bytes(tmp_path, LOG, b"dense\nplan\n")
    progress = take_up(tmp_path, ASKED, resume=True, allow_changes=True)
    run_folder.write_bytes(tmp_path, LOG, log.read_bytes() + b"svd\n")
    progress.begin_pruning()
    assert log.read_text() == "dense\nsvd\n"


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, resumed_network=NETWORK)


@pytest.mark.slow
@pytest.mark.usefixtures("inside")
def test_another_optimizer_begins_without_what_the_one_before_knew_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_in_svd_training(folder, "out", *COMMAND)
    again = Forked(folder, *COMMAND, "-o", "out", "--resume", "--allow-changes", "--optimizer", "adam", "--lr", "0.001")
    assert again.wait() == 0, again.output
    assert "warning: svd training continues with another optimizer" in again.output
    assert load_record(folder / "out").config["optimizer"] == "adam"
    assert run([*COMMAND, "-o", "out", "--resume", "--optimizer", "adam", "--lr", "0.001"]) == 0
    assert "is already finished" in capsys.readouterr().err
