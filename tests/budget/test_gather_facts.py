"""What is found out about a model: layers by their names, and all of its files."""

from __future__ import annotations

import gzip
from pathlib import Path

import onnx
import pytest

from lrexport.check.gather_facts import How, gather_facts, gzip_bytes
from lrexport.runs.record import load_record
from tests.budget.make_sample import network


@pytest.mark.parametrize(
    ("first", "second", "layers"),
    [
        ("conv2.first.weight", "conv2.second.weight", {"conv1", "conv2", "head"}),
        ("conv2.first.weight_quantized", "conv2.second.weight_quantized", {"conv1", "conv2", "head"}),
        ("onnx::Conv_1", "onnx::Conv_2", {"conv1", "onnx::Conv_1", "onnx::Conv_2", "head"}),
    ],
)
def test_both_halves_of_a_pair_are_one_layer(tmp_path: Path, first: str, second: str, layers: set[str]) -> None:
    model, names = network(6), {"conv2.first.weight": first, "conv2.second.weight": second}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "model.onnx")
    found = gather_facts(tmp_path / "model.onnx").facts
    assert set(found.layers) == layers
    assert sum(layer.macs for layer in found.layers.values()) == found.macs
    assert sum(layer.params for layer in found.layers.values()) == found.params
    assert sum(layer.bytes for layer in found.layers.values()) == 4 * found.params


def test_external_data_counts_as_size_also_after_gzip(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(network(6), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    files = [path, tmp_path / "weights.bin"]
    found = gather_facts(path, How(with_gzip=True)).facts
    assert found.bytes == sum(file.stat().st_size for file in files)
    assert found.gzip_bytes == gzip_bytes(files) == sum(len(gzip.compress(file.read_bytes(), 9)) for file in files)


@pytest.mark.usefixtures("_looked_into_once")
def test_a_latency_of_another_target_has_that_targets_machine(sample: Path) -> None:
    record = load_record(sample / "run")
    dense = record.results.dense
    assert dense is not None
    board = {"cpu": "Cortex-A76", "cores": 4, "isa": ["asimd"], "system": "Linux aarch64"}
    latency = dense.latency_ms | {"ssh://pi@board": dense.latency_ms["local"]}
    record.results = record.results.model_copy(update={"dense": dense.model_copy(update={"latency_ms": latency})})
    record.environment |= {"targets": {"ssh://pi@board": board | {"python": "3.13.1"}}}
    record.save(sample / "run")
    found = gather_facts(sample / "run" / "dense.onnx").facts.latency_ms
    assert dict(found["ssh://pi@board"].machine) == board
    assert found["local"].machine["cpu"] == "Sample CPU @ 2 GHz"
