"""``lrexport inspect`` and ``compress --plan`` as a user types them, on a small network without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import lrexport
from lrexport.cli.main import run
from lrexport.runs.record import UNKNOWN_QUALITY, load_record
from tests.folders import folder_with

NETWORK = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )

make.input_shape = (3, 12, 12)
"""
COMPRESS = ["compress", "planned_network:make"]


pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, planned_network=NETWORK)


@pytest.fixture
def plan(capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """plan.json of a dry run; what is returned is its content."""
    assert run([*COMPRESS, "--macs", "0.6", "--dry-run", "--json", "plan.json"]) == 0
    capsys.readouterr()
    return json.loads(Path("plan.json").read_text())


def lines(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_from_a_dry_run_by_hand_to_a_run_that_has_exactly_the_plan(
    plan: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    rank = plan["plan"]["4"]["rank"]
    plan["plan"]["4"]["rank"] = rank - 1
    Path("edited.json").write_text(json.dumps(plan))
    assert run([*COMPRESS, "--plan", "edited.json", "-o", "run"]) == 0
    record = load_record(Path("run"))
    assert record.config["goal"] == {"plan": "edited.json"}
    for name, entry in plan["plan"].items():
        found = record.plan[name].model_dump()
        assert [found.get(key) for key in ("scheme", "rank", "dense")] == [entry.get(k) for k in ("scheme", "rank", "dense")]
    assert record.plan["4"].macs * rank == plan["plan"]["4"]["macs"] * (rank - 1)
    assert record.results.compressed.macs == plan["macs"] - plan["plan"]["4"]["macs"] + record.plan["4"].macs
    assert lrexport.load("run")(torch.zeros(1, 3, 12, 12)).shape == (1, 10)
    capsys.readouterr()
    for second in ("run", "edited.json"):
        assert run(["inspect", "plan.json", second]) == 0
        header, changed, totals, caption = capsys.readouterr().out.splitlines()
        assert header.split() == ["layer", "from", "to", "MACs", "ratio"]
        assert changed.split()[:5] == ["4", "spatial", f"{rank}/48", "spatial", f"{rank - 1}/48"]
        assert totals.split()[-1] == f"{record.results.compressed.macs / plan['macs']:.2f}×"
        assert caption.startswith(f"From plan.json to {second}: 3 layers are the same in both; parameters ")
    for first, second in (("edited.json", "run"), ("run", "run"), ("run", "run/run.json"), ("run/run.json", "run")):
        assert run(["inspect", first, second]) == 0
        assert capsys.readouterr().out == "The plans are identical: 4 layers.\n"
    for given in (["run", "plan.json"], ["plan.json", "run"]):
        assert run(["inspect", *given]) == 0
        by_run = capsys.readouterr().out
        assert run(["inspect", *(path.replace("run", "run/run.json") for path in given)]) == 0
        assert capsys.readouterr().out == by_run
    assert run([*COMPRESS, "--plan", "run", "-o", "again"]) == 0
    assert load_record(Path("again")).plan == record.plan
    assert (Path("again") / "model.safetensors").read_bytes() == (Path("run") / "model.safetensors").read_bytes()


def test_a_minimal_plan_by_hand_may_mix_schemes_and_is_printed_resolved(capsys: pytest.CaptureFixture) -> None:
    Path("mine.json").write_text('{"0": "dense", "4": {"scheme": "channel", "rank": 9}}')
    assert run([*COMPRESS, "--plan", "mine.json", "--dry-run"]) == 0
    captured = capsys.readouterr()
    found = lines(captured.out)
    assert found["4"][:3] == ["24×16×3×3", "channel", "9/24"]
    assert found["8"][1:] == ["dense", "960", "970", "3.88", "KB", "not", "in", "the", "plan"]
    assert "1 layer left dense: not in the plan" in captured.err
    assert "1 layer left dense: depthwise convolution" in captured.err
    assert run(["inspect", "mine.json", "--json", "-"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["plan"]["4"]["rank"] == 9
    assert value["plan"]["4"]["macs"] is value["totals"]["macs"] is None


def test_a_pair_that_costs_more_is_made_and_noted(capsys: pytest.CaptureFixture) -> None:
    Path("mine.json").write_text('{"8": {"scheme": "linear", "rank": 10}}')
    assert run([*COMPRESS, "--plan", "mine.json", "-o", "run"]) == 0
    warning = "layer '8': a linear pair of rank 10 costs 1.06K MACs, the layer 960"
    assert f"warning: {warning}" in capsys.readouterr().err
    assert load_record(Path("run")).notes == [warning, UNKNOWN_QUALITY]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"0": "dense",\n}', "plan.json:2: not JSON"),
        ('{"1": "dense"}', "plan.json: the network has no layer '1'"),
        ('{"2": {"scheme": "spatial", "rank": 1}}', "plan.json: layer '2' cannot be factorised: depthwise convolution"),
        ('{"4": {"scheme": "spatial", "rank": 49}}', "plan.json: layer '4': invalid rank 49: expected at most"),
        ('{"8": {"scheme": "spatial", "rank": 1}}', "plan.json: layer '8' cannot be spatial"),
    ],
)
@pytest.mark.parametrize("how", [["--dry-run"], ["-o", "run", "--data", "digits"], ["-o", "run"]])
def test_a_plan_that_does_not_fit_is_bad_input_before_anything_is_made(
    content: str, words: str, how: list[str], capsys: pytest.CaptureFixture
) -> None:
    Path("plan.json").write_text(content)
    assert run([*COMPRESS, "--plan", "plan.json", *how]) == 3
    captured = capsys.readouterr()
    assert words in captured.err
    assert not captured.out
    assert not [path for path in Path().rglob("run/*") if path.is_file()]


def test_the_plan_file_alone_is_shown_with_its_figures_and_the_file_that_was_edited_says_so(
    plan: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    assert run(["inspect", "plan.json"]) == 0
    out = capsys.readouterr().out
    assert "edited" not in out
    assert lines(out)["2"][:2] == ["16×1×3×3", "dense"]
    plan["plan"]["4"]["rank"] -= 1
    Path("plan").write_text(json.dumps(plan))  # known by its content
    assert run(["inspect", "plan"]) == 0
    assert "The plan was edited" in capsys.readouterr().out


def test_a_run_shows_bytes_of_four_a_parameter(plan: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    assert run([*COMPRESS, "--plan", "plan.json", "-o", "run"]) == 0
    capsys.readouterr()
    assert run(["inspect", "run/run.json"]) == run(["inspect", "run"]) == 0
    shown = capsys.readouterr().out
    assert shown[: len(shown) // 2] == shown[len(shown) // 2 :]
    assert run(["inspect", "run"]) == 0
    captured = capsys.readouterr()
    layer = plan["plan"]["4"]
    assert lines(captured.out)["4"][-5:] == ["13.9", "KB", "→", f"{4 * layer['params'] / 1000:.3g}", "KB"]
    assert "all 4 layers" in captured.out
    assert "1 layer left dense: depthwise convolution" in captured.err


def test_a_graph_shows_the_bytes_of_its_weights_and_two_graphs_what_differs(
    plan: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    assert run([*COMPRESS, "--plan", "plan.json", "-o", "run"]) == 0
    assert run(["onnx", "run", "--rounds", "0"]) == 0
    capsys.readouterr()
    assert run(["inspect", "run/model.onnx", "--json", "-"]) == 0
    graph = json.loads(capsys.readouterr().out)
    model = onnx.load("run/model.onnx")
    stored = {tuple(tensor.dims): len(tensor.raw_data) for tensor in model.graph.initializer}
    assert all(node["bytes"] == stored[tuple(node["weight"])] for node in graph["nodes"])
    assert run(["inspect", "run/dense.onnx", "run/model.onnx", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    record = load_record(Path("run"))
    for side, result in (("from", record.results.dense), ("to", record.results.compressed)):
        assert (found["totals"][side]["macs"], found["totals"][side]["bytes"]) == (result.macs, result.bytes)
    assert run(["inspect", "run/dense.onnx", "run/model.onnx"]) == 0
    assert "all MACs" in capsys.readouterr().out


@pytest.mark.parametrize("pair", [("run/model.onnx", "run"), ("plan.json", "run/model.onnx")])
def test_a_graph_and_a_plan_cannot_be_compared(pair: tuple[str, str], capsys: pytest.CaptureFixture) -> None:
    Path("run").mkdir()
    Path("run/model.onnx").touch()
    Path("plan.json").touch()
    assert run(["inspect", *pair]) == 2
    assert "cannot compare run/model.onnx, an ONNX file, with" in capsys.readouterr().err


def test_what_is_not_there_is_a_mistake_of_the_command_line(capsys: pytest.CaptureFixture) -> None:
    Path("plan.json").write_text("{}")
    assert run(["inspect", "plan.json", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
