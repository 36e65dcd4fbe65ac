"""Output that cannot be written: docs/faults.md, Training and resuming."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.support import Command, listing

# Root may write everywhere: these take that away from a process, whoever runs the tests.
_LIMITS = "-dac_override,-dac_read_search"


def _as_a_plain_user(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lrexport", *arguments]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("the tests run as root, whom no mode stops, and there is no setpriv (util-linux) to change that")
        command = [setpriv, f"--bounding-set={_LIMITS}", f"--inh-caps={_LIMITS}", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_an_output_below_a_file_is_refused(compress: Command, lrexport: Command) -> None:
    Path("file").write_text("mine")
    done = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "file/run", "--device", "cpu")
    assert done.code == 4
    assert "cannot write file/run: Not a directory" in done.err
    assert "Choose a folder that exists and that you may write to." in done.err
    assert Path("file").read_text() == "mine"


def test_an_output_that_is_a_file_is_refused(lrexport: Command) -> None:
    Path("file").write_text("mine")
    done = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "file", "--device", "cpu")
    assert done.code == 2
    assert "'file' is a file" in done.err
    assert Path("file").read_text() == "mine"


def test_a_folder_without_permission_is_refused_before_any_training(here: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    done = _as_a_plain_user(
        *("compress", "resnet20", "--data", "digits", "--input-shape", "3,8,8", "--device", "cpu"),
        *("--macs", "0.5", "-o", "locked/run"),
    )
    assert done.returncode == 4, done.stderr
    assert "cannot write locked/run: Permission denied" in done.stderr
    assert "Choose a folder that exists and that you may write to." in done.stderr
    assert "epoch" not in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(here / "locked") == {}


def test_a_finished_run_without_permission_is_refused_before_the_export(finished: Path) -> None:
    before = listing(finished)
    finished.chmod(0o500)
    try:
        done = _as_a_plain_user("onnx", str(finished), "--rounds", "0")
    finally:
        finished.chmod(0o700)
    assert done.returncode == 4, done.stderr
    assert "cannot write run: Permission denied" in done.stderr
    assert "opset" not in done.stderr
    assert "Traceback" not in done.stderr
    assert listing(finished) == before
