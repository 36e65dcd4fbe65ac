"""int8 that cannot be made, or differs from its network: docs/faults.md, Exports."""

from __future__ import annotations

from pathlib import Path

import pytest

from lrexport.artifacts import run_folder
from lrexport.formats import int8_agreement
from tests.hostile.support import DATA, Command, listing, write_module


def test_a_run_without_data_has_nothing_to_calibrate_on(lrexport: Command, finished: Path) -> None:
    before = listing(finished)
    done = lrexport("onnx", finished, "--int8", "--rounds", "0")
    assert done.code == 2
    assert "--int8 needs samples to calibrate on, but this run was made without data" in done.err
    assert "Give --data" in done.err
    assert listing(finished) == before


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_number_of_calibration_images_is_at_least_one(lrexport: Command, finished: Path, count: str) -> None:
    done = lrexport("onnx", finished, "--int8", "--calibration-images", count)
    assert done.code == 2
    assert "--calibration-images" in done.err


def test_data_that_does_not_fit_is_refused_before_anything_is_exported(lrexport: Command, finished: Path) -> None:
    write_module("users", DATA)
    before = listing(finished)
    done = lrexport("onnx", finished, "--int8", "--no-rescore", "--rounds", "0", "--data", "users:whole_grey")
    assert done.code == 3
    assert "users:whole_grey has images (1, 8, 8); the network takes (3, 8, 8)" in done.err
    assert listing(finished) == before


def test_int8_that_knows_nothing_of_the_network_leaves_everything_as_it_was(
    lrexport: Command, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # That a broken file does agree so little is shown in tests/formats/test_int8.py.
    write_module("users", DATA)
    monkeypatch.setattr(int8_agreement, "class_agreement", lambda first, second: (0.1, 0.01))
    run_folder.write_bytes(finished, "model.int8.onnx", b"from an earlier export")
    before = listing(finished)
    done = lrexport("onnx", finished, "--int8", "--rounds", "0", "--data", "users:fitting")
    assert done.code == 3
    assert "in int8 dense.onnx predicts the same class for 10.0 % of 10 calibration images" in done.err
    assert "hardly more than by chance" in done.err
    assert "No files were written." in done.err
    assert listing(finished) == before
