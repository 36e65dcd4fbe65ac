"""Equation 4, the MACs goal on top of it, and what is left dense."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrexport.errors import UsageError
from lrexport.lowrank.decompose import decompose
from lrexport.lowrank.fold import fold
from lrexport.lowrank.selection import plan_macs, select
from lrexport.lowrank.svd_form import factors
from lrexport.measure.torch_macs import count_torch_macs
from lrexport.record import DenseLayer, FactorisedLayer
from tests.conftest import SmallNet


def linear_with(values: list[float]) -> nn.Module:
    """A 64×64 linear layer with these singular values and zeros after them."""
    size = 64
    layer = nn.Linear(size, size, bias=False)
    left, _ = torch.linalg.qr(torch.randn(size, size))
    right, _ = torch.linalg.qr(torch.randn(size, size))
    singular = torch.zeros(size)
    singular[: len(values)] = torch.tensor(values)
    layer.weight.data = (left * singular) @ right
    return nn.Sequential(layer)


@pytest.mark.parametrize(("energy", "rank"), [(0.0699, 3), (0.0701, 2), (0.359, 2), (0.361, 1), (0.99, 1)])
def test_the_rank_is_the_smallest_that_drops_at_most_the_threshold(energy: float, rank: int) -> None:
    # energies 0.64, 0.29 and 0.07 of one: dropping one value loses 0.07, dropping two 0.36
    values = [0.64**0.5, 0.29**0.5, 0.07**0.5]
    svd = decompose(linear_with(values), (64,))
    plan = select(svd, energy=energy).plan["0"]
    assert isinstance(plan, FactorisedLayer)
    assert plan.rank == rank
    assert plan.energy_kept == pytest.approx(sum(v**2 for v in values[:rank]), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(energy=st.floats(0, 1), seed=st.integers(0, 100))
def test_no_layer_drops_more_energy_than_allowed_and_none_could_drop_a_value_more(energy: float, seed: int) -> None:
    torch.manual_seed(seed)
    svd = decompose(SmallNet(), (3, 12, 12))
    plan = select(svd, energy=energy).plan
    for name, layer in plan.items():
        if not isinstance(layer, FactorisedLayer):
            continue
        s = np.sort(np.abs(factors(svd.network.get_submodule(name))[1].detach().double().numpy()))[::-1]
        share = 1 - np.cumsum(s**2) / np.sum(s**2)
        assert layer.rank == 1 or share[layer.rank - 1] <= energy + 1e-9
        assert layer.rank == 1 or share[layer.rank - 2] > energy - 1e-9


@pytest.mark.parametrize("goal", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scheme", ["spatial", "channel", "input-channel"])
def test_a_macs_goal_is_met_by_the_smallest_threshold_and_counted_right(goal: float, scheme: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, 48, (1, 5))
    )
    dense = count_torch_macs(network, (3, 16, 16)).total
    svd = decompose(network, (3, 16, 16), scheme)  # type: ignore[arg-type]
    assert svd.dense_macs == dense
    chosen = select(svd, macs=goal)
    found = plan_macs(svd, chosen.plan)
    assert found <= goal * dense
    assert count_torch_macs(fold(svd, chosen.plan), (3, 16, 16)).total == found
    if chosen.threshold > 0:  # a threshold a little smaller would not have met it
        assert plan_macs(svd, select(svd, energy=chosen.threshold * (1 - 1e-6)).plan) > goal * dense


def test_an_unreachable_goal_says_what_can_be_reached() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    with pytest.raises(UsageError, match=r"rank 1 in every layer, has [0-9.]+ %") as caught:
        select(svd, macs=0.01)
    assert "1.00 % of the MACs is out of reach" in caught.value.message


def test_a_threshold_that_would_prune_everything_keeps_rank_one_and_warns() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    chosen = select(svd, energy=1.0)
    ranks = [layer.rank for layer in chosen.plan.values() if isinstance(layer, FactorisedLayer)]
    assert set(ranks) == {1}
    assert "rank 1 was kept" in chosen.warnings[0]


def test_a_pair_that_costs_more_than_the_layer_stays_dense_with_the_reason() -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), (16, 8, 8))
    layer = select(svd, energy=0.0).plan["0"]
    assert isinstance(layer, DenseLayer)
    assert "rank 48 costs 294.91K MACs, the layer 147.46K" in layer.reason


def test_ranks_are_chosen_on_the_exact_spectrum_even_where_the_factors_drifted() -> None:
    svd = decompose(linear_with([3.0, 2.0, 1.0]), (64,))
    left, singular, right = factors(svd.network[0])
    kernel = svd.network[0].weight.detach().clone()
    with torch.no_grad():  # the same kernel, in factors that are neither orthogonal nor sorted
        mixing = torch.randn(64, 64)
        weight = left * singular
        left.copy_(weight @ mixing)
        right.copy_(right @ torch.linalg.inv(mixing).T)
        singular.fill_(1.0)
    torch.testing.assert_close(svd.network[0].weight, kernel, atol=1e-3, rtol=1e-3)
    plan = select(svd, energy=0.5).plan["0"]
    assert isinstance(plan, FactorisedLayer)
    assert plan.rank == 1
    assert plan.energy_kept == pytest.approx(9 / 14, abs=1e-3)


@pytest.mark.parametrize("goals", [{}, {"energy": 0.1, "macs": 0.5}, {"macs": 0.0}, {"macs": 1.5}, {"energy": -0.1}])
def test_anything_but_one_goal_in_range_is_refused(goals: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        select(decompose(SmallNet(), (3, 12, 12)), **goals)
