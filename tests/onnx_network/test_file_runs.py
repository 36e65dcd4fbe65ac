"""Runs of .onnx files with a task of the user's, killed and resumed, under budgets, and loaded."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import lrexport as api
from lrexport.cli.main import run
from lrexport.metric import Metric
from lrexport.runs.record import load_record
from tests.folders import inside_folder
from tests.forked import Forked
from tests.onnx_network.graphs import saved, two_convolutions
from tests.tasks.samples import Sharpener

SAMPLES = "tests.tasks.samples"
QUIET = ("--device", "cpu")


def test_a_users_task_scores_a_file_in_torch_and_in_onnx_runtime_and_holds_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    api.export_onnx(Sharpener(), "net.onnx", Sharpener.input_shape, batch=None)
    data = ("--data", f"{SAMPLES}:blurred", "--task", f"{SAMPLES}:own_task")
    assert run(["compress", "net.onnx", *data, "--macs", "0.8", "--heal-minutes", "0", "-o", "out", *QUIET]) == 0
    assert run(["onnx", "out", "--rounds", "0"]) == 0
    results = load_record(Path("out")).results
    for result in (results.dense, results.compressed):
        assert result is not None
        assert result.accuracy is not None
        assert result.accuracy.metric == Metric("error", higher_is_better=False)
        assert result.accuracy.n > 0
    for limit, code in (("9 error", 0), ("0 error", 1)):
        Path("lrexport.toml").write_text(f'[budget]\nmax_macs_ratio = "0.8x"\nmax_accuracy_drop = "{limit}"\n')
        capfd.readouterr()
        assert run(["check", "out"]) == code, capfd.readouterr()
    assert "error" in capfd.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder with net.onnx, pictures and the run ``whole`` with fine-tuning, and the arguments that made it."""
    root = tmp_path_factory.mktemp("killed")
    saved(two_convolutions(), root)
    generator = np.random.default_rng(0)
    for number in range(64):
        path = root / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    stages = ("--data", "images:pictures", "--svd-epochs", "1", "--fine-tune-epochs", "1", "--heal-minutes", "0")
    command = ("compress", "net.onnx", "--macs", "0.6", *stages, "--lr", "0.001", *QUIET)
    with inside_folder(root):
        whole = Forked(root, *command, "-o", "whole")  # here, threads of other tests' libraries may round otherwise
        assert whole.wait() == 0, whole.output
        yield root, command


def _resumed_is_whole(root: Path, command: tuple[str, ...], die_at: tuple[str, int]) -> bool:
    """Kill a run and resume it; whether it was killed. Its files are those of the run that nobody killed, to the bit."""
    shutil.rmtree(root / "work", ignore_errors=True)
    arguments = (*command, "--resume", "-o", "work")
    first = Forked(root, *arguments, die_at=die_at)
    code = first.wait()
    if code == 0:
        return False
    assert code == -signal.SIGKILL, first.output
    again = Forked(root, *arguments)
    assert again.wait() == 0, again.output
    for name in ("source.onnx", "dense.safetensors", "model.safetensors"):
        assert (root / "work" / name).read_bytes() == (root / "whole" / name).read_bytes(), (die_at, name)
    ours, theirs = (json.loads((root / folder / "run.json").read_text())["plan"] for folder in ("work", "whole"))
    assert ours == theirs
    return True


@pytest.mark.parametrize("call", [9, pytest.param(3, marks=pytest.mark.slow)])
def test_a_file_whose_run_was_killed_resumes_to_the_same_network(trained: tuple[Path, tuple[str, ...]], call: int) -> None:
    assert _resumed_is_whole(*trained, ("replace", call))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_file_whose_run_was_killed_at_any_write_resumes_to_the_same_network(trained: tuple[Path, tuple[str, ...]]) -> None:
    count = 0
    while _resumed_is_whole(*trained, ("replace", count + 1)):
        count += 1
    assert count > 10


def test_a_loaded_run_says_what_its_network_takes_and_gives(trained: tuple[Path, tuple[str, ...]]) -> None:
    network = api.load("whole")
    assert isinstance(network, torch.nn.Module)
    assert network.signature.names == ("x",)  # type: ignore[operator, union-attr]
    assert network.output_names == ("scores",)
    made = api.export_onnx(network, "loaded.onnx", network.signature)  # type: ignore[arg-type]
    assert made.comparison.relative_error < 1e-4
    assert run(["onnx", "whole", "--rounds", "0"]) == 0
    feed = {"x": np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    one, two = (onnxruntime.InferenceSession(path).run(None, feed)[0] for path in ("loaded.onnx", "whole/model.onnx"))
    assert np.array_equal(one, two)
