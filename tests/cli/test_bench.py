"""``lrexport bench`` as a user types it: tables, JSON, names, runs, .ort files. No time is asserted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lrexport.cli.console import print_table
from lrexport.cli.main import run
from lrexport.report.latency_tables import distinct_names, latency_table, machine_line, verdict
from lrexport.runs.figures import Latency
from lrexport.runs.record import Record
from lrexport.runs.sources import ModelSource
from tests.board import Board, write_lookup, write_model, write_open
from tests.cli.test_console import Terminal

ROUNDS = ["--rounds", "50"]


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "dense.onnx", 32)
    write_model(tmp_path / "small.onnx", 2)
    return tmp_path


def test_two_files_make_tables_for_people_and_json_for_machines(capsys: pytest.CaptureFixture) -> None:
    options = ["--baseline", "dense.onnx", "--threads", "2", "--profile", "--json", "found.json"]
    assert run(["bench", "small.onnx", *options, *ROUNDS]) == 0
    header, dense, small, protocol, machine, *operators = capsys.readouterr().out.splitlines()
    columns = ["file", "p50", "p90", "p99", "IQR", "ratio", "ratio's IQR", "load", "first run", "memory", "size", "verdict"]
    assert re.split(r"  +", header) == columns
    assert dense.split()[0] == "dense.onnx"
    assert "×" not in dense
    assert re.search(r"\d\.\d\d×  +\d+\.\d\d – \d+\.\d\d", small)
    assert protocol == "Batch of 1, 50 rounds, 2 threads; ratio to dense.onnx in the same rounds."
    assert machine.startswith("local: ")
    assert "ONNX Runtime" in machine
    assert operators[0].split() == ["operator", "dense.onnx", "small.onnx"]
    assert any(line.split()[0] in ("Conv", "FusedConv") for line in operators)
    assert operators[-2].startswith("all operators")
    _check_json(json.loads(Path("found.json").read_text()))


def _check_json(found: dict[str, Any]) -> None:
    assert (found["target"], found["baseline"]) == ("local", "dense.onnx")
    assert found["environment"]["cpu"] == found["environment_after"]["cpu"]
    assert list(found["files"]) == ["dense.onnx", "small.onnx"]
    small = found["files"]["small.onnx"]
    assert (small["path"], small["bytes"]) == ("small.onnx", Path("small.onnx").stat().st_size)
    latency = Latency.model_validate(small["latency_ms"])
    assert (latency.threads, latency.rounds, latency.batch) == (2, 50, 1)
    assert all(value is not None for name, value in latency if name not in ("warning", "layers_ms"))


def test_several_targets_share_a_table_and_check_reads_each_from_the_json(capsys: pytest.CaptureFixture) -> None:
    targets = ["--target", "local", "--target", "local?runtime=ncnn"]
    assert run(["bench", "dense.onnx", "small.onnx", *targets, "--rounds", "10", "--json", "found.json"]) == 0
    captured = capsys.readouterr()
    header, *rows = captured.out.splitlines()
    assert header.split()[:3] == ["target", "file", "p50"]
    assert [row.split()[:2] for row in rows[:4]] == [
        [target, file] for target in ("local", "local?runtime=ncnn") for file in ("dense.onnx", "small.onnx")
    ]
    assert rows[4].endswith("ratio to dense.onnx in the same rounds and target.")
    assert "ONNX Runtime" in rows[5]
    assert re.search(r"^local\?runtime=ncnn: .* ncnn [\d.]+ in float32\.$", rows[6])
    assert "local?runtime=ncnn: inconclusive" in captured.err
    found = json.loads(Path("found.json").read_text())["targets"]
    assert [each["target"] for each in found] == ["local", "local?runtime=ncnn"]
    limits = 'target = "local?runtime=ncnn"\nmax_latency_p50 = "10 s"\n'
    Path("lrexport.toml").write_text(f'[budget.small]\npath = "small.onnx"\n{limits}')
    assert run(["check", "--latency", "found.json"]) == 0
    Path("lrexport.toml").unlink()
    assert "latency p50 on local?runtime=ncnn" in capsys.readouterr().out


def test_the_environment_may_choose_targets(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LREXPORT_BENCH_TARGET", "local local?runtime=nothing")
    assert run(["bench", "small.onnx"]) == 2
    assert "unknown runtime 'nothing'" in capsys.readouterr().err


def test_time_by_operator_is_refused_of_a_runtime_without_a_profiler(capsys: pytest.CaptureFixture) -> None:
    assert run(["bench", "small.onnx", "--profile", "--target", "local?runtime=ncnn"]) == 2
    assert "cannot measure time per operator: ncnn has no profiler" in capsys.readouterr().err


def test_few_rounds_are_said_to_conclude_nothing(capsys: pytest.CaptureFixture) -> None:
    assert run(["bench", "small.onnx", "--rounds", "10"]) == 0
    captured = capsys.readouterr()
    assert "inconclusive" in captured.out
    assert "ratio" not in captured.out  # of one file alone
    assert captured.err == "warning: inconclusive: 10 rounds; at least 50 are needed\n"


def test_a_run_stands_for_its_exported_files_as_they_were_written(capsys: pytest.CaptureFixture) -> None:
    for name, channels in (("one", 4), ("two", 8)):
        folder = Path(name)
        folder.mkdir()
        record = Record(model=ModelSource(source="x", input_shape=(3, 8, 8)))
        names = ["model.onnx", "dense.onnx"][: 2 if name == "one" else 1]
        for file in names:
            write_model(folder / file, channels)
        record = record.sealed(folder, *names)
        record.save(folder)
    assert run(["bench", "one", "two", *ROUNDS, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["files"]) == ["dense.onnx", "one/model.onnx", "two/model.onnx"]
    assert found["baseline"] == "dense.onnx"
    shutil.copy("small.onnx", "one/model.onnx")
    assert run(["bench", "one"]) == 3
    assert "one/model.onnx" in capsys.readouterr().err


def test_a_run_that_was_not_exported_is_told_how(capsys: pytest.CaptureFixture) -> None:
    Path("run").mkdir()
    Record(model=ModelSource(source="x", input_shape=(3, 8, 8))).save(Path("run"))
    assert run(["bench", "run"]) == 2
    assert "lrexport onnx run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere.onnx"], 2, "nowhere.onnx does not exist"),
        (["small.onnx", "--baseline", "nowhere.onnx"], 2, "nowhere.onnx does not exist"),
        (["empty.onnx"], 3, "empty file: empty.onnx"),
        (["random.onnx"], 3, "invalid ONNX file random.onnx"),
        (["random.ort"], 3, "random.ort is not in ONNX Runtime's format"),
        (["cut.ort"], 3, "local cannot measure cut.ort: "),
        (["small.onnx", "--batch", "4"], 2, "a fixed batch of 1, not 4; omit the batch size, or export"),
        (
            ["open.onnx"],
            2,
            "cannot measure open.onnx: size 'H' of input 'x' with shape N,3,H,W is open: give all its sizes",
        ),
        (["small.onnx", "--shape", "y=1,3,8,8"], 2, "no file has an input named 'y': expected 'x'"),
        (["open.onnx", "--shape", "x=1,4,8,8"], 2, "has shape N,3,H,W, but the given shape is 1,4,8,8"),
        (["open.onnx", "--shape", "x=1,3,1,1"], 3, "local cannot measure open.onnx: "),
        (
            ["open.onnx", "--shape", "x=1,3,8,8", "--input", "x.npz"],
            2,
            "x has shape 2,3,9,9 in x.npz but 1,3,8,8 in --shape",
        ),
        (["small.onnx", "--input", "x.npz"], 2, "has shape 1,3,8,8, but the given array is 2,3,9,9"),
        (["small.onnx", "--input", "nowhere.npz"], 3, "cannot read nowhere.npz: no such file"),
        (["small.onnx", "--input", "random.ort"], 3, "invalid .npz file random.ort: File is not a zip file"),
        (["small.onnx", "--rounds", "9"], 2, "--rounds"),
        (["small.onnx", "--threads", "0"], 2, "--threads"),
        ([], 2, "FILE|RUN"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture) -> None:
    write_open(Path("open.onnx"))
    np.savez("x.npz", x=np.ones((2, 3, 9, 9), "f4"))
    Path("empty.onnx").touch()
    Path("random.onnx").write_bytes(b"this is no model" * 20)
    Path("random.ort").write_bytes(b"this is no model" * 20)
    Path("cut.ort").write_bytes(b"\x14\0\0\0ORTM" + bytes(100))
    assert run(["bench", *arguments]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not captured.out


def test_a_file_of_open_sizes_is_measured_at_those_that_are_given_here_and_on_a_device(
    board: Board, capsys: pytest.CaptureFixture
) -> None:
    write_open(Path("open.onnx"))
    for target in ("local", board.url):
        options = ["--shape", "x=2,3,16,12", "--rounds", "10", "--target", target, "--json", "found.json"]
        assert run(["bench", "open.onnx", *options]) == 0
        (found,) = json.loads(Path("found.json").read_text())["files"].values()
        assert found["inputs"] == {"x": {"shape": [2, 3, 16, 12], "dtype": "float32", "values": "random"}}
        assert found["latency_ms"]["batch"] == 2
        assert len(found["samples_ms"]) == 10
    assert "inputs of" not in capsys.readouterr().err


def test_integers_booleans_and_several_inputs_are_measured_and_said(capsys: pytest.CaptureFixture) -> None:
    write_lookup(Path("lookup.onnx"))
    assert run(["bench", "lookup.onnx", "--rounds", "10", "--json", "found.json"]) == 0
    line = "inputs of lookup.onnx: ids int64 1,4 (ones), keep bool 1,4 (ones), scale float16 scalar (random)"
    assert line in capsys.readouterr().err
    (found,) = json.loads(Path("found.json").read_text())["files"].values()
    assert [fed["values"] for fed in found["inputs"].values()] == ["ones", "ones", "random"]


@pytest.mark.parametrize("where", ["here", "on a device"])
def test_the_users_own_inputs_reach_the_runtime(
    where: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture
) -> None:
    target = ["--target", request.getfixturevalue("board").url] if where == "on a device" else []
    write_lookup(Path("lookup.onnx"))
    np.savez("fits.npz", ids=np.full((1, 4), 6))
    np.savez("past.npz", ids=np.full((1, 4), 7))
    assert run(["bench", "lookup.onnx", "--input", "fits.npz", "--rounds", "10", *target]) == 0
    assert "ids int64 1,4 (given)" in capsys.readouterr().err
    assert run(["bench", "lookup.onnx", "--input", "past.npz", "--rounds", "10", *target]) == 3
    assert "idx=7 must be within the inclusive range [-7,6]" in capsys.readouterr().err


def test_neither_torch_nor_onnx_nor_the_runtime_is_imported_here() -> None:
    code = "import sys; from lrexport.cli.main import run; status = run(['bench', 'small.onnx', '--rounds', '10']); "
    code += "print(status, {'torch', 'onnx', 'onnxruntime'} & set(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 set()"


def test_a_device_is_measured_like_this_machine(board: Board, capsys: pytest.CaptureFixture) -> None:
    assert run(["bench", "dense.onnx", "small.onnx", "--target", board.url, "--profile", *ROUNDS]) == 0
    captured = capsys.readouterr()
    assert f"ssh://{board.user}@127.0.0.1:{board.port}: " in captured.out
    assert "operator" in captured.out
    assert board.left() == []


def test_names_are_as_short_as_tells_them_apart() -> None:
    paths = [Path(text) for text in ("a/model.onnx", "b/model.onnx", "/c/dense.onnx", "a/model.onnx")]
    assert distinct_names(paths) == ["a/model.onnx", "b/model.onnx", "dense.onnx", "a/model.onnx #2"]
    assert distinct_names([Path("model.onnx"), Path("x/model.onnx")]) == ["model.onnx", "x/model.onnx"]
    three = [Path("m.onnx"), Path("m.onnx"), Path("m.onnx #2")]
    assert distinct_names(three) == ["m.onnx", "m.onnx #2", "m.onnx #2 #2"]


def latency(ratio_iqr: tuple[float, float] | None = None, **more: Any) -> Latency:
    ratio = sum(ratio_iqr) / 2 if ratio_iqr else None
    return Latency(p50=1, p90=2, p99=3, iqr=0.1, rounds=50, threads=1, batch=1, ratio=ratio, ratio_iqr=ratio_iqr, **more)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (latency((0.5, 0.6)), "faster"),
        (latency((1.1, 1.6)), "slower"),
        (latency((0.9, 1.1)), "no difference"),
        (latency((0.5, 0.6), warning="inconclusive: x"), "inconclusive"),
        (latency((0.5, 0.6), warning="partial: x"), "partial"),
        (latency(), "baseline"),
    ],
)
def test_the_verdict_needs_the_whole_iqr_on_one_side(found: Latency, word: str) -> None:
    assert verdict(found, is_baseline=found.ratio is None) == word


MACHINE: Mapping[str, Any] = {
    "cpu": "Cortex-A76",
    "isa": ["asimd", "asimddp"],
    "cores": 4,
    "governor": "ondemand",
    "celsius": 61.2,
    "onnxruntime": "1.31.1",
}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_terminal_of_any_width_shows_every_line_and_what_matters(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    more = {"load_ms": 12.0, "first_run_ms": 3.0, "peak_bytes": 10**7}
    found = {"dense.onnx": latency(**more), "model.onnx": latency((0.5, 0.6), **more)}
    table = latency_table(found, {"dense.onnx": 1000, "model.onnx": 500}, "dense.onnx", "ssh://pi@board", MACHINE)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        print_table(table)
    text = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert all(len(line) <= width for line in text.splitlines())
    letters = "".join(text.split())
    for word in ("1.00ms", "0.55×", "faster", "Cortex-A76"):
        assert word in letters
    assert ("Columns omitted" in text) == (width < 160)


def test_a_machine_is_one_line() -> None:
    line = "ssh://pi@board: Cortex-A76 (asimd, asimddp), 4 cores, governor ondemand, 61 °C, ONNX Runtime 1.31.1"
    assert machine_line("ssh://pi@board", MACHINE) == line


def test_bytes_are_those_of_the_file_with_its_external_data(capsys: pytest.CaptureFixture) -> None:
    onnx.save(onnx.load("small.onnx"), "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0)
    assert run(["bench", "apart.onnx", "apart.onnx", "--rounds", "10", "--json", "-"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    size = Path("apart.onnx").stat().st_size + Path("apart.bin").stat().st_size
    assert [file["bytes"] for file in files.values()] == [size, size]
