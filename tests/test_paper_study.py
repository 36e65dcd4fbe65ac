"""benchmarks/paper: what its tables rest on beside lrexport itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.paper import latency, render
from benchmarks.paper.other_tools import Selection, with_followed_shortcuts, with_free_shortcuts
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.models.cifar_resnet import CifarResNet

SHAPE = (3, 32, 32)


def test_shortcuts_that_torch_pruning_can_follow_are_the_same_function_and_cost_nothing_in_the_end() -> None:
    torch.manual_seed(0)
    network, images = CifarResNet(20).eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        wanted, macs = network(images), count_torch_macs(network, SHAPE).total
        with_followed_shortcuts(network)
        torch.testing.assert_close(network(images), wanted)
        assert count_torch_macs(network, SHAPE).total > macs
        with_free_shortcuts(network)
        torch.testing.assert_close(network(images), wanted)
    assert count_torch_macs(network, SHAPE).total == macs
    assert sum(isinstance(module, Selection) for module in network.modules()) == 2


def test_a_shortcut_whose_channels_were_pruned_still_takes_each_from_where_it_was() -> None:
    network = CifarResNet(20)
    with_followed_shortcuts(network)
    block = network.get_submodule("layer2.0")
    kept = torch.tensor([3, 9, 20, 31])  # of 32, channels 8 to 23 of which are those of the input
    whole = block.shortcut
    assert isinstance(whole, nn.Conv2d)
    pruned = nn.Conv2d(16, len(kept), 1, whole.stride, bias=False)
    pruned.weight = nn.Parameter(whole.weight[kept].detach())
    block.shortcut = pruned
    with_free_shortcuts(network)
    images = torch.randn(1, 16, 8, 8)
    taken = block.shortcut(images)
    torch.testing.assert_close(taken, pruned(images))
    assert taken.shape == (1, 4, 4, 4)
    assert bool((taken[:, [0, 3]] == 0).all())


def row(name: str, top1: float, macs: int, **more: Any) -> dict[str, Any]:
    figures = {"name": name, "top1": top1, "macs": macs, "dense_macs": 40_000_000, "params": 90_000, "pruned": {}}
    return {**figures, "epochs": 5, "hours": 0.25, "schedule": "short", "machine": "a machine", **more}


def test_tables_say_what_the_rows_say_and_latency_once_it_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "OUT", tmp_path)
    monkeypatch.setattr(latency, "OUT", tmp_path)
    rows = [
        row("dense-5", 0.88, 40_000_000, method="dense"),
        row("ours-0.5-5", 0.875, 20_000_000, method="ours", goal=["macs", 0.5]),
    ]
    (tmp_path / "recipe-r.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    lines = render.markdown("recipe", "r", "the command").splitlines()
    assert "| ours | 0.5 of the MACs | 20.00 M | 2.00 | 90 k | – | 87.50 % | -0.50 | 5 |" in lines
    assert any("0.5 hours" in line for line in lines)
    times = {"latency": {"ours-0.5-5": {"ratio": 0.714}}}
    (tmp_path / "latency-r.json").write_text(json.dumps(times), encoding="utf-8")
    lines = render.markdown("recipe", "r", "the command").splitlines()
    assert "| dense | – | 40.00 M | 1.00 | 1.00 | 90 k | – | 88.00 % | +0.00 | 5 |" in lines
    assert "| ours | 0.5 of the MACs | 20.00 M | 2.00 | 0.71 | 90 k | – | 87.50 % | -0.50 | 5 |" in lines
