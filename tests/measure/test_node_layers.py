"""Time by layer: every layer of an exported network is found again among the nodes that ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from torch import Tensor, nn

from lrexport.config.goals import Macs
from lrexport.formats.onnx import export_onnx
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.selection.select import select
from lrexport.measure.latency import measure
from lrexport.measure.node_layers import layer_times
from lrexport.measure.targets import MeasuringJob
from tests.conftest import SmallNet


class Residual(nn.Module):
    """Two convolutions end in one sum, as where a residual network changes its resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1, self.conv2 = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
        self.shortcut = nn.Conv2d(16, 16, 1, bias=False)
        self.norm1, self.norm2, self.norm3 = (nn.BatchNorm2d(16) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        inner = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.head((inner + self.norm3(self.shortcut(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("made", [Residual, SmallNet])
def test_every_layer_is_found_in_the_profile_of_the_optimised_graph(
    made: type[nn.Module], compressed: bool, tmp_path: Path
) -> None:
    network = made().eval()
    names = {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    if compressed:
        svd = decompose(network, (3, 12, 12))
        network = fold(svd, select(svd, Macs(0.6)).plan)
    path = export_onnx(network, tmp_path / "model.onnx", (3, 12, 12)).path
    nodes = measure({"model": path}, None, MeasuringJob((), rounds=10, profile=True)).nodes_ms["model"]
    found = layer_times(onnx.load(path).graph, nodes)
    assert set(found) == {*names, ""}
    assert sum(found.values()) == pytest.approx(sum(nodes.values()))


def _graph() -> onnx.GraphProto:
    weights = [onnx.helper.make_tensor(f"{n}.weight", 1, [1, 1, 1, 1], [1.0]) for n in ("a.first", "a.second", "b")]
    nodes = [
        onnx.helper.make_node("Conv", ["x", "a.first.weight"], ["t"], "n1"),
        onnx.helper.make_node("Conv", ["t", "a.second.weight"], ["u"], "n2"),
        onnx.helper.make_node("Conv", ["x", "b.weight"], ["v"], "n3"),
        onnx.helper.make_node("Add", ["u", "v"], ["w"], "sum"),
        onnx.helper.make_node("Relu", ["w"], ["y"], "relu"),
    ]
    return onnx.helper.make_graph(nodes, "g", [], [], weights)


def test_of_a_sum_of_two_the_one_without_a_node_of_its_own_was_fused_into_it() -> None:
    nodes = {"t_nchwc": 1.0, "u_nchwc": 2.0, "y_nchwc": 4.0, "ReorderOutput_token_3": 8.0}
    assert layer_times(_graph(), nodes) == {"a": 3.0, "b": 4.0, "": 8.0}
    nodes = {"n1": 1.0, "v_nchwc": 2.0, "y_nchwc": 4.0}
    assert layer_times(_graph(), nodes) == {"a": 5.0, "b": 2.0, "": 0.0}


def test_a_layer_of_which_a_half_is_not_found_has_no_time() -> None:
    assert layer_times(_graph(), {"n1_token_4": 1.0, "fused n3": 2.0, "what": 4.0}) == {"b": 2.0, "": 5.0}
