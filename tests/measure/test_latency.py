"""The interleaved protocol: what is reported, not how fast this machine is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from lrexport.errors import DeviceError
from lrexport.formats.onnx import export_onnx
from lrexport.measure import runner
from lrexport.measure.latency import measure_latency
from lrexport.measure.statistics import spread
from lrexport.measure.targets import MeasuringJob


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("latency")
    small = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    large = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    return {
        name: export_onnx(network, folder / f"{name}.onnx", (3, 32, 32)).path
        for name, network in (("dense", large), ("small", small))
    }


def test_percentiles_are_ordered_and_a_network_of_a_hundredth_of_the_work_is_faster(files: dict[str, Path]) -> None:
    found = measure_latency(files, "dense", MeasuringJob((), cold=True, profile=True))
    for latency in found.values():
        assert 0 < latency.p50 <= latency.p90 <= latency.p99
        assert (latency.rounds, latency.threads, latency.batch) == (50, 1, 1)
        assert latency.load_ms > 0
        assert latency.first_run_ms > 0
        assert latency.peak_bytes > 0
        assert min(latency.operators_ms.values()) >= 0
        assert max(latency.operators_ms, key=latency.operators_ms.get) in ("Conv", "FusedConv")
    assert found["dense"].ratio is None
    assert found["small"].ratio is not None
    assert found["small"].ratio < 0.5
    low, high = found["small"].ratio_iqr or (0, 0)
    assert low <= found["small"].ratio <= high


def test_the_same_file_twice_has_a_ratio_of_about_one(files: dict[str, Path]) -> None:
    found = measure_latency({"dense": files["dense"], "again": files["dense"]}, "dense")["again"]
    assert found.ratio == pytest.approx(1, abs=0.15)


def test_a_file_that_the_runtime_refuses_is_an_error_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"x\.onnx"):
        measure_latency({"x": tmp_path / "x.onnx"}, "x")


def test_the_spread_is_that_of_numpy() -> None:
    found = spread([float(value) for value in range(101)])
    assert (found.p25, found.p50, found.p75, found.p90, found.p99, found.iqr) == (25, 50, 75, 90, 99, 50)


def test_making_the_inputs_is_no_part_of_the_first_run(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    feed, inputs, clock = runner.Inputs.feed, [], [0.0]

    def slow(self: object, declared: object) -> object:
        clock[0] += 1000
        inputs.append(declared)
        return feed(self, declared)

    monkeypatch.setattr(runner.Inputs, "feed", slow)
    monkeypatch.setattr(runner, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(runner, "confine_to", lambda *_: None)  # this process goes on
    found = runner.cold({"file": str(files["small"])}, {"threads": 1, "batch": 0, "seed": 0})
    assert len(inputs) == 1
    assert found["load_ms"] == found["first_run_ms"] == 0
