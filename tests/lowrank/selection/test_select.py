"""Equation 4, the MACs goal on top of it, and what is left dense."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lrexport.config.goals import AccuracyDrop, Energy, Latency, Macs, Size, goal_of
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.moments import every_scheme_of
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.factors.truncation import Selection, truncations
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.layers.torch_macs import count_torch_macs
from lrexport.lowrank.selection.costs import Cost, dense_cost, pair_cost, plan_cost, plan_macs, whole_cost
from lrexport.lowrank.selection.problem import Rule
from lrexport.lowrank.selection.select import select
from lrexport.lowrank.selection.threshold import at_threshold
from lrexport.lowrank.selection.within_budget import within
from lrexport.networks.cifar_resnet import CifarResNet
from lrexport.plan import Dense, Pair
from lrexport.units import format_percent
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
    plan = select(svd, Energy(energy)).plan["0"]
    assert isinstance(plan, Pair)
    assert plan.rank == rank
    assert plan.energy_kept == pytest.approx(sum(v**2 for v in values[:rank]), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(energy=st.floats(0, 1), seed=st.integers(0, 100))
def test_no_layer_drops_more_energy_than_allowed_and_none_could_drop_a_value_more(energy: float, seed: int) -> None:
    torch.manual_seed(seed)
    svd = decompose(SmallNet(), (3, 12, 12))
    plan = select(svd, Energy(energy)).plan
    for name, layer in plan.items():
        if not isinstance(layer, Pair):
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
    chosen = select(svd, Macs(goal), rule="threshold")
    found = plan_macs(svd, chosen.plan)
    assert found <= goal * dense
    assert count_torch_macs(fold(svd, chosen.plan), (3, 16, 16)).total == found
    assert chosen.threshold is not None
    if chosen.threshold > 0:  # a threshold a little smaller would not have met it
        assert plan_macs(svd, select(svd, Energy(chosen.threshold * (1 - 1e-6))).plan) > goal * dense


@pytest.mark.parametrize("rule", ["global", "threshold"])
@pytest.mark.parametrize(("cost", "name"), [("macs", "MACs"), ("params", "parameters")])
def test_an_unreachable_goal_says_what_can_be_reached(rule: Rule, cost: Cost, name: str) -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    with pytest.raises(UsageError) as caught:
        select(svd, goal_of({cost: 0.01}), rule=rule)
    assert f"1.00 % of the {name} is out of reach" in caught.value.message
    told = re.search(r"rank 1 in every layer, has ([0-9.]+) %", caught.value.hint or "")
    assert told
    least = float(told[1]) / 100
    assert select(svd, goal_of({cost: least + 1e-4}), rule=rule).plan  # what was told can be reached
    with pytest.raises(UsageError):
        select(svd, goal_of({cost: least - 1e-4}), rule=rule)


def test_a_threshold_that_would_prune_everything_keeps_rank_one_and_warns() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    chosen = select(svd, Energy(1.0))
    ranks = [layer.rank for layer in chosen.plan.values() if isinstance(layer, Pair)]
    assert set(ranks) == {1}
    assert "rank 1 was kept" in chosen.warnings[0]


def test_a_pair_that_costs_more_than_the_layer_stays_dense_with_the_reason() -> None:
    svd = decompose(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)), (16, 8, 8))
    layer = select(svd, Energy(0.0)).plan["0"]
    assert isinstance(layer, Dense)
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
    plan = select(svd, Energy(0.5)).plan["0"]
    assert isinstance(plan, Pair)
    assert plan.rank == 1
    assert plan.energy_kept == pytest.approx(9 / 14, abs=1e-3)


def three_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, 2, 1, groups=2), nn.Conv2d(8, 9, 3, bias=False)
    )


def loss_of(selection: Selection) -> float:
    """What the global rule minimises."""
    return sum((1 - layer.energy_kept) ** 0.75 for layer in selection.plan.values() if isinstance(layer, Pair))


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("every_scheme", [False, True])
@pytest.mark.parametrize(("goal", "multiple"), [(0.35, 1), (0.6, 1), (0.8, 1), (0.35, 2), (0.6, 3)])
def test_the_global_plan_is_the_best_of_all_plans_within_the_budget(
    cost: Cost, every_scheme: bool, goal: float, multiple: int
) -> None:
    svd = decompose(three_layers(), (4, 9, 9))
    chosen = select(svd, goal_of({cost: goal}), every_scheme=every_scheme, rank_multiple=multiple)
    ranks = [layer.rank for layer in chosen.plan.values() if isinstance(layer, Pair)]
    assert all(rank < multiple or rank % multiple == 0 for rank in ranks)
    budget = goal * whole_cost(svd, cost)
    assert plan_cost(svd, chosen.plan, cost) <= budget
    best, options = np.inf, []
    for name, layer in svd.layers.items():
        module = svd.network.get_submodule(name)
        entries = [(0.0, dense_cost(layer, cost))]
        for scheme in layer.schemes if every_scheme else (layer.scheme,):
            matrix = SCHEMES[scheme].matrix(module.weight.detach().double(), spec_of(module))
            energy = torch.linalg.svdvals(matrix).square().reshape(-1, layer.schemes[scheme].full_rank).sum(0)
            for rank in range(1, len(energy) + 1):
                on_grain = rank < multiple or rank % multiple == 0
                if on_grain and pair_cost(layer, scheme, rank, "macs") < layer.dense_macs:
                    dropped = float(energy[rank:].sum() / energy.sum())
                    entries.append((dropped**0.75, pair_cost(layer, scheme, rank, cost)))
        options.append(entries)
    fixed = whole_cost(svd, cost) - sum(dense_cost(layer, cost) for layer in svd.layers.values())
    for combination in itertools.product(*options):
        if fixed + sum(price for _, price in combination) <= budget:
            best = min(best, sum(loss for loss, _ in combination))
    assert loss_of(chosen) == pytest.approx(best, abs=1e-6)


def test_a_multiple_of_ranks_leaves_the_least_budget_as_it_is_and_needs_a_whole_number() -> None:
    svd = decompose(three_layers(), (4, 9, 9))
    with pytest.raises(UsageError) as without:
        select(svd, goal_of({"macs": 0.01}))
    with pytest.raises(UsageError) as with_multiple:
        select(svd, goal_of({"macs": 0.01}), rank_multiple=4)
    assert with_multiple.value.hint == without.value.hint
    with pytest.raises(UsageError, match="invalid rank_multiple 0: expected a whole number of at least 1"):
        select(svd, goal_of({"macs": 0.5}), rank_multiple=0)


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_the_budget_is_met_to_the_grain_and_counted_right(cost: Cost) -> None:
    network = CifarResNet(20).eval()
    svd = decompose(network, (3, 32, 32))
    whole = whole_cost(svd, cost)
    dense = CifarResNet(20)
    counted = {"macs": count_torch_macs(dense, (3, 32, 32)).total, "params": sum(p.numel() for p in dense.parameters())}
    assert whole == counted[cost]
    plan = select(svd, goal_of({cost: 0.5})).plan
    found = plan_cost(svd, plan, cost)
    folded = fold(svd, plan)
    recount = {"macs": count_torch_macs(folded, (3, 32, 32)).total, "params": sum(p.numel() for p in folded.parameters())}
    assert found == recount[cost]
    spare = 0.5 * whole - found
    assert spare >= 0
    for name, layer in plan.items():  # not one more singular value fits, in any layer
        if isinstance(layer, Pair):
            facts = svd.layers[name]
            more = min(pair_cost(facts, layer.scheme, layer.rank + 1, cost), dense_cost(facts, cost))
            assert more - pair_cost(facts, layer.scheme, layer.rank, cost) > spare


def test_a_budget_of_everything_leaves_everything_as_it_is() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    plan = select(svd, Macs(1.0)).plan
    assert {layer.kind for layer in plan.values() if isinstance(layer, Dense)} == {"chosen", "unsupported"}
    assert not any(isinstance(layer, Pair) for layer in plan.values())


def test_the_plan_lists_the_layers_as_they_stand_in_the_network() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    assert list(select(svd, Macs(0.6)).plan) == ["stem", "body", "depthwise", "pointwise", "head"]


def test_a_params_goal_is_met_by_the_smallest_threshold_though_parameters_may_rise_with_it() -> None:
    """Of several schemes the one with the fewest MACs is taken, which may have more parameters than another before."""
    torch.manual_seed(15)
    network = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, (5, 3), 1, 1))
    svd = decompose(network, (8, 12, 12), "auto")
    found, whole = truncations(svd, None, every_scheme_of(svd)), whole_cost(svd, "params")
    every = torch.cat([each.energy_dropped for schemes in found.values() for each in schemes.values()]).unique().tolist()
    costs = [plan_cost(svd, at_threshold(svd, found, step).plan, "params") for step in every]
    assert any(after > before for before, after in itertools.pairwise(costs))
    for budget in sorted(set(costs)):
        wanted = next(step for step, cost in zip(every, costs, strict=True) if cost <= budget)
        assert within(svd, found, "params", budget, "threshold").threshold == wanted
    with pytest.raises(UsageError, match="out of reach") as caught:
        within(svd, found, "params", min(costs) - 1, "threshold")
    assert f"has {format_percent(min(costs) / whole)} of" in str(caught.value)


def test_a_rule_that_is_none_is_refused_with_those_there_are() -> None:
    svd = decompose(SmallNet(), (3, 12, 12))
    for goal in (Macs(0.5), Energy(0.1)):
        with pytest.raises(UsageError, match=r"unknown rule 'threshhold'\nKnown: global, threshold\."):
            select(svd, goal, rule="threshhold")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown rule"):
        within(svd, truncations(svd), "macs", 1e9, "least")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "goal", [None, 0.5, {"macs": 0.5}, Size(500_000), AccuracyDrop(1), Latency(0.6)], ids=lambda goal: str(goal)
)
def test_what_is_no_goal_of_a_network_alone_is_refused(goal: Any) -> None:
    with pytest.raises(UsageError) as caught:
        select(decompose(SmallNet(), (3, 12, 12)), goal)
    assert caught.value.hint
