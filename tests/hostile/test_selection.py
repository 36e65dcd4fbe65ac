"""Goals and layers at which factorising stops making sense: docs/faults.md, Networks and layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrexport.runs.record import UNKNOWN_QUALITY
from tests.hostile.support import Command, nothing_made, write_module


def _plan(run: str = "out") -> dict[str, dict[str, Any]]:
    return json.loads((Path(run) / "run.json").read_text())["plan"]


def _notes(run: str = "out") -> list[str]:
    return json.loads((Path(run) / "run.json").read_text())["notes"]


def test_a_threshold_that_would_prune_everything_keeps_rank_one_and_warns(lrexport: Command) -> None:
    done = lrexport("compress", "tiny:make", "--energy", "1", "-o", "out", "--device", "cpu")
    assert done.code == 0
    warning = "the threshold would prune everything, so rank 1 was kept in 3 layers"
    assert f"warning: {warning}" in done.err
    assert _notes() == [warning, UNKNOWN_QUALITY]
    assert {name: layer["rank"] for name, layer in _plan().items()} == {"0": 1, "2": 1, "6": 1}
    assert Path("out/model.safetensors").is_file()


def test_an_ordinary_threshold_warns_of_nothing(lrexport: Command) -> None:
    done = lrexport("compress", "tiny:make", "--energy", "0.3", "-o", "out", "--device", "cpu")
    assert done.code == 0
    assert done.err.count("warning") == 1
    assert _notes() == [UNKNOWN_QUALITY]
    assert any(layer["rank"] > 1 for layer in _plan().values())


def test_a_layer_of_zeros_keeps_rank_one(lrexport: Command) -> None:
    write_module(
        "zeros",
        """
        import tiny
        def make():
            network = tiny.make()
            network[2].weight.data.zero_()
            return network
        make.input_shape = (3, 8, 8)
        """,
    )
    done = lrexport("compress", "zeros:make", "--energy", "0.3", "-o", "out", "--device", "cpu")
    assert done.code == 0
    assert _plan()["2"]["rank"] == 1
    assert _plan()["2"]["energy_kept"] == 1


def test_a_layer_whose_pair_costs_more_stays_dense_and_the_record_says_why(lrexport: Command) -> None:
    done = lrexport("compress", "tiny:make", "--energy", "0", "-o", "out", "--device", "cpu")
    assert done.code == 0
    assert "3 layers left dense: its pair would cost more than the layer" in done.err
    assert {name: layer["dense"] for name, layer in _plan().items()} == {"0": True, "2": True, "6": True}
    # Rank 24 × (8·3·64 + 8·3·64) multiplications against 8·8·9·64.
    assert _plan()["2"]["reason"] == "a spatial pair of rank 24 costs 73.73K MACs, the layer 36.86K"
    assert _plan()["6"]["reason"].startswith("a linear pair of rank 10 costs 420 MACs, the layer 320")


def test_a_layer_that_loses_at_rank_one_already_stays_dense_and_is_exported_as_it_was(lrexport: Command) -> None:
    write_module(
        "narrow",
        """
        from torch import nn
        def make():
            return nn.Sequential(nn.Conv2d(1, 8, 1), nn.Flatten(), nn.Linear(512, 16), nn.Linear(16, 1))
        make.input_shape = (1, 8, 8)
        """,
    )
    done = lrexport("compress", "narrow:make", "--energy", "0.5", "-o", "out", "--device", "cpu")
    assert done.code == 0
    reason = "even a pair of rank 1 costs more than the layer"
    assert "2 layers left dense: its pair would cost more than the layer" in done.err
    plan = _plan()
    assert plan["0"]["reason"] == plan["3"]["reason"] == reason
    assert (plan["0"]["dense_macs"], plan["3"]["dense_macs"]) == (8 * 64, 16)
    assert plan["2"]["scheme"] == "linear"


def test_a_network_in_which_nothing_can_be_factorised_is_listed_with_the_reasons(lrexport: Command) -> None:
    write_module(
        "depthwise",
        """
        from torch import nn
        def make():
            class Doubled(nn.Conv2d):
                def forward(self, x):
                    return 2 * super().forward(x)
            return nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), Doubled(4, 8, 3), nn.ConvTranspose2d(8, 8, 2, groups=8))
        make.input_shape = (4, 8, 8)
        """,
    )
    done = lrexport("compress", "depthwise:make", "--energy", "0.5", "-o", "out", "--device", "cpu")
    assert done.code == 0
    depthwise, other = "depthwise convolution", "Doubled computes something else than Conv2d"
    assert [layer["reason"] for layer in _plan().values()] == [depthwise, other, depthwise]
    assert f"2 layers left dense: {depthwise}" in done.err
    assert f"1 layer left dense: {other}" in done.err


@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "run"])
def test_a_budget_out_of_reach_is_told_with_the_smallest_plan(lrexport: Command, dry: bool) -> None:
    options = ("--dry-run",) if dry else ("-o", "out", "--device", "cpu")
    done = lrexport("compress", "tiny:make", "--macs", "1%", *options)
    assert done.code == 2
    assert "1.00 % of the MACs is out of reach" in done.err
    assert "The smallest plan, rank 1 in every layer, has" in done.err
    assert "of 51.01K" in done.err
    assert not Path("out/model.safetensors").exists()
    if dry:
        assert nothing_made()
    again = lrexport("compress", "tiny:make", "--macs", "0.6", "-o", "out", "--device", "cpu")
    assert again.code == 0, again.err
