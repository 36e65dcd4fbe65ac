"""onnxruntime-web in a real Chromium, which make test-formats gets from npm; skipped without. No time is asserted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from lrexport.errors import DeviceError
from lrexport.measure.latency import measure
from lrexport.measure.targets import MeasuringJob, parse_target
from lrexport.measure.targets.base import LimitReached, ModelRefused
from lrexport.measure.targets.browser import programs, target, visits
from lrexport.measure.targets.browser.desk import Job
from tests.board import children, save_graph, write_model
from tests.measure.targets.phone import running_in
from tests.measure.test_runtimes import tensor, write_two

PACKAGE = os.environ.get("LREXPORT_TEST_ONNXRUNTIME_WEB")
pytestmark = [
    pytest.mark.skipif(PACKAGE is None, reason="run by make test-formats, which gets onnxruntime-web from npm"),
    pytest.mark.skipif(not any(map(shutil.which, programs.PROGRAMS)), reason="no Chromium here: apt-get install chromium"),
]
TARGET = f"browser?package={PACKAGE}"


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of one test, with a short path, as Chromium needs it."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr("tempfile.tempdir", name)
        yield Path(name)


def left(folder: Path) -> tuple[list[str], list[int]]:
    """Files and processes that are left, given a moment."""
    until = time.monotonic() + 20
    while time.monotonic() < until and (any(folder.iterdir()) or running_in(folder)):
        time.sleep(0.1)
    return sorted(path.name for path in folder.iterdir()), running_in(folder)


def write_types(path: Path) -> Path:
    """Integers, booleans, half and double precision, in and out."""
    kinds = {"i": TensorProto.INT64, "b": TensorProto.BOOL, "u": TensorProto.UINT8, "d": TensorProto.DOUBLE}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    nodes.append(helper.make_node("Cast", ["u"], ["h_out"], to=TensorProto.FLOAT16))
    inputs = [tensor(name, [2, 3], kind) for name, kind in kinds.items()]
    outputs = [tensor(f"{name}_out", [2, 3], kind) for name, kind in kinds.items()]
    return save_graph(path, nodes, inputs, [*outputs, tensor("h_out", [2, 3], TensorProto.FLOAT16)], {})


def test_networks_are_compared_and_measured_under_the_protocol(tmp_path: Path, temporary: Path) -> None:
    files = {"two": write_two(tmp_path / "two.onnx"), "types": write_types(tmp_path / "types.onnx")}
    found = measure(files, "two", MeasuringJob((), rounds=10, batch=0, cold=True, threads=2), parse_target(TARGET))
    for latency in found.latencies.values():
        assert latency.p50 > 0
        assert latency.load_ms is not None
        assert latency.first_run_ms is not None
        assert latency.threads == 2  # the page is isolated
    assert found.environment["runtime"] == "onnxruntime-web"
    assert " wasm, Chrom" in found.environment["runtime_version"]
    assert found.environment["timer_us"] < 50
    assert left(temporary) == ([], [])


def test_groups_with_evicted_caches_are_measured_for_layer_times(tmp_path: Path) -> None:
    files = {"wide": write_model(tmp_path / "wide.onnx", 32), "narrow": write_model(tmp_path / "narrow.onnx", 2)}
    job = MeasuringJob((files, files), rounds=200, warmup_runs=2, group_seconds=0.2, evict_bytes=1 << 20)
    groups = [answer for answer in parse_target(TARGET).run(job) if "models" in answer]
    assert [answer["group"] for answer in groups] == [0, 1]
    assert all(7 <= len(figures["samples_ms"]) <= 200 for group in groups for figures in group["models"].values())


def test_an_operator_that_only_the_browsers_build_lacks_is_named(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [tensor("x", [1, 3])], [tensor("y", [1, 3])]
    known = save_graph(tmp_path / "a.onnx", [helper.make_node("Relu", ["x"], ["y"])], *ports, {})
    unknown = save_graph(tmp_path / "b.onnx", [helper.make_node("ReluOfTomorrow", ["x"], ["y"])], *ports, {})
    asked = target.asked

    def with_other_files(*arguments: Any) -> Job:
        job = asked(*arguments)
        return replace(job, subjects=[replace(subject, path=unknown) for subject in job.subjects])

    monkeypatch.setattr(target, "asked", with_other_files)
    with pytest.raises(ModelRefused, match="ReluOfTomorrow") as caught:
        measure({"a": known}, None, MeasuringJob((), rounds=10), parse_target(TARGET))
    assert caught.value.model == "a"
    assert left(temporary) == ([], [])


def test_limits_on_time_and_memory_hold_in_the_page(tmp_path: Path) -> None:
    weight = np.zeros((4096, 4096), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["y"])]
    ports = [tensor("x", [512, 4096])], [tensor("y", [512, 4096])]
    path = save_graph(tmp_path / "large.onnx", nodes, *ports, {"w": weight})
    with pytest.raises(LimitReached, match="memory") as caught:
        _only_page_limited({"large": path}, memory=40_000_000)
    assert caught.value.model == "large"
    with pytest.raises(LimitReached, match=r"takes more than [\d.]+ s"):
        _only_page_limited({"large": path}, seconds=0.001)


def _only_page_limited(files: dict[str, Path], **limits: float) -> None:
    """A measurement whose limits hold for the page, not for ONNX Runtime's own run before."""
    asked = target.asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "asked", lambda job, *rest: asked(replace(job, **limits), *rest))
        measure(files, None, MeasuringJob((), rounds=10, batch=0), parse_target(TARGET))


@pytest.mark.parametrize(
    ("kind", "words"), [("--type=renderer", "no sign of life"), ("", "the browser ended with signal|with exit status")]
)
def test_a_page_that_crashes_and_a_browser_that_is_killed_are_reported(
    kind: str, words: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(facts: dict[str, Any]) -> None:
        if facts["stage"] == "measuring":
            for process in browsers(os.getpid(), kind):
                os.kill(process, signal.SIGKILL)

    monkeypatch.setattr(visits.Visit, "most_silent_seconds", 12.0)
    files = {"a": write_model(tmp_path / "a.onnx")}
    with pytest.raises(DeviceError, match=words):
        measure(files, None, MeasuringJob((), rounds=10**6), parse_target(TARGET), crash)
    assert left(temporary) == ([], [])


def browsers(parent: int, kind: str) -> list[int]:
    """Processes of Chromium below a process: of a kind, or "" for the first."""
    found = []
    for child in children(parent):
        with contextlib.suppress(OSError):  # it may end at any moment
            line = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace")
            if "keeper" not in line and (kind in line if kind else "user-data-dir" in line and "--type" not in line):
                found.append(child)
            found += browsers(child, kind)
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_command_that_is_stopped_leaves_no_browser_and_no_files(
    number: signal.Signals, code: int, tmp_path: Path, temporary: Path
) -> None:
    command = [sys.executable, "-m", "lrexport", "bench", str(write_model(tmp_path / "a.onnx")), "--rounds", "1000000"]
    process = subprocess.Popen([*command, "--target", TARGET], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not browsers(process.pid, "--type=renderer") and time.monotonic() < until:
        time.sleep(0.05)
    assert children(process.pid)
    process.send_signal(number)
    assert process.wait(60) == code
    files, processes = left(temporary)
    assert processes == []
    # A killed command cannot remove its own folder, with the inputs; the browser's is gone.
    assert not files if number != signal.SIGKILL else len(files) <= 1


def test_webgpu_measures_where_the_browser_has_it_and_is_missed_elsewhere(tmp_path: Path) -> None:
    job, target = MeasuringJob((), rounds=10), parse_target(f"{TARGET}&provider=webgpu")
    files = {"a": write_model(tmp_path / "a.onnx")}
    try:
        found = measure(files, None, job, target)
    except DeviceError as error:
        if "has no WebGPU" not in error.message:
            raise
    else:
        assert " webgpu on " in found.environment["runtime_version"]
