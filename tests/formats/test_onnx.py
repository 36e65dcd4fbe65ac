"""The exported file is the network, and says what it is."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lrexport.config.goals import Macs
from lrexport.errors import InputError, UsageError
from lrexport.formats import torch_graph
from lrexport.formats.onnx import export_onnx, strip
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.selection.costs import plan_macs
from lrexport.lowrank.selection.select import select
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.torch_tools.batch import Batch
from tests.conftest import SmallNet

SHAPE = (3, 12, 12)


def run(path: Path, images: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": images.numpy()})[0]


@pytest.mark.parametrize("batch", [1, 3, None])
def test_the_file_computes_what_torch_does_at_its_batch_size(
    tmp_path: Path, small_net: nn.Module, batch: int | None
) -> None:
    done = export_onnx(small_net, tmp_path / "a b $(id).onnx", SHAPE, batch=batch)
    for size in (1, 4) if batch is None else (batch,):
        images = torch.randn(size, *SHAPE)
        np.testing.assert_allclose(run(done.path, images), small_net(images).detach().numpy(), rtol=1e-4, atol=1e-5)
    declared = onnx.load(done.path).graph.input[0].type.tensor_type.shape.dim[0]
    assert declared.dim_value == (batch or 0)
    assert bool(declared.dim_param) == (batch is None)


def test_bytes_opset_and_macs_are_those_of_the_file(tmp_path: Path, small_net: nn.Module) -> None:
    done = export_onnx(small_net, tmp_path / "model.onnx", SHAPE, opset=20)
    model = onnx.load(done.path)
    assert done.bytes == done.path.stat().st_size
    assert [entry.version for entry in model.opset_import] == [20]
    by_hand = 16 * 27 * 144 + 24 * 16 * 9 * 36 + 24 * 9 * 36 + 48 * 24 * 36 + 480
    assert done.cost.macs == by_hand
    assert not done.cost.uncounted
    assert done.comparison.relative_error <= 1e-4


def test_nothing_but_the_network_is_in_the_file(tmp_path: Path, small_net: nn.Module) -> None:
    done = export_onnx(small_net, tmp_path / "model.onnx", SHAPE)
    model = onnx.load(done.path)
    assert not model.metadata_props
    assert not model.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    weights = sum(4 * parameter.numel() for parameter in small_net.parameters())
    assert done.bytes < 1.15 * weights + 4000
    assert str(tmp_path).encode() not in done.path.read_bytes()
    assert [item.name for item in (*model.graph.input, *model.graph.output)] == ["input", "output"]


def test_stripping_takes_notes_and_unused_opsets_and_leaves_what_branches_and_functions_use() -> None:
    helper = onnx.helper
    x, y, z = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xyz")
    branch = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], "branch", [], [y])
    condition = helper.make_tensor("condition", onnx.TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Twice", ["y"], ["z"], domain="mine"),
    ]
    inner = [helper.make_node("Inverse", ["a"], ["b"], domain="inner")]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], inner, [helper.make_opsetid("inner", 1)])
    imports = [("", 18), ("com.microsoft", 1), ("mine", 1), ("inner", 1), ("ai.onnx.ml", 3), ("com.microsoft.nchwc", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [x], [z], [condition], value_info=[y]),
        functions=[function],
        opset_imports=[helper.make_opsetid(*each) for each in imports],
    )
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.initializer, *model.functions):
        part.doc_string = "a note"
        part.metadata_props.add(key="a note", value="of an exporter")
    for part in (inner_graph.g for inner_graph in model.graph.node[0].attribute):
        part.node[0].doc_string = "a note"
    strip(model)
    assert b"a note" not in model.SerializeToString()
    assert not model.graph.value_info
    assert [(entry.domain, entry.version) for entry in model.opset_import] == imports[:4]


def test_macs_are_of_one_input_whatever_the_batch(tmp_path: Path, small_net: nn.Module) -> None:
    found = {export_onnx(small_net, tmp_path / f"{batch}.onnx", SHAPE, batch=batch).cost.macs for batch in (1, 3, None)}
    assert len(found) == 1


def test_a_simplifier_that_breaks_the_graph_does_not_reach_the_file(
    tmp_path: Path, small_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        del model.graph.node[-1]
        return model, True

    monkeypatch.setattr("onnxsim.simplify", lambda model: broken(copy.deepcopy(model)))
    done = export_onnx(small_net, tmp_path / "model.onnx", SHAPE)
    assert not done.simplified
    images = torch.randn(1, *SHAPE)
    np.testing.assert_allclose(run(done.path, images), small_net(images).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, None])
def test_an_output_that_does_not_depend_on_the_input_is_told(
    tmp_path: Path, small_net: nn.Module, batch: int | None
) -> None:
    assert not export_onnx(small_net, tmp_path / "model.onnx", SHAPE, batch=batch).blind
    nn.init.zeros_(small_net.head.weight)  # as torchvision makes a ViT
    assert export_onnx(small_net, tmp_path / "model.onnx", SHAPE, batch=batch).blind


def test_macs_on_the_graph_are_those_of_the_plan(tmp_path: Path) -> None:
    svd = decompose(SmallNet().eval(), (3, 12, 12))
    plan = select(svd, Macs(0.5)).plan
    done = export_onnx(fold(svd, plan), tmp_path / "model.onnx", (3, 12, 12))
    assert done.cost.macs == plan_macs(svd, plan)
    dense = export_onnx(CifarResNet(20), tmp_path / "dense.onnx", (3, 32, 32))
    assert dense.cost.macs == 40_551_040 + dense.added_macs


@pytest.mark.parametrize("opset", [0, 6, 99])
def test_an_opset_that_cannot_be_written_or_run_is_refused_with_the_range(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=r"expected 7 to \d\d"):
        export_onnx(SmallNet(), tmp_path / "model.onnx", SHAPE, opset=opset)
    assert not list(tmp_path.iterdir())


def test_what_the_exporter_has_no_operator_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adaptive_avg_pool3d"):
        export_onnx(nn.AdaptiveAvgPool3d(2), tmp_path / "model.onnx", (3, 4, 5, 7))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(6,), (2, 9), (2, 3, 4, 5)])
def test_real_inputs_of_any_number_of_axes_are_compared_and_repeated_to_fill_a_batch(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3)).eval()
    done = export_onnx(network, tmp_path / "model.onnx", shape, batch=5, samples=1000 + torch.randn(2, *shape))
    images = torch.randn(5, *shape)
    np.testing.assert_allclose(run(done.path, images), network(images).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_a_network_of_another_precision_is_exported_in_float32_and_left_as_it_is(
    tmp_path: Path, small_net: nn.Module, dtype: torch.dtype
) -> None:
    small_net.to(dtype).train()
    done = export_onnx(small_net, tmp_path / "model.onnx", SHAPE)
    assert onnx.load(done.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert ({parameter.dtype for parameter in small_net.parameters()}, small_net.training) == ({dtype}, True)
    images = torch.randn(1, *SHAPE)
    found = small_net.eval().float()(images).detach().numpy()
    np.testing.assert_allclose(run(done.path, images), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [4 * 65 * 64 - 1, 4 * 65 * 64], ids=["weights", "graph"])
def test_a_network_too_large_for_one_file_is_refused_with_what_to_do(
    tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrexport.formats.onnx._MOST_BYTES", limit)
    with pytest.raises(InputError, match=r"the network takes 1\d\.\d KB; one ONNX file has at most 16\.6 KB") as caught:
        export_onnx(nn.Linear(64, 64), tmp_path / "model.onnx", (64,))
    assert "external_data=True" in str(caught.value.hint)
    assert not list(tmp_path.iterdir())


def test_torchs_list_of_onnx_functions_is_made_once_and_its_class_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    registration = importlib.import_module("torch.onnx._internal.exporter._registration")
    listed: list[None] = []
    real, before = registration.onnxscript_apis.get_torchlib_ops, registration.ONNXRegistry.__dict__["from_torchlib"]
    monkeypatch.setattr(registration.onnxscript_apis, "get_torchlib_ops", lambda: listed.append(None) or real())
    torch_graph._listed.cache_clear()
    graphs = [torch_graph.to_onnx(nn.Linear(4, 2).eval(), Batch.of(torch.zeros(1, 4)), ["output"], 18) for _ in range(2)]
    assert len(listed) == 1
    assert [node.op_type for node in graphs[0].graph.node] == [node.op_type for node in graphs[1].graph.node]
    assert registration.ONNXRegistry.__dict__["from_torchlib"] is before


def test_composite_operators_are_looked_up_once_an_export_and_those_registered_since_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operators = importlib.import_module("torch._export.utils")
    looked_up: list[None] = []
    real = operators._materialize_cpp_cia_ops

    def look_up() -> None:
        looked_up.append(None)
        real()

    monkeypatch.setattr(operators, "_materialize_cpp_cia_ops", look_up)
    for exports in (1, 2):
        torch_graph.to_onnx(nn.Linear(4, 2).eval(), Batch.of(torch.zeros(1, 4)), ["output"], 18)
        assert len(looked_up) == exports
    assert operators._materialize_cpp_cia_ops is look_up
