"""A file's large values: in memory once, in their places again when the file is written, and never changed by copies."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import lrexport
from lrexport.errors import InputError
from lrexport.networks import onnx_source
from lrexport.onnx_network.reading import read_network
from lrexport.onnx_network.source import SourceModel
from lrexport.onnx_network.writing import structure_of, to_onnx
from tests.onnx_network.graphs import graph, saved, two_convolutions, weight


def _large() -> onnx.ModelProto:
    """A convolution of an initializer, one of a Constant node, and one of half precision."""
    held = helper.make_node("Constant", [], ["b.weight"], value=numpy_helper.from_array(weight(40, 24, 3, 3)))
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["1"], "a", pads=[1] * 4),
        held,
        helper.make_node("Conv", ["1", "b.weight"], ["2"], "b", pads=[1] * 4),
        helper.make_node("Cast", ["c.half"], ["c.weight"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["2", "c.weight"], ["y"], "c", pads=[1] * 4),
    ]
    tensors = {"a.weight": weight(24, 64, 3, 3), "c.half": weight(32, 40, 3, 3).astype(np.float16)}
    return graph(nodes, {"x": ["n", 64, 8, 8]}, {"y": ["n", 32, 8, 8]}, tensors)


def test_a_model_without_its_large_values_gets_them_back_byte_for_byte() -> None:
    before = _large().SerializeToString()
    source = SourceModel(onnx.ModelProto.FromString(before))
    assert len(source.light.SerializeToString()) < 1500 < 100_000 < len(before)
    assert source.whole().SerializeToString() == before


def test_a_network_has_the_values_of_its_file_in_memory_once(tmp_path: Path) -> None:
    network = read_network(saved(_large(), tmp_path))
    (tensor,) = (each for each in network.source.graph.initializer if each.name == "a.weight")
    assert network.get_parameter("a.weight").numpy(force=True).base is not None
    assert np.shares_memory(network.file.array(tensor), network.get_parameter("a.weight").numpy(force=True))
    untrained = onnx_source.with_same_weights(network)
    assert untrained.get_parameter("a.weight").data_ptr() == network.get_parameter("a.weight").data_ptr()
    assert untrained.get_parameter("a.weight") is not network.get_parameter("a.weight")


def test_training_a_network_that_was_read_changes_its_file_and_nothing_else(tmp_path: Path) -> None:
    path = saved(_large(), tmp_path)
    network, other = lrexport.read_onnx(path), lrexport.read_onnx(path)
    before = path.read_bytes()
    assert to_onnx(network).SerializeToString() == before
    with torch.no_grad():
        network.get_parameter("a.weight").mul_(2)
    written = {tensor.name: numpy_helper.to_array(tensor) for tensor in to_onnx(network).graph.initializer}
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    (changed,) = written.keys() - original.keys()
    np.testing.assert_array_equal(written[changed], 2 * original["a.weight"])
    assert to_onnx(other).SerializeToString() == before


def test_costs_are_counted_without_values(tmp_path: Path) -> None:
    network = lrexport.read_onnx(saved(_large(), tmp_path))
    small = lrexport.compress(network, network.signature, lrexport.Macs(0.5)).network
    assert structure_of(small).ByteSize() < 4000 < 40_000 < to_onnx(small).ByteSize()


def test_a_file_is_hashed_again_only_when_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(two_convolutions(), tmp_path)
    network = onnx_source.network_of(path, None)
    checked: list[Path] = []
    monkeypatch.setattr(onnx_source, "external_files", lambda file: checked.append(file) or [])
    assert onnx_source.network_of(path, None) is network
    assert not checked
    saved(two_convolutions(batch=1), tmp_path)
    os.utime(path, ns=(1, 1))
    assert onnx_source.network_of(path, None) is not network
    assert checked == [path]


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(two_convolutions(), tmp_path)

    def reading(file: Path, inputs: object) -> object:
        network = read_network(file)
        saved(two_convolutions(batch=2), tmp_path)
        return network

    monkeypatch.setattr(onnx_source, "read_network", reading)
    with pytest.raises(InputError, match=r"net\.onnx changed while it was read"):
        onnx_source.network_of(path, None)
