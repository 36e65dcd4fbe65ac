"""``lrexport onnx`` with its optional files and other targets, on a small network without data."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from lrexport.artifacts import run_folder
from lrexport.artifacts.run_files import EXPORTED
from lrexport.artifacts.run_lock import RunLock
from lrexport.cli.main import run
from lrexport.config.export_options import ExportOptions
from lrexport.events import Event, FileExported
from lrexport.runs.record import load_record
from lrexport.workflow import exporting
from tests.board import Board
from tests.cli.test_inspect import NETWORK
from tests.conftest import heed_ctrl_c
from tests.folders import folder_with, inside_folder
from tests.forked import Forked

ORT = {"model.ort", "model.arm.ort"}


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a compressed run."""
    folder = folder_with(tmp_path_factory, exported_network=NETWORK)
    with inside_folder(folder):
        assert run(["compress", "exported_network:make", "--macs", "0.6", "-o", "run"]) == 0
    return folder


def test_ort_files_are_written_for_both_platforms_sealed_measurable_and_go_with_the_next_export(
    capsys: pytest.CaptureFixture,
) -> None:
    assert run(["onnx", "run", "--ort", "--rounds", "0"]) == 0
    err = capsys.readouterr().err
    assert "model.ort: " in err
    assert " for arm; differs from model.onnx by at most " in err
    record = load_record(Path("run"))
    for name in ORT:
        assert record.check(Path("run"), name).read_bytes()[4:8] == b"ORTM"
    assert run(["bench", "run/model.onnx", "run/model.ort", "--rounds", "10"]) == 0
    assert "model.ort" in capsys.readouterr().out
    assert run(["onnx", "run", "--rounds", "0"]) == 0
    assert "removed files of an earlier export: model.arm.ort, model.ort" in capsys.readouterr().err
    assert not ORT & {path.name for path in Path("run").iterdir()}
    assert not ORT & set(load_record(Path("run")).files)


def test_a_new_compression_of_a_run_removes_every_file_that_was_exported_of_the_old_one() -> None:
    shutil.copytree("run", "again")
    assert run(["onnx", "again", "--ort", "--rounds", "0"]) == 0
    assert {path.name for path in Path("again").iterdir()} >= {*ORT, "model.onnx", "dense.onnx"}
    (Path("again") / "model.int8.onnx").write_text("not one that lrexport made")
    assert run(["compress", "again", "--macs", "0.4"]) == 0
    assert set(EXPORTED) & {path.name for path in Path("again").iterdir()} == {"model.int8.onnx"}
    assert not set(EXPORTED) & set(load_record(Path("again")).files)


def test_an_export_records_its_choices_and_the_time_of_every_layer_and_a_report_has_both(
    capsys: pytest.CaptureFixture,
) -> None:
    assert run(["onnx", "run", "--rounds", "10", "--threads", "2", "--batch", "3"]) == 0
    record = load_record(Path("run"))
    assert (record.export["batch"], record.export["threads"], record.export["int8"]) == (3, 2, False)
    for result in (record.results.dense, record.results.compressed):
        times = result.latency_ms["local"].layers_ms
        assert set(times) == {*record.plan, ""}
        assert all(time > 0 for layer, time in times.items() if layer)
    capsys.readouterr()
    assert run(["report", "run", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert all(layer["dense_ms"] > 0 and layer["ms"] > 0 for layer in found["layers"].values())
    assert found["commands"][1][:5] == ["lrexport", "onnx", "run-again", "--batch", "3"]


def test_latency_of_a_device_is_recorded_under_its_name_with_its_machine(
    board: Board, capsys: pytest.CaptureFixture
) -> None:
    assert run(["onnx", "run", "--target", board.url, "--rounds", "50"]) == 0
    name = f"ssh://{board.user}@127.0.0.1:{board.port}"
    assert f"latency p50 ({name}, 1 thread)" in capsys.readouterr().out
    record = load_record(Path("run"))
    assert record.results.compressed.latency_ms[name].ratio is not None
    assert list(record.results.dense.latency_ms) == [name]
    assert set(record.environment["targets"]) == {name}
    assert record.environment["targets"][name]["cores"] >= 1
    assert board.left() == []


def test_a_device_that_is_not_there_is_noticed_before_any_work(capsys: pytest.CaptureFixture) -> None:
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert run(["onnx", "run", "--target", "ssh://127.0.0.1:1"]) == 4
    err = capsys.readouterr().err
    assert "it cannot be reached" in err
    assert "model.onnx" not in err
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


@pytest.fixture
def mine() -> Path:
    """A run that was exported, for one test."""
    if not Path("exported").exists():
        shutil.copytree("run", "exported")
        assert run(["onnx", "exported", "--ort", "--rounds", "0"]) == 0
    shutil.rmtree("mine", ignore_errors=True)
    shutil.copytree("exported", "mine")
    return Path("mine")


def test_a_run_is_exported_by_one_process_while_no_other_changes_it(mine: Path, capsys: pytest.CaptureFixture) -> None:
    with RunLock(mine):
        assert run(["onnx", "mine", "--rounds", "0"]) == 2
    assert f"mine is in use by process {os.getpid()} on " in capsys.readouterr().err
    codes = []

    def compress(event: Event) -> None:
        if isinstance(event, FileExported):
            codes.append(run(["compress", "mine", "--macs", "0.4"]))

    exporting.export_run(mine, ExportOptions(rounds=0), compress)
    assert codes == [2, 2]
    assert "mine is in use by process" in capsys.readouterr().err
    record = load_record(mine)
    for name in record.files:
        record.check(mine, name)
    assert not (mine / ".holder").exists()


@pytest.mark.slow
def test_an_export_killed_between_its_files_and_the_record_leaves_a_run_that_was_not_exported(
    mine: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = run_folder.move

    def die(*arguments: Any) -> None:
        move(*arguments)
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "move", die)
        with pytest.raises(RuntimeError):
            exporting.export_run(mine, ExportOptions(rounds=0, opset=20), lambda _event: None)
    left = load_record(mine)
    assert not set(EXPORTED) & set(left.files)
    assert left.results.compressed is not None
    assert (left.export, left.results.compressed.bytes, left.results.compressed.latency_ms) == ({}, None, {})
    assert run(["bench", "mine"]) == 2
    assert "mine has no ONNX files yet" in capsys.readouterr().err
    assert run(["onnx", "mine", "--rounds", "0"]) == 0
    assert {*EXPORTED} & {*load_record(mine).files} == {"dense.onnx", "model.onnx"}


def test_ctrl_c_between_the_files_of_an_export_and_the_record_comes_once_both_are_there(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heed_ctrl_c()
    move = run_folder.move

    def interrupted(*arguments: Any) -> None:
        move(*arguments)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_folder, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exporting.export_run(mine, ExportOptions(rounds=0, opset=20), lambda _event: None)
    record = load_record(mine)
    assert record.export["opset"] == 20
    assert record.check(mine, "model.onnx").is_file()


def test_what_an_export_that_was_killed_left_goes_with_the_next_one_and_nothing_else(mine: Path) -> None:
    others = [mine / ".export-a1b2c3_d", mine / ".export-settings", mine / ".export-mine.bak"]
    for folder in others:
        folder.mkdir()
        (folder / "model.onnx").touch()
    killed = Forked(Path.cwd(), "onnx", "mine", "--rounds", "0", die_at=("replace", 3))  # .holder, dense.onnx, model.onnx
    assert killed.wait() == -signal.SIGKILL
    assert len(list(mine.glob(".export-*"))) == len(others) + 1
    assert run(["onnx", "mine", "--rounds", "0"]) == 0
    assert sorted(mine.glob(".export-*")) == sorted(others)
