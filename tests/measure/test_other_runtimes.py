"""Runtimes in environments of their own, which make test-formats makes; skipped where it has not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lrexport.measure.latency import Measurement, measure
from lrexport.measure.targets import MeasuringJob, parse_target
from tests.board import write_model
from tests.measure.test_runtimes import write_strided_slice, write_two
from tests.onnx_network.test_program import write_tokens
from tests.phone import FakePhone, write_script
from tests.phone_programs import FAKE_MNN

PYTHON = os.environ.get("LREXPORT_TEST_MNN")
FEW = MeasuringJob((), rounds=10)


def measured_in(runtime: str, files: dict[str, Path]) -> Measurement:
    """What was measured: outputs are compared with ONNX Runtime's before. Skipped without the runtime's environment."""
    python = os.environ.get(f"LREXPORT_TEST_{runtime.upper()}")
    if python is None:
        pytest.skip(f"{runtime} has no environment here: run by make test-formats")
    return measure(files, next(iter(files)), FEW, parse_target(f"local?runtime={runtime}&python={python}"))


@pytest.mark.parametrize("runtime", ["mnn", "litert", "executorch"])
def test_what_onnx_runtime_computes_is_measured_in_another_environment(runtime: str, tmp_path: Path) -> None:
    files = {
        "plain": write_model(tmp_path / "plain.onnx"),
        "two": write_two(tmp_path / "two.onnx"),
        "slice": write_strided_slice(tmp_path / "slice.onnx"),
    }
    found = measured_in(runtime, files)
    assert set(found.latencies) == {*files}
    assert (found.environment["runtime"], found.environment["precision"]) == (runtime, "float32")
    assert set(tmp_path.iterdir()) == {*files.values()}


@pytest.mark.parametrize("runtime", ["litert", "executorch"])
def test_tokens_of_64_bits_are_looked_up_and_sizes_computed(runtime: str, tmp_path: Path) -> None:
    assert measured_in(runtime, {"tokens": write_tokens(tmp_path / "tokens.onnx")}).latencies["tokens"].p50 > 0


@pytest.mark.skipif(PYTHON is None, reason="run by make test-formats")
def test_mnn_converts_what_a_phone_measures_with_its_sizes_fixed(tmp_path: Path, phone: FakePhone) -> None:
    import onnx

    files = {"wide": write_model(tmp_path / "wide.onnx", 32), "narrow": write_model(tmp_path / "narrow.onnx", 2)}
    model = onnx.load(files["narrow"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, files["narrow"])
    program = write_script(tmp_path / "benchmark.out", FAKE_MNN)
    target = parse_target(f"adb://?runner=mnn&program={program}&python={PYTHON}")
    found = measure(files, "wide", MeasuringJob((), rounds=3), target)
    assert found.latencies["narrow"].ratio < 1
    assert found.inputs["narrow"]["x"] == {"shape": [1, 3, 8, 8], "dtype": "float32", "values": "undefined"}
    assert (found.environment["runtime"], found.environment["precision"]) == ("mnn", "float32")
    assert phone.left() == []
