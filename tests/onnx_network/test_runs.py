"""Runs of .onnx files: the command line from the file to the smaller file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from PIL import Image

import lrexport as api
from lrexport.cli.main import run
from lrexport.lowrank.factors.noise_moments import NoiseMoments
from lrexport.onnx_network.network import OnnxNetwork
from lrexport.runs.starting_point import decompose_file
from lrexport.workflow.pruning import pose
from tests.onnx_network.graphs import graph, saved, two_convolutions, weight

_QUIET = ("--device", "cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network as net.onnx in the current folder, and pictures for it."""
    monkeypatch.chdir(tmp_path)
    model = two_convolutions()
    model.metadata_props.add(key="author", value="somebody")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for number in range(60):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    return Path(os.path.relpath(saved(model, tmp_path)))


def _compress(*more: str) -> int:
    return run(["compress", "net.onnx", "--macs", "0.6", "-o", "out", *_QUIET, *more])


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_file_becomes_a_smaller_file_with_the_same_face(file: Path) -> None:
    assert _compress() == 0
    original = file.read_bytes()
    assert Path("out/source.onnx").read_bytes() == original
    file.unlink()  # the run is complete without it
    assert run(["onnx", "out", "--rounds", "0"]) == 0
    assert Path("out/dense.onnx").read_bytes() == original
    small, before = onnx.load("out/model.onnx"), onnx.load_from_string(original)
    assert list(small.graph.input) == list(before.graph.input)
    assert list(small.graph.output) == list(before.graph.output)
    assert small.opset_import == before.opset_import
    assert {"author": "somebody"}.items() <= {item.key: item.value for item in small.metadata_props}.items()
    assert {"node_a.first", "node_a.second"} <= {node.name for node in small.graph.node} or {
        "node_b.first",
        "node_b.second",
    } <= {node.name for node in small.graph.node}
    record = json.loads(Path("out/run.json").read_text())
    assert record["model"]["source"] == "net.onnx"
    assert record["files"]["source.onnx"]["bytes"] == len(original)
    dense, compressed = record["results"]["dense"], record["results"]["compressed"]
    assert compressed["macs"] <= 0.6 * dense["macs"]
    assert compressed["bytes"] < dense["bytes"]
    assert any("quality unknown" in note for note in record["notes"])


def test_the_run_loads_as_a_network_that_computes_what_its_file_does(file: Path) -> None:
    assert _compress() == 0
    assert run(["onnx", "out", "--rounds", "0"]) == 0
    network, batch = api.load("out"), torch.randn(3, 3, 16, 16)
    assert isinstance(network, OnnxNetwork)
    with torch.no_grad():
        mine = network(batch).numpy()
    expected = _session(Path("out/model.onnx")).run(None, {"x": batch.numpy()})[0]
    np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


def test_pictures_heal_it_and_say_how_close_it_stays(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _compress("--data", "images:pictures", "--heal-minutes", "0.05") == 0
    record = json.loads(Path("out/run.json").read_text())
    assert record["fidelity"]["repaired"]["SQNR"] > 5
    assert record["config"]["fine_tune_epochs"] == record["config"]["svd_epochs"] == 0
    assert run(["onnx", "out", "--rounds", "0", "--int8", "--ort"]) == 0
    assert {"model.int8.onnx", "model.ort", "dense.int8.onnx"} <= {path.name for path in Path("out").iterdir()}
    assert "onnxsim" not in capfd.readouterr().err


def test_a_run_of_a_file_is_compressed_again_in_place_and_elsewhere(file: Path) -> None:
    assert _compress() == 0
    original = file.read_bytes()
    file.unlink()
    for arguments in (["out", "--macs", "0.5"], ["out", "--macs", "0.4", "-o", "other"]):
        assert run(["compress", *arguments, *_QUIET]) == 0
    assert Path("other/source.onnx").read_bytes() == Path("out/source.onnx").read_bytes() == original
    assert run(["onnx", "other", "--rounds", "0"]) == 0


def test_options_that_would_touch_more_than_the_layers_are_refused(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert _compress() == 0
    for arguments in (["--batch", "4"], ["--batch", "dynamic"], ["--opset", "20"], ["--with-preprocessing"]):
        capfd.readouterr()
        assert run(["onnx", "out", *arguments]) == 2
        error = capfd.readouterr().err
        assert "does not apply to a network from an .onnx file: only its layers change" in error
        assert arguments[0] in error or "--dynamic" in error
    assert not Path("out/model.onnx").exists()


def test_a_file_of_a_run_and_the_network_in_python_make_the_same_plan(file: Path) -> None:
    assert _compress() == 0
    made = api.compress(api.read_onnx(file), (3, 16, 16), api.Macs(0.6))
    plan = json.loads(Path("out/run.json").read_text())["plan"]
    assert {name: entry.model_dump(mode="json") for name, entry in made.plan.items()} == plan
    exported = made.export("made.onnx")
    assert exported.cost.macs == made.macs
    assert [item.name for item in _session(Path("made.onnx")).get_inputs()] == ["x"]


def test_sizes_go_by_goals_of_size_and_parameters(file: Path) -> None:
    for goal in ("--params", "--size"):
        assert run(["compress", "net.onnx", goal, "0.6" if goal == "--params" else "30KB", "-o", goal[2:], *_QUIET]) == 0
        assert run(["onnx", goal[2:], "--rounds", "0"]) == 0
    assert Path("size/model.onnx").stat().st_size <= 30_000
    results = json.loads(Path("params/run.json").read_text())["results"]
    assert results["compressed"]["params"] <= 0.6 * results["dense"]["params"]


def test_without_data_energy_is_weighted_by_noise_unless_inputs_are_integers_of_unknown_range(file: Path) -> None:
    def moments(network: torch.nn.Module) -> object:
        svd = decompose_file(network, "spatial", (), "implicit")  # type: ignore[arg-type]
        return pose(svd, api.Macs(0.6), "spatial", "global", None, None, 100, rank_multiple=1).moments

    assert isinstance(moments(api.read_onnx(file)), NoiseMoments)
    tokens = [
        helper.make_node("Gather", ["table", "x"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], "product"),
    ]
    model = graph(tokens, {"x": ["n", 5]}, {"y": ["n", 5, 16]}, {"table": weight(9, 16), "w": weight(16, 16)})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = saved(model, Path("."), "tokens.onnx")
    assert moments(api.read_onnx(path)) is None
    assert isinstance(moments(api.read_onnx(path, {"x": "5:int64:0..8"})), NoiseMoments)
