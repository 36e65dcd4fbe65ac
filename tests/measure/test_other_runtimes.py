"""Runtimes in environments of their own, which make test-formats makes; skipped where it has not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrexport.measure.latency import measure
from lrexport.measure.targets import MeasuringJob, parse_target
from tests.board import write_model
from tests.measure.test_runtimes import write_strided_slice, write_two

PYTHON = os.environ.get("LREXPORT_TEST_MNN")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="run by make test-formats")


def test_mnn_measures_what_onnx_runtime_computes_in_another_environment(tmp_path: Path) -> None:
    files = {
        "plain": write_model(tmp_path / "plain.onnx"),
        "two": write_two(tmp_path / "two.onnx"),
        "slice": write_strided_slice(tmp_path / "slice.onnx"),
    }
    found = measure(files, "plain", MeasuringJob((), rounds=10), parse_target(f"local?runtime=mnn&python={PYTHON}"))
    assert set(found.latencies) == {*files}
    assert (found.environment["runtime"], found.environment["precision"]) == ("mnn", "float32")
    assert set(tmp_path.iterdir()) == {*files.values()}
