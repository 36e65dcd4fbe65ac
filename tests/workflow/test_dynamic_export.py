"""``lrexport onnx --dynamic``: from a run to files of any size, their figures, and what refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lrexport.cli.main import run
from lrexport.runs.record import load_record
from tests.folders import folder_with, inside_folder

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 2, 1)
    )

def fixed():
    return nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(864, 32), nn.ReLU(), nn.Linear(32, 10))

make.input_shape = fixed.input_shape = (1, 8, 8)
"""

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_with(tmp_path_factory, free_network=NETWORK)
    with inside_folder(folder):
        assert run(["compress", "free_network:make", "--macs", "0.5", "-o", "free"]) == 0
        assert run(["onnx", "free", "--rounds", "0"]) == 0
    return folder


def test_files_of_any_size_have_the_figures_of_the_networks_own(capsys: pytest.CaptureFixture[str]) -> None:
    before = load_record(Path("free"))
    assert run(["onnx", "free", "--dynamic", "batch,height,width", "--rounds", "10", "--ort"]) == 0
    assert "model.onnx: height and width of any size, compared with torch at other sizes too" in capsys.readouterr().err
    record = load_record(Path("free"))
    for one, other in ((before.results.dense, record.results.dense), (before.results.compressed, record.results.compressed)):
        assert one is not None
        assert other is not None
        assert (one.macs, one.uncounted, one.params) == (other.macs, other.uncounted, other.params)
        assert other.latency_ms["local"].p50 > 0
    assert record.export["dynamic"] == ["batch", "height", "width"]
    assert record.export["batch"] is None
    for name in ("dense.onnx", "model.onnx"):
        runtime = onnxruntime.InferenceSession(f"free/{name}", providers=["CPUExecutionProvider"])
        assert runtime.run(None, {"input": np.zeros((3, 1, 5, 21), np.float32)})[0].shape == (3, 2, 5, 21)


@pytest.mark.slow
def test_check_and_bench_know_the_sizes_of_a_run_and_take_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["onnx", "free", "--dynamic", "height,width", "--rounds", "0"]) == 0
    macs = load_record(Path("free")).results.compressed.macs  # type: ignore[union-attr]  # it has one
    Path("lrexport.toml").write_text(f'[budget]\nmax_macs = "{macs} MACs"\nmax_macs_ratio = "0.51x"\n')
    assert run(["check", "free"]) == 0
    Path("lrexport.toml").write_text(f'[budget]\nmax_macs = "{4 * macs} MACs"\nshapes = {{input = [1, 1, 16, 16]}}\n')
    assert run(["check", "free"]) == 0
    Path("lrexport.toml").write_text(f'[budget]\nmax_macs = "{4 * macs - 1} MACs"\nshapes = {{input = [1, 1, 16, 16]}}\n')
    assert run(["check", "free"]) == 1
    capsys.readouterr()
    for options, size in (([], [1, 1, 8, 8]), (["--shape", "input=1,1,6,30"], [1, 1, 6, 30])):
        assert run(["bench", "free", *options, "--rounds", "10", "--json", "bench.json"]) == 0
        files = json.loads(Path("bench.json").read_text())
        assert json.dumps(size) in json.dumps(files)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--dynamic", "hight"], 2, "invalid axis 'hight': expected one or more of batch, height, width, length"),
        (["--dynamic", "batch", "--batch", "2"], 2, "--batch 2 and --dynamic batch: expected one size of the batch"),
        (["--dynamic", "length"], 2, "no input of the network has a length: it takes 1 × 8 × 8"),
    ],
)
def test_what_cannot_be_free_is_refused_and_the_files_stay(
    capsys: pytest.CaptureFixture[str], options: list[str], code: int, message: str
) -> None:
    before = {path: path.read_bytes() for path in Path("free").iterdir() if path.is_file()}
    assert run(["onnx", "free", *options, "--rounds", "0"]) == code
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("free").iterdir() if path.is_file()} == before


def test_a_network_of_one_size_is_refused_with_the_reason_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compress", "free_network:fixed", "--macs", "0.5", "-o", "fixed"]) == 0
    assert run(["onnx", "fixed", "--dynamic", "height,width", "--rounds", "0"]) == 3
    said = capsys.readouterr().err
    assert "the network accepts no other height and width than its own, 1 × 8 × 8: RuntimeError" in said
    assert "adaptive pooling" in said
    assert not [*Path("fixed").glob("*.onnx")]


@pytest.mark.parametrize("export", [{"dynamic": 3}, {"dynamic": [1]}, {"batch": "x", "dynamic": ["height"]}])
def test_a_record_whose_export_is_damaged_is_refused(
    capsys: pytest.CaptureFixture[str], export: dict[str, object], tmp_path: Path
) -> None:
    record = json.loads(Path("free/run.json").read_text())
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text(json.dumps({**record, "export": export}))
    for command in (["report", str(tmp_path / "odd")], ["bench", str(tmp_path / "odd")]):
        assert run(command) == 3
        assert "invalid record" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_knows_the_sizes_of_a_file_in_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["onnx", "free", "--dynamic", "batch,height,width", "--rounds", "0"]) == 0
    capsys.readouterr()
    result = load_record(Path("free")).results.compressed
    assert result is not None
    assert run(["inspect", "free/model.onnx", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["macs"] == result.macs
    # A copy elsewhere has no record beside it.
    Path("copy.onnx").write_bytes(Path("free/model.onnx").read_bytes())
    assert run(["inspect", "copy.onnx"]) == 0
    assert "not counted" in capsys.readouterr().err
