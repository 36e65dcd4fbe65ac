"""``lrexport demo`` that is stopped goes on, as its last line says."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.forked import Forked


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on_with_resume_and_is_not_begun_again_in_that_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped = Forked(tmp_path, "demo", "-o", "run")
    stopped.until(lambda: list(run.glob("checkpoint/dense-0000-0000000.*.safetensors")))
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    assert "The same command with --resume continues from there." in stopped.output
    again = Forked(tmp_path, "demo", "-o", "run")
    assert again.wait() == 2
    assert "or resume this run with --resume" in again.output
    resumed = Forked(tmp_path, "demo", "-o", "run", "--resume")
    resumed.until("dense training: epoch 1/5")
    resumed.send(signal.SIGTERM)
    assert resumed.wait() == 143
    assert len([line for line in (run / "log.jsonl").read_text().splitlines() if '"epoch": 1,' in line]) == 1
