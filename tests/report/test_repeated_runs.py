"""The commands of a report, run as they are: the same network, the same choices, the same files."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lrexport.cli.main import run
from lrexport.report.repeat_commands import commands, shell_lines
from lrexport.runs.record import Record, load_record
from tests.folders import folder_with

NETWORKS = """
import torch
from torch import nn

class Images(nn.Sequential):
    input_shape = (1, 8, 8)

    def __init__(self, num_classes=3, width=8, name="a", bias=True):
        super().__init__(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, bias=bias), nn.ReLU(), nn.Flatten(),
            nn.Linear(32 * width, num_classes),
        )

class Both(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.words, self.state, self.head = nn.Embedding(9, width), nn.Linear(6, width), nn.Linear(2 * width, 4 * width)
        self.last = nn.Linear(4 * width, 3)

    def forward(self, tokens, state):
        return self.last(self.head(torch.cat([self.words(tokens).mean(1), self.state(state)], 1)).relu())
"""
UNTRAINED = ["--dense-epochs", "0", "--svd-epochs", "0", "--fine-tune-epochs", "0", "--device", "cpu", "--batch-size", "64"]

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, repeated_networks=NETWORKS)


def _repeat(name: str) -> tuple[Record, Record]:
    """The record of a run, and that of its commands pasted into a shell where it was made."""
    record = load_record(Path(name))
    for command in commands(record, name):
        words = shlex.split(shell_lines(command).replace("\\\n", " "))
        assert words[0] == "lrexport"
        assert run(words[1:]) == 0
    return record, load_record(Path(f"{name}-again"))


def _same(one: Record, other: Record) -> None:
    assert (one.model, one.plan, one.export) == (other.model, other.plan, other.export)
    assert (one.config, one.data) == (other.config, other.data)
    names = {name for name in one.files if name.endswith(".onnx")}
    assert {name: one.files[name] for name in names} == {name: other.files[name] for name in names}


@pytest.mark.parametrize(
    "options", [pytest.param("num_classes=10&width=16", marks=pytest.mark.slow), "num_classes=10&bias=false&name=a+b%26c"]
)
def test_a_callable_keeps_its_arguments_also_those_that_the_data_would_give(options: str) -> None:
    command = ["compress", f"repeated_networks:Images?{options}", "--data", "digits", "--macs", "0.6", *UNTRAINED]
    assert run([*command, "--seed", "5", "-o", "a run's folder"]) == 0
    assert run(["onnx", "a run's folder", "--rounds", "0", "--dynamic", "batch"]) == 0
    record, again = _repeat("a run's folder")
    _same(record, again)
    assert again.model.kwargs["num_classes"] == 10


def test_several_inputs_and_paths_with_spaces_are_repeated(tmp_path: Path) -> None:
    plan, name = tmp_path / "my plan.json", "two inputs"
    inputs = ["--input", "tokens=5:int64:0..8", "--input", "state=6"]
    assert run(["compress", "repeated_networks:Both?width=16", *inputs, "--macs", "0.7", "-o", "first"]) == 0
    plan.write_bytes((Path("first") / "run.json").read_bytes())
    command = ["compress", "repeated_networks:Both?width=16", *inputs, "--plan", str(plan), "--keep", "last"]
    assert run([*command, "-o", name]) == 0
    assert run(["onnx", name, "--rounds", "0", "--batch", "2", "--opset", "17"]) == 0
    _same(*_repeat(name))


@pytest.mark.slow
def test_a_run_that_continued_in_place_is_repeated_as_a_whole() -> None:
    command = ["train", "repeated_networks:Images?num_classes=10", "--data", "digits", "--svd-epochs", "1"]
    assert run([*command, *UNTRAINED[:2], *UNTRAINED[6:], "-o", "trained"]) == 0
    for share in ("0.7", "0.6"):
        assert run(["compress", "trained", "--macs", share, "--fine-tune-epochs", "0", "-o", "trained"]) == 0
    record, again = _repeat("trained")
    _same(record, again)
    assert len(again.earlier) == 2


def test_titles_of_reports_tell_networks_apart(capsys: pytest.CaptureFixture[str]) -> None:
    for width in (8, 16):
        model = f"repeated_networks:Images?width={width}"
        assert run(["compress", model, "--macs", "0.6", "-o", f"width {width}"]) == 0
    capsys.readouterr()
    assert run(["report", "width 8", "--format", "markdown", "-o", "-"]) == 0
    one = capsys.readouterr().out
    assert run(["report", "width 16", "--format", "markdown", "-o", "-"]) == 0
    other = capsys.readouterr().out
    titles = [next(line for line in text.splitlines() if line.startswith("# ")) for text in (one, other)]
    assert titles[0] != titles[1]
    assert all("width" in title for title in titles)
