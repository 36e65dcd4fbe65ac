"""Processes as srun starts them: each finds its place in SLURM's variables, and the first alone writes."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from lrexport.artifacts.run_lock import RunLock
from lrexport.runs.record import load_record
from tests.folders import folder_with
from tests.forked import Forked
from tests.training.test_loggers import COMMAND, NETWORK, complete

TWO = (*COMMAND, "--devices", "2", "-o", "run")
RAISING = """
import os
from lrexport.data.datasets import load_data

def data():
    if os.environ["SLURM_PROCID"] == "1":
        raise OSError("the disk with the images is not mounted")
    return load_data("digits", (1, 8, 8))
"""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, logged_network=NETWORK)


def variables() -> dict[str, str]:
    """Those of a job of two tasks on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_NAME": "compress", "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    return job | {"SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def ended(folder: Path, code: int, *arguments: str) -> list[str]:
    """What two tasks say that both end with ``code``."""
    job = variables()
    places = [{"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1")]
    tasks = [Forked(folder, *arguments, environment=job | place) for place in places]
    assert [task.wait() for task in tasks] == [code, code], [task.output for task in tasks]
    return [task.output for task in tasks]


def refused(folder: Path, *arguments: str) -> list[str]:
    """What two tasks say of which neither waits for the other."""
    return ended(folder, 2, *arguments)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_ends_all_tasks_with_the_reason(folder: Path) -> None:
    alone = Forked(folder, *COMMAND, "-o", "run")
    assert alone.wait() == 0, alone.output
    first, second = refused(folder, *TWO)
    assert "lrexport: run already has a run" in first
    assert second.splitlines() == ["lrexport: process 1: process 0 failed: run already has a run"]


def test_a_folder_that_is_in_use_ends_all_tasks_with_the_holder(folder: Path) -> None:
    (folder / "run").mkdir()
    with RunLock(folder / "run"):
        first, second = refused(folder, *TWO)
    assert f"lrexport: run is in use by process {os.getpid()} on " in first
    assert second.startswith("lrexport: process 1: process 0 failed: run is in use by process")


def test_a_run_that_was_stopped_ends_all_tasks_that_do_not_ask_to_go_on(folder: Path) -> None:
    stopped = Forked(folder, *COMMAND, "--dense-epochs", "500", "-o", "run")
    stopped.until("dense training: epoch 1/")
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    first, second = refused(folder, *TWO)
    assert "lrexport: run has an unfinished run" in first
    assert "process 0 failed: run has an unfinished run" in second


def test_what_fails_in_another_task_than_the_first_ends_that_one_too(folder: Path) -> None:
    (folder / "raising.py").write_text(RAISING, encoding="utf-8")
    first, second = refused(folder, *TWO, "--data", "raising:data")
    assert second.startswith("lrexport: process 1: --data 'raising:data' raised OSError: the disk with the images is not")
    assert first.startswith("lrexport: process 1 failed: --data 'raising:data' raised OSError: the disk with the images")


def test_two_processes_with_slurms_variables_make_one_run_and_one_log(folder: Path) -> None:
    first, second = ended(folder, 0, *TWO, "--log-to", "tensorboard")
    assert "SVD training: epoch 1/1" in first
    assert second == ""
    assert load_record(folder / "run").environment["processes"] == "2"
    complete(folder / "run")
    for stage in ("dense", "svd"):
        assert len(list((folder / "run" / "logs" / "tensorboard" / stage).iterdir())) == 1
