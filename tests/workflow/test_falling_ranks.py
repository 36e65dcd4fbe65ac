"""Ranks that fall in SVD training land on the budget, in one process and in two, stopped or not."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from lrexport.artifacts import tensors
from lrexport.cli.main import run
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.svd_form import cut, factors, factors_by, fit_ranks, is_cut, redecompose
from lrexport.plan import Pair
from lrexport.runs.record import load_record
from tests.conftest import SmallNet
from tests.folders import folder_with
from tests.forked import Forked
from tests.workflow.test_pipeline import NETWORK

COMMAND = ["compress", "falling_network:make", "--data", "digits", "--macs", "0.4", "--falling-ranks", "--batch-size", "64"]
COMMAND += ["--dense-epochs", "3", "--svd-epochs", "4", "--fine-tune-epochs", "1", "--device", "cpu"]
COMMAND += ["--precision", "float32", "--optimizer", "adam", "--lr", "0.003", "--dense-lr", "0.003"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_with(tmp_path_factory, falling_network=NETWORK)


@pytest.fixture(scope="module")
def fallen(folder: Path) -> Path:
    done = Forked(folder, *COMMAND, "-o", "fallen")
    assert done.wait() == 0, done.output
    return folder / "fallen"


def test_a_layer_that_was_cut_composes_the_product_and_keeps_its_rank_through_decomposition() -> None:
    net = SmallNet()
    decompose(net, (3, 12, 12))
    left, right = torch.randn(72, 5), torch.randn(5, 48)
    cut(net.body, left, right)
    assert is_cut(net.body)
    assert [tuple(part.shape) for part in factors(net.body)] == [(72, 5), (5,), (48, 5)]
    composed = net.body.weight.detach().clone()
    wanted = (left @ right).view(24, 3, 16, 3).permute(0, 2, 1, 3)
    torch.testing.assert_close(composed, wanted)
    with torch.no_grad():
        factors(net.body)[0].mul_(torch.linspace(0.5, 2, 5))  # out of orthogonality
    composed = net.body.weight.detach().clone()
    redecompose(net.body)
    torch.testing.assert_close(net.body.weight.detach(), composed)
    full = [part.detach() for part in factors_by(net.body, "spatial")]
    assert full[1].shape == (48,)
    assert float(full[1][5:].abs().max() / full[1][0]) < 1e-5


def test_a_network_takes_the_ranks_of_the_weights_it_is_given() -> None:
    one, other = SmallNet(), SmallNet()
    for net in (one, other):
        decompose(net, (3, 12, 12))
    cut(one.body, torch.randn(72, 7), torch.randn(7, 48))
    fit_ranks(other, one.state_dict())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.body.weight, other.body.weight)
    assert not is_cut(other.pointwise) if hasattr(other.pointwise, "parametrizations") else True


def test_ranks_fall_by_equal_steps_of_reduction_and_land_on_the_budget(fallen: Path) -> None:
    lines = [json.loads(line) for line in (fallen / "log.jsonl").read_text().splitlines()]
    shares = [line["macs_share"] for line in lines if line["event"] == "cut"]
    budgets = [1 / (1 + 1.5 * step / 3) for step in (1, 2, 3)]  # three of four epochs, the last one heals
    assert len(shares) == 3
    assert all(0.9 * budget < share <= budget for share, budget in zip(shares, budgets, strict=True))
    record = load_record(fallen)
    assert record.results.compressed is not None
    assert record.results.dense is not None
    assert record.results.compressed.macs <= 0.4 * record.results.dense.macs
    assert record.results.compressed.accuracy is not None
    assert record.results.compressed.accuracy.top1 > 0.8
    assert record.config["falling_ranks"] is True
    held = tensors.load(fallen / "svd.safetensors")
    for name, layer in record.plan.items():
        if isinstance(layer, Pair):
            assert layer.rank <= len(held[f"{name}.parametrizations.weight.original1"]) < layer.full_rank


@pytest.mark.usefixtures("inside")
def test_another_compression_goes_on_from_a_network_whose_ranks_have_fallen(
    fallen: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compress", "fallen", "--macs", "0.3", "--fine-tune-epochs", "0", "-o", "further"]) == 0
    assert run(["compress", "fallen", "--macs", "0.9", "--fine-tune-epochs", "0", "-o", "wider"]) == 0
    wider, held = load_record(folder / "wider"), tensors.load(fallen / "svd.safetensors")
    for name, layer in wider.plan.items():  # a larger budget buys no rank that is not there
        if isinstance(layer, Pair):
            assert layer.rank <= len(held[f"{name}.parametrizations.weight.original1"])
    assert run(["compress", "fallen", "--macs", "0.3", "--falling-ranks", "-o", "again"]) == 2
    assert "--falling-ranks needs SVD training, and fallen has already finished it" in capsys.readouterr().err
    assert run([*COMMAND[:4], "--energy", "0.1", "--falling-ranks", "-o", "energy"]) == 2
    assert "--falling-ranks requires --macs, --params or --latency" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("when", [pytest.param("SVD training: epoch 1/", marks=pytest.mark.slow), "SVD training: epoch 3/"])
def test_falling_ranks_that_were_stopped_go_on_to_the_bit(fallen: Path, folder: Path, when: str) -> None:
    name = f"stopped-{when[-2]}"
    stopped = Forked(folder, *COMMAND, "-o", name)
    stopped.until(when)
    stopped.send(signal.SIGTERM)
    assert stopped.wait() == 143
    again = Forked(folder, *COMMAND, "-o", name, "--resume")
    assert again.wait() == 0, again.output
    for part in ("svd", "model"):
        assert (folder / name / f"{part}.safetensors").read_bytes() == (fallen / f"{part}.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_let_the_same_ranks_fall(fallen: Path, folder: Path) -> None:
    both = Forked(folder, *COMMAND, "--devices", "2", "-o", "both")
    assert both.wait() == 0, both.output
    one, other = load_record(fallen), load_record(folder / "both")
    mine, theirs = (sum(layer.macs for layer in r.plan.values() if isinstance(layer, Pair)) for r in (one, other))
    assert mine == pytest.approx(theirs, rel=0.1)
    assert other.results.compressed.macs <= 0.4 * other.results.dense.macs
