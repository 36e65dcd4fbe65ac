"""What a plan takes on a target, and selection by it; times are made up, the optimum is found by trying everything."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lrexport.config.goals import Energy
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.moments import every_scheme_of
from lrexport.lowrank.factors.truncation import truncations
from lrexport.lowrank.selection.by_latency import within_latency
from lrexport.lowrank.selection.costs import plan_layer, plan_macs, whole_cost
from lrexport.lowrank.selection.predicted_latency import LayerLatency, NetworkLatency
from lrexport.lowrank.selection.select import select
from lrexport.lowrank.selection.within_budget import within
from lrexport.plan import Dense, Pair

TIMES = st.dictionaries(st.integers(1, 64), st.floats(0.01, 4), min_size=1, max_size=12)


@given(times=TIMES, dense=st.floats(0.01, 4), rank=st.integers(1, 70))
def test_a_rank_is_rounded_up_to_the_fastest_of_at_least_as_many(times: dict[int, float], dense: float, rank: int) -> None:
    layer = LayerLatency(dense, {"spatial": times})
    possible = {higher: ms for higher, ms in times.items() if higher >= rank and ms < dense}
    found = layer.round_up("spatial", rank)
    if not possible:
        assert found is None
    else:
        assert found is not None
        assert times[found] == min(possible.values())
        assert found == max(higher for higher, ms in possible.items() if ms == times[found])


@given(times=TIMES, dense=st.floats(0.01, 4))
def test_pairs_that_gain_are_faster_than_the_layer_and_rise_with_their_rank(times: dict[int, float], dense: float) -> None:
    for ranks in LayerLatency(dense, {"spatial": times}).gaining.values():
        assert list(ranks) == sorted(ranks)
        assert list(ranks.values()) == sorted(set(ranks.values()))
        assert max(ranks.values()) < dense


def test_the_blocks_of_a_runtime_become_the_grain() -> None:
    # As measured on a processor with blocks of 16: each rank takes what the next block takes.
    times = {rank: 0.2 + 0.1 * -(-rank // 16) + (0.1 if rank % 16 else 0) for rank in range(4, 65, 4)}
    assert list(LayerLatency(1.0, {"channel": times}).gaining["channel"]) == [16, 32, 48, 64]


def ranks_of(latency: NetworkLatency, name: str, entry: Pair) -> dict[int, float]:
    return latency.layers[name].gaining[entry.scheme]


def three_layers() -> SVDNetwork:
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1))
    return decompose(network, (8, 6, 6))


def latency_of(svd: SVDNetwork, draw: st.DataObject, other: float) -> NetworkLatency:
    layers = {}
    for name, facts in svd.layers.items():
        pairs = {
            scheme: {
                rank: draw.draw(st.floats(0.05, 1.2)) for rank in range(1, -(-facts.dense_macs // each.macs_per_rank), 3)
            }
            for scheme, each in facts.schemes.items()
        }
        layers[name] = LayerLatency(1.0, pairs)
    return NetworkLatency(len(layers) + other, layers)


@settings(max_examples=30, deadline=None)
@given(draw=st.data(), share=st.floats(0.2, 1), other=st.floats(-0.2, 1))
def test_the_plan_is_the_best_of_all_within_the_latency(draw: st.DataObject, share: float, other: float) -> None:
    svd = three_layers()
    schemes, latency = every_scheme_of(svd), latency_of(svd, draw, other)
    found, budget = truncations(svd, schemes=schemes), share * latency.dense_ms

    every = []
    for name, layer in latency.layers.items():
        pairs = [(s, r, ms) for s, times in layer.pairs.items() for r, ms in times.items() if ms < layer.dense_ms]
        every.append([(0.0, layer.dense_ms), *((float(found[name][s].energy_dropped[r]) ** 0.75, ms) for s, r, ms in pairs)])
    totals = [
        (sum(loss for loss, _ in picks), latency.other_ms + sum(ms for _, ms in picks))
        for picks in itertools.product(*every)
    ]
    fitting = [loss for loss, ms in totals if ms <= budget]
    assume(any(len(options) > 1 for options in every))
    if not fitting:
        with pytest.raises(UsageError, match="out of reach") as caught:
            within_latency(svd, found, latency, budget)
        assert "fastest plan" in str(caught.value)
        return
    plan = within_latency(svd, found, latency, budget).plan
    assert latency.of_plan(plan) <= budget * (1 + 1e-9)
    loss = sum((1 - entry.energy_kept) ** 0.75 for entry in plan.values() if isinstance(entry, Pair))
    assert loss == pytest.approx(min(fitting), abs=1e-6)


def test_the_fastest_plan_is_found_with_no_more_room_than_it_takes() -> None:
    svd = three_layers()
    found, generator = truncations(svd), random.Random(0)
    for _ in range(40):  # sums of such times are rounded, some of them down
        layers = {name: LayerLatency(1.0, {"spatial": {1: generator.uniform(0.05, 1)}}) for name in ("0", "1")} | {
            "2": LayerLatency(1.0, {})
        }
        latency = NetworkLatency(generator.uniform(2.8, 4), layers)
        plan = within_latency(svd, found, latency, latency.least_ms).plan
        assert latency.of_plan(plan) == pytest.approx(latency.least_ms)


def test_a_latency_that_the_dense_network_has_already_prunes_nothing_and_says_so() -> None:
    svd = three_layers()
    fast = {name: LayerLatency(1.0, {"spatial": {1: 0.3, 4: 0.6}}) for name in svd.layers}
    found = within_latency(svd, truncations(svd), NetworkLatency(3.5, fast), 5.0)
    assert "nothing is pruned: the dense network takes 3.50 ms, within the goal of 5.00 ms" in found.warnings
    assert not any(isinstance(entry, Pair) for entry in found.plan.values())
    assert not within_latency(svd, truncations(svd), NetworkLatency(3.5, fast), 3.0).warnings


def test_where_no_pair_is_faster_the_network_stays_dense_and_says_so() -> None:
    svd = three_layers()
    slow = {name: LayerLatency(1.0, {"spatial": {1: 1.1, 4: 1.4}}) for name in svd.layers}
    found = within_latency(svd, truncations(svd), NetworkLatency(3.5, slow), 1.0)
    assert "no pair is faster than its layer on the target: all layers stay dense" in found.warnings
    assert all(isinstance(entry, Dense) and entry.kind == "slow" for entry in found.plan.values())


@settings(max_examples=20, deadline=None)
@given(draw=st.data(), energy=st.floats(0, 1))
def test_equation_4_on_a_target_drops_no_more_energy_and_is_never_slower(draw: st.DataObject, energy: float) -> None:
    svd = three_layers()
    latency = latency_of(svd, draw, 0.5)
    plain = select(svd, Energy(energy), every_scheme=True).plan
    timed = select(svd, Energy(energy), every_scheme=True, latency=latency).plan
    for name, entry in timed.items():
        if not isinstance(entry, Pair):
            continue
        assert 1 - entry.energy_kept <= energy + 1e-9 or entry.rank == min(ranks_of(latency, name, entry))
        ranks = ranks_of(latency, name, entry)
        assert entry.rank in ranks
        assert ranks[entry.rank] < latency.layers[name].dense_ms
        before = plain[name]
        if isinstance(before, Pair) and before.scheme == entry.scheme:
            assert entry.rank >= before.rank
            assert entry.energy_kept >= before.energy_kept - 1e-9
    assert latency.of_plan(timed) <= latency.dense_ms + 1e-9


@settings(max_examples=20, deadline=None)
@given(draw=st.data(), share=st.floats(0.3, 1))
def test_a_budget_of_macs_takes_ranks_on_the_grain_where_it_can(draw: st.DataObject, share: float) -> None:
    svd = three_layers()
    latency, schemes = latency_of(svd, draw, 0.5), every_scheme_of(svd)
    found, budget = truncations(svd, schemes=schemes), share * whole_cost(svd, "macs")
    try:
        selection = within(svd, found, "macs", budget, latency=latency)
    except UsageError:
        return
    assert plan_macs(svd, selection.plan) <= budget
    off_grain = [
        name
        for name, entry in selection.plan.items()
        if isinstance(entry, Pair) and entry.rank not in latency.layers[name].gaining.get(entry.scheme, {})
    ]
    assert not off_grain or any(
        "pairs that are faster than their layer on the target cannot meet the budget" in warning
        for warning in selection.warnings
    )


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_threshold_rule_meets_a_latency_too(share: float) -> None:
    svd = three_layers()
    layers = {}
    for name, facts in svd.layers.items():
        per_rank = facts.schemes[facts.scheme].macs_per_rank / facts.dense_macs
        times = {rank: 0.05 + per_rank * rank for rank in range(1, facts.full_rank + 1)}
        layers[name] = LayerLatency(1.0, {facts.scheme: times})
    latency = NetworkLatency(3.5, layers)
    found = within_latency(svd, truncations(svd), latency, share * latency.dense_ms, "threshold")
    assert found.threshold is not None
    assert latency.of_plan(found.plan) <= share * latency.dense_ms


def test_a_plan_off_the_grain_is_predicted_between_its_neighbours() -> None:
    svd = three_layers()
    times = {4: 0.2, 8: 0.6}
    latency = NetworkLatency(4.0, {name: LayerLatency(1.0, {"spatial": times, "channel": times}) for name in svd.layers})
    for rank, milliseconds in ((4, 0.2), (5, 0.3), (6, 0.4), (8, 0.6), (16, 1.2), (2, 0.1)):
        plan = {"0": plan_layer(svd.layers["0"], rank, 1.0, "spatial", even_if_costly=True)}
        assert latency.of_plan(plan) == pytest.approx(4.0 - 1.0 + milliseconds)
    assert latency.of_plan({}) == 4.0
