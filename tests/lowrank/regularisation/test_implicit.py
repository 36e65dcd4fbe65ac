"""Regularisers in implicit form: gradients against autograd through an SVD, and the path of energy."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrexport.config.goals import Macs
from lrexport.errors import UsageError
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.svd_form import factors_by
from lrexport.lowrank.layers.kernels import spec_of
from lrexport.lowrank.layers.schemes import SCHEMES
from lrexport.lowrank.regularisation.implicit import (
    EnergyPath,
    ImplicitRegularisers,
    SteeredImplicit,
    share_beyond,
    steps_between_refreshes,
)
from lrexport.lowrank.regularisation.regularisers import losses
from lrexport.lowrank.selection.select import select


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(4, 8, 3),
        nn.Conv2d(8, 12, (1, 3), groups=2),
        nn.ConvTranspose2d(12, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3),
        nn.Flatten(),
        nn.Linear(8 * 7 * 5, 20),
    )
    return nn.Sequential(*layers)


def made(form: str = "implicit", scheme: str = "spatial") -> SVDNetwork:
    return decompose(network(), (4, 9, 9), scheme, form=form)


def matrices(svd: SVDNetwork) -> list[Tensor]:
    """The matrix of each layer, with a leading axis of groups, with gradients to the weights."""
    found = []
    for name, layer in svd.layers.items():
        module: Any = svd.network.get_submodule(name)
        matrix = SCHEMES[layer.scheme].matrix(module.weight, spec_of(module))
        found.append(matrix if matrix.ndim == 3 else matrix.unsqueeze(0))
    return found


def penalty(svd: SVDNetwork, sparsity: str) -> Tensor:
    """Equation 2, or the nuclear norm, by autograd through torch's SVD."""
    total = torch.zeros(())
    for matrix in matrices(svd):
        values = torch.linalg.svdvals(matrix)
        each = values.sum(-1)
        total = total + (each / values.norm(dim=-1) if sparsity == "hoyer" else each).sum()
    return total


@pytest.mark.parametrize("sparsity", ["hoyer", "l1"])
@pytest.mark.parametrize("scheme", ["spatial", "channel", "input-channel"])
def test_value_and_gradient_are_those_through_an_svd(sparsity: str, scheme: str) -> None:
    svd = made(scheme=scheme)
    regulariser = ImplicitRegularisers(svd, 0.5, sparsity)
    regulariser.before_step()
    parameters = list(svd.network.parameters())
    value = regulariser()
    mine = torch.autograd.grad(value, parameters, allow_unused=True)
    other = 0.5 * penalty(svd, sparsity)
    expected = torch.autograd.grad(other, parameters, allow_unused=True)
    torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
    for one, two in zip(mine, expected, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_the_value_is_that_of_the_explicit_form() -> None:
    explicit, implicit = made("explicit"), made()
    regulariser = ImplicitRegularisers(implicit, 0.3)
    regulariser.before_step()
    torch.testing.assert_close(regulariser(), losses(explicit, 0.0, 0.3, "hoyer"), rtol=1e-5, atol=1e-6)


def test_singular_vectors_are_refreshed_at_every_interval_and_not_in_between() -> None:
    svd = made()
    regulariser = ImplicitRegularisers(svd, 0.1, every=3)
    layer: Any = svd.network.get_submodule("0")
    seen = []
    for _ in range(7):
        regulariser.before_step()
        seen.append(regulariser.get_buffer("polar_0").clone())
        with torch.no_grad():
            layer.weight.add_(torch.randn_like(layer.weight))
    changed = [not torch.equal(one, two) for one, two in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_l1_reaches_the_minimum_of_a_convex_problem_that_thresholding_singular_values_gives() -> None:
    """min ½‖W − T‖² + λ‖W‖_* has the solution U·(s − λ)₊·Vᵀ of T (Cai, Candès and Shen 2010, theorem 2.1)."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(12, 10, bias=False))
    layer: Any = net[0]
    left, values, right = torch.linalg.svd(torch.randn(10, 12), full_matrices=False)
    values = torch.linspace(3.0, 0.2, 10)
    target = left * values @ right
    with torch.no_grad():
        layer.weight.copy_(target)
    svd = decompose(net, (12,), form="implicit")
    strength = 0.5
    regulariser = ImplicitRegularisers(svd, strength, "l1", every=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for step in range(1500):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + step / 100)
        regulariser.before_step()
        loss = 0.5 * (layer.weight - target).square().sum() + regulariser()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    solution = left * (values - strength).clamp_min(0) @ right
    objective = 0.5 * (solution - target).square().sum() + strength * torch.linalg.svdvals(solution).sum()
    mine = 0.5 * (layer.weight - target).square().sum() + strength * torch.linalg.svdvals(layer.weight).sum()
    assert mine.item() <= objective.item() * 1.001
    torch.testing.assert_close(layer.weight.detach(), solution, rtol=0, atol=0.02)


def test_the_path_ends_at_a_thousandth_and_never_rises_above_it() -> None:
    svd = made()
    ranks = {"0": 3, "3": 4}
    regulariser = EnergyPath(svd, ranks, steps=40, every=2)
    before = [share_beyond(torch.linalg.svdvals(matrix), None) for matrix in matrices(svd)]
    assert before == [0.0] * len(before)
    kept = svd.network.get_submodule("5").weight.clone()
    shares = []
    for _ in range(40):
        regulariser.before_step()
        values = torch.linalg.svdvals(matrices(svd)[0].detach())
        shares.append(share_beyond(values, 3))
        with torch.no_grad():  # training may bring energy back
            svd.network.get_submodule("0").weight.add_(1e-4 * torch.randn_like(svd.network.get_submodule("0").weight))
    assert shares[0] > 0.05
    assert shares[-2] == pytest.approx(1e-3, rel=0.1)
    assert all(two <= one * 1.01 for one, two in zip(shares[::2], shares[2::2], strict=False))
    assert torch.equal(svd.network.get_submodule("5").weight, kept)
    assert regulariser.summary().energy_dropped == pytest.approx(1e-3, rel=0.1)


def test_the_path_leaves_the_larger_singular_values_as_they_are() -> None:
    svd = made()
    first = torch.linalg.svdvals(matrices(svd)[0].detach())
    regulariser = EnergyPath(svd, {"0": 3}, steps=1)
    regulariser.before_step()
    regulariser.before_step()
    now = torch.linalg.svdvals(matrices(svd)[0].detach())
    torch.testing.assert_close(now[..., :3], first[..., :3], rtol=1e-5, atol=1e-6)
    assert share_beyond(now, 3) == pytest.approx(1e-3, rel=1e-3)


def test_steering_strengthens_layers_above_their_path_and_weakens_those_below() -> None:
    svd = made()
    full = {name: layer.schemes[layer.scheme].full_rank for name, layer in svd.layers.items()}
    regulariser = SteeredImplicit(svd, {"0": 2, "3": full["3"]}, steps=100, sparsity="hoyer", every=5)
    for _ in range(50):
        regulariser.before_step()
    strengths = dict(zip(svd.layers, regulariser.strengths.tolist(), strict=True))
    assert strengths["0"] > 0.03 > strengths["3"] > 0
    assert strengths["5"] == 0


def test_state_continues_between_two_refreshes_bit_by_bit() -> None:
    def steps(regulariser: ImplicitRegularisers, net: nn.Module, count: int) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(count):
            regulariser.before_step()
            optimizer.zero_grad()
            regulariser().backward()
            optimizer.step()

    whole, halves = made(), made()
    one = SteeredImplicit(whole, {"0": 2}, 20, "hoyer", every=4)
    two = SteeredImplicit(halves, {"0": 2}, 20, "hoyer", every=4)
    steps(one, whole.network, 11)
    steps(two, halves.network, 6)
    state = copy.deepcopy(two.state_dict())
    resumed = SteeredImplicit(halves, {"0": 2}, 20, "hoyer", every=4)
    resumed.load_state_dict(state)
    steps(resumed, halves.network, 5)
    for mine, other in zip(whole.network.parameters(), halves.network.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_plans_and_folded_networks_are_those_of_the_explicit_form() -> None:
    explicit, implicit = made("explicit"), made()
    plans = [select(svd, Macs(0.5)) for svd in (explicit, implicit)]
    assert plans[0].plan == plans[1].plan
    images = torch.randn(2, 4, 9, 9)
    outputs = [fold(svd, plan).eval()(images) for svd, plan in zip((explicit, implicit), plans, strict=True)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert not any(hasattr(module, "implicit_svd_form") for module in fold(implicit, plans[1].plan).modules())


def test_weights_stay_parameters_and_factors_are_those_of_their_svd() -> None:
    svd = made()
    assert svd.network.state_dict().keys() == network().state_dict().keys()
    left, singular, right = factors_by(svd.network.get_submodule("0"), "spatial")
    torch.testing.assert_close(left * singular @ right.mT, matrices(svd)[0][0], rtol=1e-5, atol=1e-6)


def test_tied_layers_are_regularised_once() -> None:
    tied = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    tied[1].weight = tied[0].weight
    svd = decompose(tied, (4, 8, 8), form="implicit")
    assert list(svd.layers) == ["0"]
    regulariser = ImplicitRegularisers(svd, 1.0)
    regulariser.before_step()
    torch.testing.assert_close(regulariser(), penalty(svd, "hoyer"), rtol=1e-5, atol=1e-6)


def test_refreshes_are_rarer_where_they_cost_more_beside_a_step() -> None:
    wide = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 10))
    rare = steps_between_refreshes(decompose(wide, (1024,), form="implicit"), 8)
    assert steps_between_refreshes(made(), 128) == 10 < rare <= 100


def test_a_network_in_explicit_form_is_refused() -> None:
    with pytest.raises(UsageError, match="explicit SVD form"):
        ImplicitRegularisers(made("explicit"), 0.1)
