"""Some of torchvision's networks through what benchmarks/zoo.py does with all, on smaller inputs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

# Of many ways to build a layer or to use one: fire modules without BatchNorm, depthwise and inverted bottlenecks,
# squeeze-and-excitation, dilation with a dict as output.
SAMPLE = ("squeezenet1_1",)
# Channel shuffle, groups, the same again in other orders, and swin_t, whose attention uses weights without a call.
SLOW = (
    "lraspp_mobilenet_v3_large",
    "shufflenet_v2_x0_5",
    "regnet_y_400mf",
    "googlenet",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "mobilenet_v2",
    "efficientnet_b0",
    "resnet18",
    "swin_t",
)
SIZE = 64


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("zoo")


@torch.no_grad()
def rounding(zoo: Any, name: str) -> float:
    """How far float32 is from float64 in torch, of the largest output, on what an export is compared on."""
    network, _ = zoo.build(zoo.resolve(f"torchvision:{name}", (3, SIZE, SIZE)))
    noise = torch.Generator().manual_seed(0)
    images = [torch.randn(1, 3, SIZE, SIZE, generator=noise) for _ in range(3)]
    single = [network(image) for image in images]
    return max(
        zoo.relative_error(one.double(), network.double()(image.double())) for one, image in zip(single, images, strict=True)
    )


@pytest.mark.parametrize("name", [*SAMPLE, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_network_is_the_same_folded_at_full_rank_and_its_plan_for_a_budget_becomes_a_verified_graph(
    zoo: Any, name: str
) -> None:
    row: dict[str, Any] = {"seconds": {}}
    zoo.measure(name, row, (3, SIZE, SIZE))
    assert row["error"] <= 1e-4
    if row["onnx_error"] > 1e-4:
        assert row["onnx_error"] <= 1e-4 + 4 * rounding(zoo, name), "more than float32 alone explains"
    assert row["spread"] > 0.01, "the output hardly depends on the input: the comparison says little"
    assert row["graph_macs"] == row["macs"] <= 0.7 * row["dense_macs"]
    assert row["macs"] > 0.695 * row["dense_macs"]
    assert not row["uncounted"]
    assert row["pairs"] > 0


def test_every_classification_and_segmentation_network_is_in_the_table_or_listed_as_not_run(zoo: Any) -> None:
    names = zoo.names()
    assert names[0].startswith("squeezenet")
    assert {"resnet50", "vit_b_16", "fcn_resnet50"} <= set(names)
    assert not [name for name in names if any(word in name for word in ("rcnn", "quantized", "r3d", "raft"))]
    rows = {names[0]: {"model": names[0], "seconds": {}, "failed": "export: InputError: why"}}
    text = "\n".join(zoo.table(rows, 1))
    assert f"- {names[0]}: export: InputError: why" in text
    assert names[1] in text.partition("## Not run")[2]
