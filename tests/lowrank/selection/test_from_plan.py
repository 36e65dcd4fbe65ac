"""A plan's choices on a network: figures worked out for every scheme, and refused where the network does not have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrexport.errors import InputError
from lrexport.lowrank.factors.decompose import SVDNetwork, decompose
from lrexport.lowrank.factors.fold import fold
from lrexport.lowrank.factors.svd_form import factors
from lrexport.lowrank.selection.from_plan import check_choices, plan_from_choices
from lrexport.plan import Dense, Pair, PairChoice
from tests.conftest import SmallNet, relative_error

SHAPE = (3, 12, 12)


@pytest.fixture
def svd(small_net: nn.Module) -> SVDNetwork:
    return decompose(small_net, SHAPE)


def test_the_plan_has_exactly_these_choices_and_leaves_the_rest_dense(svd: SVDNetwork) -> None:
    found = plan_from_choices(svd, {"body": PairChoice("spatial", 5), "stem": "dense", "depthwise": "dense"})
    assert list(found.plan) == ["stem", "body", "depthwise", "pointwise", "head"]
    body = found.plan["body"]
    assert isinstance(body, Pair)
    assert (body.scheme, body.rank, body.full_rank, body.shape) == ("spatial", 5, 48, (24, 16, 3, 3))
    # 1×3 with stride 2 along the width makes 12·6 outputs, 3×1 after it 6·6.
    assert body.macs == 5 * (16 * 3 * 72 + 24 * 3 * 36)
    assert body.params == 5 * (16 * 3 + 24 * 3)
    reasons = {name: (layer.kind, layer.reason) for name, layer in found.plan.items() if isinstance(layer, Dense)}
    assert reasons == {
        "stem": ("kept", "dense in the plan"),
        "depthwise": ("unsupported", "depthwise convolution"),
        "pointwise": ("kept", "not in the plan"),
        "head": ("kept", "not in the plan"),
    }
    assert found.warnings == ()


@pytest.mark.parametrize("scheme", ["spatial", "channel", "input-channel"])
@pytest.mark.parametrize("own", ["spatial", "channel"])
def test_energy_and_network_are_those_of_the_plans_scheme_whatever_the_svd_form_has(own: str, scheme: str) -> None:
    network = SmallNet().eval()
    weight = network.body.weight.detach().double()
    matrices = {
        "spatial": weight.permute(0, 2, 1, 3).reshape(72, 48),
        "channel": weight.reshape(24, 144),
        "input-channel": weight.transpose(0, 1).reshape(16, 216),
    }
    left, singular, right = torch.linalg.svd(matrices[scheme], full_matrices=False)
    svd = decompose(network, SHAPE, own)
    plan = plan_from_choices(svd, {"body": PairChoice(scheme, 4)}).plan
    energy = singular.square()
    assert plan["body"].energy_kept == pytest.approx(float(energy[:4].sum() / energy.sum()), rel=1e-5)
    folded = fold(svd, plan)
    images = torch.randn(2, *SHAPE)
    truncated = (left[:, :4] * singular[:4]) @ right[:4]
    kernel = {
        "spatial": lambda matrix: matrix.reshape(24, 3, 16, 3).permute(0, 2, 1, 3),
        "channel": lambda matrix: matrix.reshape(24, 16, 3, 3),
        "input-channel": lambda matrix: matrix.reshape(16, 24, 3, 3).transpose(0, 1),
    }[scheme](truncated)
    before = torch.randn(2, 16, 12, 12)
    wanted = nn.functional.conv2d(before, kernel.float(), stride=2, padding=1)
    assert relative_error(folded.body(before), wanted) < 1e-4
    assert folded(images).shape == (2, 10)


def test_energy_is_that_of_the_kernel_as_it_was_trained_not_of_its_drifted_factors(svd: SVDNetwork) -> None:
    left, singular, _ = factors(svd.network.get_submodule("body"))
    with torch.no_grad():
        left.add_(0.1 * torch.randn_like(left))
        singular.mul_(torch.rand_like(singular) - 0.5)
    weight = svd.network.get_submodule("body").weight.detach().double()
    energy = torch.linalg.svdvals(weight.permute(0, 2, 1, 3).reshape(72, 48)).square()
    kept = plan_from_choices(svd, {"body": PairChoice("spatial", 7)}).plan["body"].energy_kept
    assert kept == pytest.approx(float(energy[:7].sum() / energy.sum()), rel=1e-4)


def test_a_grouped_layer_has_the_rank_in_every_group() -> None:
    network = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=2, bias=False)).eval()
    weight = network[0].weight.detach().double()
    svd = decompose(network, (32, 8, 8), "channel")
    entry = plan_from_choices(svd, {"0": PairChoice("channel", 3)}).plan["0"]
    energy = torch.linalg.svdvals(weight.reshape(2, 16, 144)).square()
    assert entry.energy_kept == pytest.approx(float(energy[:, :3].sum() / energy.sum()), rel=1e-5)
    assert sum(parameter.numel() for parameter in fold(svd, {"0": entry}).parameters()) == entry.params


def test_a_pair_that_costs_more_than_its_layer_is_made_with_a_warning(svd: SVDNetwork) -> None:
    found = plan_from_choices(svd, {"head": PairChoice("linear", 10)})
    assert isinstance(found.plan["head"], Pair)
    assert found.plan["head"].energy_kept == 1.0
    assert found.warnings == ("layer 'head': a linear pair of rank 10 costs 580 MACs, the layer 480",)


def test_a_kernel_of_zeros_keeps_all_its_energy(small_net: nn.Module) -> None:
    nn.init.zeros_(small_net.body.weight)
    plan = plan_from_choices(decompose(small_net, SHAPE), {"body": PairChoice("channel", 1)}).plan
    assert plan["body"].energy_kept == 1.0


REFUSED = {
    "an unknown layer": ({"bodi": "dense"}, r"mine: the network has no layer 'bodi'\nClose: body"),
    "a layer like none": ({"x": "dense"}, r"the network has no layer 'x'$"),
    "a depthwise one": ({"depthwise": PairChoice("spatial", 1)}, "mine: layer 'depthwise' cannot be factorised: depthwise"),
    "another scheme": (
        {"head": PairChoice("spatial", 1)},
        r"mine: layer 'head' cannot be spatial: its weight is 10×48\n.*linear \(full rank 10\)",
    ),
    "a rank above full rank": (
        {"body": PairChoice("spatial", 49)},
        "mine: layer 'body': invalid rank 49: expected at most 48, its full rank by spatial",
    ),
    "a rank above another scheme's": (
        {"body": PairChoice("input-channel", 17)},
        "expected at most 16, its full rank by input-channel",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_network_does_not_have_is_refused_by_name(svd: SVDNetwork, what: str) -> None:
    choices, words = REFUSED[what]
    for function in (check_choices, plan_from_choices):
        with pytest.raises(InputError, match=words):
            function(svd, choices, "mine")


class Shared(nn.Module):
    """One layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_a_layer_at_two_places_is_known_by_both_names_and_wants_one_choice() -> None:
    svd = decompose(Shared(), (32,))
    for choices in (
        {"second": PairChoice("linear", 4)},
        {"first": PairChoice("linear", 4), "second": PairChoice("linear", 4)},
    ):
        plan = plan_from_choices(svd, choices).plan
        assert list(plan) == ["first"]
        assert plan["first"].rank == 4
    with pytest.raises(InputError, match="'second' shares its weight with 'first', which has another choice in the plan"):
        check_choices(svd, {"first": "dense", "second": PairChoice("linear", 4)})
