"""log.jsonl: what is written is read again, and no line of it stops a reader."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lrexport.artifacts.run_files import LOG
from lrexport.events import EpochDone, ExportChecked, PlanChosen
from lrexport.runs import log
from lrexport.runs.log import LoggedEpoch, LoggedPlan


def test_epochs_and_plans_that_were_written_are_read_in_their_order(tmp_path: Path) -> None:
    log.append(tmp_path, ExportChecked(0.5))
    log.append(tmp_path, EpochDone("dense", 1, 2, 30, 0.5, 0.25, 0.1, 1.5, 640.0, 12.0))
    log.append(tmp_path, EpochDone("dense", 2, 2, 30, math.nan, 0.5, 0.1, 1.5, 640.0, 12.0))
    log.append(tmp_path, PlanChosen(threshold=None, macs=1, dense_macs=2))
    epochs = [LoggedEpoch("dense", 1, 0.5, 0.25), LoggedEpoch("dense", 2, None, 0.5)]
    assert log.read_log(tmp_path) == ([*epochs, LoggedPlan()], 0)


def test_a_run_without_a_log_has_nothing_to_read(tmp_path: Path) -> None:
    assert log.read_log(tmp_path) == ([], 0)
    (tmp_path / LOG).touch()
    assert log.read_log(tmp_path) == ([], 0)


UNREADABLE = ("half", "[1, 2]", "null", "{}", '{"event": "epoch"}', '{"event": "epoch", "stage": []}', "[" * 10**5)


@pytest.mark.parametrize("line", UNREADABLE)
def test_a_line_that_cannot_be_read_is_counted_and_the_others_are_read(line: str, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(f'{line}\n{{"event": "plan"}}\n{{"event": "of another version"}}\n')
    assert log.read_log(tmp_path) == ([LoggedPlan()], 1)


@given(some.binary(max_size=200))
def test_no_bytes_stop_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    run = tmp_path_factory.mktemp("run")
    (run / LOG).write_bytes(content)
    logged, unread = log.read_log(run)
    assert len(logged) + unread <= len(content.decode(errors="replace").splitlines())
