"""Opsets below 18, which torch's exporter does not write: converted, compared, and refused with the range that works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lrexport.errors import InputError, UsageError
from lrexport.formats.older_opset import written_in
from lrexport.formats.onnx import export_onnx
from lrexport.formats.opsets import OLDEST_OPSET, in_opset, last_opset, opset_of

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """Reductions, bounds, padding, slices and shapes, which opsets wrote in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(torch.clamp(self.norm(self.body(x)), -1, 6), (1, 1, 0, 0))[:, :, ::1, 1:]
        return self.head(x.reshape(x.shape[0], 8, -1).mean(2)).softmax(1)


@pytest.mark.parametrize("opset", [17, 13, 11])
def test_a_graph_in_an_older_opset_computes_what_torch_does_and_says_its_version(tmp_path: Path, opset: int) -> None:
    network = Net().eval()
    done = export_onnx(network, tmp_path / "model.onnx", SHAPE, opset=opset, batch=None if opset == 13 else 1)
    model = onnx.load(done.path)
    assert (done.opset, opset_of(model)) == (opset, opset)
    assert model.ir_version == max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    images = torch.randn(1, *SHAPE)
    found = onnxruntime.InferenceSession(str(done.path)).run(None, {"input": images.numpy()})[0]
    np.testing.assert_allclose(found, network(images).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_an_opset_that_a_network_cannot_be_written_in_is_refused_with_those_that_work(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4)).eval()
    with pytest.raises(
        UsageError, match="cannot be written in opset 16: opset 16 has no operator LayerNormalization"
    ) as caught:
        export_onnx(network, tmp_path / "model.onnx", SHAPE, opset=16)
    assert f"Opsets 17 to {last_opset()}" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())
    assert export_onnx(network, tmp_path / "model.onnx", SHAPE, opset=17).opset == 17


def _reducing(axes: bool = True, noop: int = 0) -> onnx.ModelProto:
    """(2, 3) → a sum of rows in opset 18, with the axes as a constant or as an input."""
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0, noop_with_empty_axes=noop)
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    given += [] if axes else [helper.make_tensor_value_info("axes", TensorProto.INT64, [1])]
    weights = [numpy_helper.from_array(np.array([1]), "axes")] if axes else []
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([node], "graph", given, [result], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_constant_input_becomes_the_attribute_that_it_was() -> None:
    model = _reducing()
    made = written_in(model, 18, 13)
    onnx.checker.check_model(made, full_check=True)
    assert {a.name: helper.get_attribute_value(a) for a in made.graph.node[0].attribute} == {"keepdims": 0, "axes": [1]}
    assert not made.graph.initializer
    assert opset_of(model) == 18
    assert len(model.graph.initializer) == 1


def test_what_the_older_schema_lacks_is_named() -> None:
    with pytest.raises(InputError, match="ReduceMean does not take 'axes' as an input in opset 13"):
        written_in(_reducing(axes=False), 18, 13)
    with pytest.raises(InputError, match="ReduceMean has no attribute 'noop_with_empty_axes' in opset 13"):
        written_in(_reducing(noop=1), 18, 13)
    with pytest.raises(UsageError, match="opset 13") as caught:
        in_opset(_reducing(noop=1), 13)
    assert "Opsets 18 to" in str(caught.value.hint)


def test_a_default_that_changed_is_written_out() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"])
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node], "graph", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    made = written_in(model, 18, OLDEST_OPSET)
    assert [(a.name, a.i) for a in made.graph.node[0].attribute] == [("axis", -1)]
